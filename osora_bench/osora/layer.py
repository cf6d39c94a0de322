"""OSoRA on one linear layer."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _get_in_out_features,
    check_adapters_to_merge,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .config import OsoraConfig
from .svd import top_triplets

META = torch.device("meta")


class OsoraLayer(BaseTunerLayer):  # type: ignore[misc]
    """The state of OSoRA on one layer: S and O (and DoRA's magnitude) for each adapter.

    The update is kept in the residual-free form: since diag(O) U_r diag(S) V_r^T and the part that
    Eq. 5 takes out of W0 share U_r and V_r, Eq. 4 equals ``W0 x + B A x`` with

    - O on the output: ``B = U_r * (O (S - S_0)^T + (O - O_0) S_0^T)``, ``A = V_r^T``
    - O on the input: ``A = V_r^T * ((S - S_0) O^T + S_0 (O - O_0)^T)``, ``B = U_r``

    (* elementwise; S_0, O_0 the values at the start). W0 is never changed, and the update is
    exactly zero at the start: both differences are.
    """

    adapter_layer_names = ("osora_S", "osora_O", "osora_magnitude")
    other_param_names = (
        "osora_U", "osora_V", "osora_S0", "osora_O0", "osora_norm0", "osora_config",
    )  # fmt: skip

    def __init__(self, base_layer: nn.Module) -> None:
        self.base_layer = base_layer
        self.osora_S = nn.ParameterDict({})
        self.osora_O = nn.ParameterDict({})
        self.osora_magnitude = nn.ParameterDict({})
        self.osora_U = BufferDict({})  # (d_out, r)
        self.osora_V = BufferDict({})  # (r, d_in)
        self.osora_S0 = BufferDict({})  # (r,)
        self.osora_O0 = BufferDict({}, persistent=True)  # like O; only where its start is random
        self.osora_norm0 = BufferDict({})  # (d_out,), row norms of W0; only for DoRA
        self.osora_config: dict[str, OsoraConfig] = {}
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged_weight: Tensor | None = None
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)

    def update_layer(
        self, adapter_name: str, r: int, config: OsoraConfig, inference_mode: bool = False
    ) -> None:
        """Add an adapter of rank `r`: decompose the base weight and start S and O."""
        weight = self.original_weight()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        if weight.device == META:
            u, s, vh = (
                torch.empty(shape, dtype=dtype, device=META)
                for shape in ((self.out_features, r), (r,), (r, self.in_features))
            )
        else:
            u, s, vh = (t.to(weight.device, dtype) for t in top_triplets(weight, r))
        for buffers, value in ((self.osora_U, u), (self.osora_V, vh), (self.osora_S0, s)):
            buffers.register_buffer(adapter_name, value, persistent=config.save_projection)
        self.osora_S[adapter_name] = nn.Parameter(s.clone())
        self._start_o(adapter_name, r, config, s)
        if config.use_dora:
            norm = weight.to(dtype).norm(dim=1)
            self.osora_norm0[adapter_name] = norm
            self.osora_magnitude[adapter_name] = nn.Parameter(norm.clone())
        self.osora_config[adapter_name] = config
        frozen = {"osora_S": not config.train_s, "osora_O": not config.train_o}
        self.frozen_peft_weight_names[adapter_name] = tuple(k for k, v in frozen.items() if v)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _start_o(self, name: str, r: int, config: OsoraConfig, like: Tensor) -> None:
        size = self.out_features if config.o_side == "output" else self.in_features
        o = torch.ones(size, dtype=like.dtype, device=like.device)
        if config.o_init == "gaussian":
            std = 1 / r if config.o_init_std is None else config.o_init_std
            o.normal_(std=std)
            self.osora_O0[name] = o.clone()
        self.osora_O[name] = nn.Parameter(o)

    def original_weight(self) -> Tensor:
        """W0 as (d_out, d_in), also while adapters are merged into the base layer."""
        weight = self._unmerged_weight
        weight = self.get_base_layer().weight.data if weight is None else weight
        return weight.T if self.fan_in_fan_out else weight

    def lora_factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """(A, B) of shapes (r, d_in) and (d_out, r): the update of W0 is B A, before DoRA."""
        u, v = self.osora_U[adapter_name], self.osora_V[adapter_name]
        s, s0 = self.osora_S[adapter_name], self.osora_S0[adapter_name]
        o = self.osora_O[adapter_name]
        o0 = self.osora_O0[adapter_name] if adapter_name in self.osora_O0 else 1.0
        # (n, r) as a product of (n, 2) and (2, r), where n is the length of O
        change = torch.stack((o, o - o0), dim=1) @ torch.stack((s - s0, s0))
        if self.osora_config[adapter_name].o_side == "input":
            return v * change.T, u
        return v, u * change

    def dora_scale(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """m / ||W0 + B A|| for each row (d_out,), 1 at the start. A row of zeros keeps scale 1.

        With O on the output the norm has a closed form in O(d_out r), because W0 V_r = U_r S_0:
        ``||W0||^2 + 2 rowsum(U_r S_0 * B) + rowsum(B * B)``.
        """
        config = self.osora_config[name]
        if config.dora_detach_norm:
            a, b = a.detach(), b.detach()
        norm0 = self.osora_norm0[name]
        if config.o_side == "output":
            us0 = self.osora_U[name] * self.osora_S0[name]
            square = norm0.square() + ((2 * us0 + b) * b).sum(dim=1)
        else:
            w0 = self.original_weight().to(a.dtype)
            square = norm0.square() + ((2 * w0 @ a.T + b @ (a @ a.T)) * b).sum(dim=1)
        # sqrt(norm0^2) may differ from norm0 in the last bit: the start is divided out
        relative = (square / norm0.square()).clamp_min(0).sqrt()
        scale = self.osora_magnitude[name] / norm0 / relative
        return torch.where(norm0 > 0, scale, 1.0)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What `adapter` adds to the base weight, in the base layer's layout, in its own dtype."""
        a, b = self.lora_factors(adapter)
        delta = b @ a
        if self.osora_config[adapter].use_dora:
            scale = self.dora_scale(adapter, a, b)[:, None]
            delta = (scale - 1) * self.original_weight().to(delta.dtype) + scale * delta
        return delta.T if self.fan_in_fan_out else delta


class Linear(nn.Module, OsoraLayer):
    """OSoRA on a `torch.nn.Linear` or a transformers `Conv1D`."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, r: int, config: OsoraConfig):
        super().__init__()
        OsoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, config)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the base weight (Eq. 7).

        The original weight is kept until `unmerge`, which so restores it bit for bit.

        Raises:
            ValueError: With `safe_merge`, if the merged weight would not be finite; nothing is
                changed then.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.osora_S:
                continue
            base = self.get_base_layer()
            delta = self.get_delta_weight(name)
            merged = (base.weight.data.to(delta.dtype) + delta).to(base.weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"NaN or inf in the merged weight: adapter {name} seems to be broken"
                )
            if self._unmerged_weight is None:
                self._unmerged_weight = base.weight.data
            base.weight.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put back the base weight as it was before the first merge."""
        if self._unmerged_weight is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_layer().weight
        weight.data = self._unmerged_weight.to(weight.device)
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def forward(
        self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Tensor:
        """Base layer plus the active adapters, or one adapter a row of the batch."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        base: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or (self.merged and adapter_names is None):
            return base
        if adapter_names is not None:
            return self._mixed_batch(x, base, adapter_names)
        return self._adapt(x, base, [n for n in self.active_adapters if n in self.osora_S])

    def _adapt(self, x: Tensor, base: Tensor, names: list[str]) -> Tensor:
        if not names:
            return base
        result = self._adapt_one(x, base, names[0])
        for name in names[1:]:
            result = result + (self._adapt_one(x, base, name) - base)
        return result.to(base.dtype)

    def _adapt_one(self, x: Tensor, base: Tensor, name: str) -> Tensor:
        a, b = self.lora_factors(name)
        x = self._cast_input_dtype(x, a.dtype)
        result = base + F.linear(F.linear(x, a), b)
        if self.osora_config[name].use_dora:
            scale = self.dora_scale(name, a, b)
            bias = self.get_base_layer().bias
            result = scale * result
            if bias is not None:
                result = result + (1 - scale) * bias
        return result

    def _mixed_batch(self, x: Tensor, base: Tensor, adapter_names: list[str]) -> Tensor:
        if len(x) != len(adapter_names):
            raise ValueError(
                f"adapter_names must name one adapter for each of the {len(x)} inputs, "
                f"not {len(adapter_names)}"
            )
        if self.merged:
            raise ValueError("adapter_names cannot be used while adapters are merged; unmerge")
        result = base.clone()
        for name in sorted(set(adapter_names) & set(self.osora_S)):
            rows = [i for i, n in enumerate(adapter_names) if n == name]
            result[rows] = self._adapt(x[rows], base[rows], [name])
        return result

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the update of the weight has rank r: not with DoRA's scaling."""
        return not self.osora_config[adapter_name].use_dora

    def __repr__(self) -> str:
        return "osora." + super().__repr__()
