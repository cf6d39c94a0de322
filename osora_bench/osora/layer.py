"""OSoRA on one linear layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .checkpoint import FINGERPRINT_SIZE, fingerprint
from .config import OsoraConfig
from .quantised import Kept, backend_of, weight_of
from .store import decompose
from .svd import Triplets
from .tensors import AdapterTensors

START_NOISE = 0.3
"""Relative size of the random change of S and O with `init_weights=False`."""


class OsoraLayer(AdapterTensors):
    """The state of OSoRA on one layer: S and O (and DoRA's magnitude) for each adapter.

    The update is kept in the residual-free form: since diag(O) U_r diag(S) V_r^T and the part that
    Eq. 5 takes out of W0 share U_r and V_r, Eq. 4 equals ``W0 x + B A x`` with

    - O on the output: ``B = U_r * (O (S - S_0)^T + (O - O_0) S_0^T)``, ``A = V_r^T``
    - O on the input: ``A = V_r^T * ((S - S_0) O^T + S_0 (O - O_0)^T)``, ``B = U_r``

    (* elementwise; S_0, O_0 the values at the start). W0 is never changed, and the update is
    exactly zero at the start: both differences are.
    """

    base_layer: nn.Module
    merged_adapters: list[str]
    active_adapters: list[str]
    _cast_input_dtype: Callable[[Tensor, torch.dtype], Tensor]

    def __init__(self, base_layer: nn.Module, model_dtype: torch.dtype) -> None:
        self.base_layer = base_layer
        self._model_dtype = model_dtype
        self._make_tensors()
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self._disable_adapters = False
        self.merged_adapters = []
        self.quantization_backend = backend_of(self.get_base_layer())
        self._unmerged_weight: Tensor | None = None  # W0 while adapters are merged
        self._quantised: Kept | None = None  # and, of a quantised layer, what it was stored as
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        self.out_features, self.in_features = self.original_weight().shape

    def update_layer(
        self,
        adapter_name: str,
        r: int,
        config: OsoraConfig,
        inference_mode: bool = False,
        original: Tensor | None = None,
    ) -> None:
        """Add an adapter of rank `r`: decompose the base weight, or the `original` that it was
        quantised from, and start S, O and the magnitude.

        The adapter's tensors are float32 (float64 on a float64 base), U and V those of the base
        with ``projection_dtype="base"``. On the meta device they only have shapes.
        """
        weight = self.original_weight()
        if weight.is_meta:
            dtype = torch.promote_types(weight.dtype, torch.float32)
            shapes = ((self.out_features, r), (r,), (r, self.in_features), (FINGERPRINT_SIZE,))
            u, s, vh, mark = (torch.empty(n, dtype=dtype, device="meta") for n in shapes)
        else:
            u, s, vh = decompose(weight if original is None else original, r)
            mark = fingerprint(weight, u, vh)
        low = self.base_dtype if config.projection_dtype == "base" else s.dtype
        self._set_frozen(adapter_name, Triplets(u.to(low), s, vh.to(low)), config)
        self.osora_fingerprint[adapter_name] = mark
        self.osora_S[adapter_name] = nn.Parameter(_started(s.clone(), config))
        self._start_o(adapter_name, r, config, s)
        if config.use_dora:
            norm = weight.to(s.dtype).norm(dim=1)
            self.osora_norm0[adapter_name] = norm
            self.osora_magnitude[adapter_name] = nn.Parameter(norm.clone())
        self.osora_config[adapter_name] = config
        self._note_found(adapter_name)
        frozen = {"osora_S": not config.train_s, "osora_O": not config.train_o}
        self.frozen_peft_weight_names[adapter_name] = tuple(k for k, v in frozen.items() if v)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _set_frozen(self, name: str, found: Triplets, config: OsoraConfig) -> None:
        buffers = (self.osora_U, self.osora_S0, self.osora_V)
        for buffer, value in zip(buffers, found, strict=True):
            # a slice of a stored decomposition would keep all of it in memory
            buffer.register_buffer(
                name,
                value.clone(memory_format=torch.contiguous_format),
                persistent=config.save_projection,
            )

    def _start_o(self, name: str, r: int, config: OsoraConfig, like: Tensor) -> None:
        size = self.out_features if config.o_side == "output" else self.in_features
        o = torch.ones(size, dtype=like.dtype, device=like.device)
        if config.o_init == "gaussian":
            o.normal_(std=1 / r if config.o_init_std is None else config.o_init_std)
            self.osora_O0[name] = o.clone()
        self.osora_O[name] = nn.Parameter(_started(o, config))

    def original_weight(self) -> Tensor:
        """W0 as (d_out, d_in), also while adapters are merged into the base layer."""
        kept = self._unmerged_weight
        weight = self._stored_weight() if kept is None else kept
        return weight.T if self.fan_in_fan_out else weight

    def _stored_weight(self) -> Tensor:
        """The base layer's weight in its own layout, as numbers where it is quantised."""
        base, backend = self.get_base_layer(), self.quantization_backend
        weight: Tensor = base.weight.data if backend is None else weight_of(base, backend)
        return weight

    def lora_factors(
        self, adapter_name: str, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """(A, B) of shapes (r, d_in) and (d_out, r): the update of W0 is B A, before DoRA.

        Computed in `dtype`, or (None) in the adapter's own. ValueError as `verify`.
        """
        self.verify(adapter_name)
        a, b = self._factors(adapter_name, dtype)
        wide = torch.promote_types(a.dtype, b.dtype)
        return a.to(wide), b.to(wide)

    def _factors(
        self, adapter_name: str, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """`lora_factors`, of which that which is only frozen is as it is kept."""
        u, v = (_as(d[adapter_name], dtype) for d in (self.osora_U, self.osora_V))
        s, s0, o, d_o = self._vectors(adapter_name, dtype)
        # (n, r) as a product of (n, 2) and (2, r), where n is the length of O
        change = torch.stack((o, d_o), dim=1) @ torch.stack((s - s0, s0))
        if self.osora_config[adapter_name].o_side == "input":
            return v * change.T, u
        return v, u * change

    def _vectors(
        self, name: str, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """S, S_0, O and O - O_0."""
        s, s0, o = (_as(d[name], dtype) for d in (self.osora_S, self.osora_S0, self.osora_O))
        o0 = self.osora_O0[name] if name in self.osora_O0 else 1.0  # noqa: SIM401 (has no get)
        return s, s0, o, o - o0

    def dora_scale(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """m / ||W0 + B A|| of each row (d_out,), 1 at the start. A row of zeros stays zero."""
        config = self.osora_config[name]
        detach = config.dora_detach_norm
        if detach:
            a, b = a.detach(), b.detach()
        norm0 = self.osora_norm0[name]
        if config.o_side == "output" and config.decomposition == "base":  # so W0 V_r = U_r S_0
            change = self._norm_change_output(name, detach)
        else:
            a = a.to(b.dtype)
            w0 = self.original_weight().to(b.dtype)
            change = ((2 * w0 @ a.T + b @ (a @ a.T)) * b).sum(dim=1)
        norm = torch.where(norm0 > 0, norm0, 1.0)
        # m / norm first: it is exactly 1 at the start, as is the root of 1 + 0
        relative = (1 + change / norm.square()).clamp_min(0).sqrt()
        scale: Tensor = self.osora_magnitude[name] / norm / relative
        return scale

    def _norm_change_output(self, name: str, detach: bool) -> Tensor:
        """||W0 + B V_r^T||^2 - ||W0||^2 of each row (d_out,), in O(d_out r).

        From W0 V_r = U_r diag(S_0) it is ``2 rowsum((U_r S_0) * B) + rowsum(B * B)``; with
        B = U_r * (O dS^T + dO S_0^T) that is a sum over the columns of U_r * U_r with weights
        S_0 * dS, S_0 * S_0 and dS * dS.
        """
        s, s0, o, d_o = self._vectors(name)
        if detach:
            s, o, d_o = s.detach(), o.detach(), d_o.detach()
        ds = s - s0
        weights = torch.stack((s0 * ds, s0 * s0, ds * ds), dim=1)
        u = self.osora_U[name].to(weights.dtype)
        cross, start, square = (u.square() @ weights).unbind(dim=1)
        change: Tensor = 2 * o * (1 + d_o) * cross + d_o * (2 + d_o) * start + o * o * square
        return change

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What `adapter` adds to the base weight, in the base layer's layout, in its own dtype."""
        a, b = self.lora_factors(adapter)
        delta = b @ a
        if self.osora_config[adapter].use_dora:
            scale = self.dora_scale(adapter, a, b)[:, None]
            delta = (scale - 1) * self.original_weight().to(delta.dtype) + scale * delta
        return delta.T if self.fan_in_fan_out else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the update of the weight has rank r: not with DoRA's scaling."""
        return not self.osora_config[adapter_name].use_dora


class Linear(nn.Module, OsoraLayer):
    """OSoRA on a `torch.nn.Linear` or a transformers `Conv1D`."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        r: int,
        config: OsoraConfig,
        *,
        model_dtype: torch.dtype = torch.float32,
        original: Tensor | None = None,
    ) -> None:
        super().__init__()
        OsoraLayer.__init__(self, base_layer, model_dtype)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, config, original=original)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the base weight (Eq. 7).

        The original weight is kept until `unmerge`, which so restores it bit for bit. The merged
        weight of a quantised layer is quantised anew, once for all adapters, which is said.

        Raises:
            ValueError: With `safe_merge`, if the merged weight would not be finite; nothing of this
                layer is changed then, whichever of several adapters is broken.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.osora_S]
        if not names:
            return
        before = self._stored_weight()
        merged = before
        for name in names:
            delta = self.get_delta_weight(name)
            merged = merged.to(torch.promote_types(merged.dtype, delta.dtype)) + delta
            if safe_merge and not torch.isfinite(merged.to(before.dtype)).all():
                raise ValueError(
                    f"NaN or inf in the merged weight: adapter {name!r} seems to be broken"
                )
        self._put(merged.to(before.dtype), before)
        self.merged_adapters.extend(names)

    def _put(self, merged: Tensor, before: Tensor) -> None:
        """Make `merged` the base layer's weight, and keep the first that it had."""
        base, backend = self.get_base_layer(), self.quantization_backend
        if self._unmerged_weight is None:
            self._unmerged_weight = before
            self._quantised = None if backend is None else Kept.of(base)
        if backend is None:
            base.weight.data = merged
            return
        warnings.warn(
            f"merging an adapter into a {backend.backend_name} layer rounds the merged weight: "
            "outputs differ from those of the adapter beside it",
            stacklevel=3,
        )
        backend.set_base_weight(self, merged)

    def unmerge(self) -> None:
        """Put back the base weight as it was before the first merge."""
        if self._unmerged_weight is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_layer().weight
        if self._quantised is not None:
            self._quantised.put_back(self.get_base_layer())
            self._quantised = self._unmerged_weight = None
            self.merged_adapters.clear()
            return
        # the model may have been moved or cast in between
        weight.data = self._unmerged_weight.to(weight.device, weight.dtype)
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def forward(
        self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Tensor:
        """Base layer plus the active adapters, or one adapter for each row of the batch."""
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
        if not torch.compiler.is_compiling():  # `train` has asked, and this has no graph
            self.verify(name)
        a, b = self._factors(name)
        if not torch.is_autocast_enabled(x.device.type):
            x = self._cast_input_dtype(x, a.dtype)
        hidden = x.reshape(-1, x.shape[-1]) @ a.T
        if hidden.dtype == a.dtype != b.dtype:  # one is frozen, in the base's precision
            hidden = hidden.to(b.dtype)
        # one product that adds to the base's output: nothing of size tokens x d_out is kept
        start = base.reshape(-1, base.shape[-1]).to(hidden.dtype)
        result = torch.addmm(start, hidden, b.T).view(base.shape)
        if not self.osora_config[name].use_dora:
            return result
        scale = self.dora_scale(name, a, b)
        bias = self.get_base_layer().bias
        return scale * result if bias is None else scale * result + (1 - scale) * bias

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

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As torch's, for `to`, `half` and the like; fingerprints stay float32."""
        marks = dict(self.osora_fingerprint.items())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.after_cast(marks)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.load_start(state_dict, prefix)
        self._verified.clear()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """As torch's, for `train` and `eval`; adapters that were loaded are verified."""
        for name in self.osora_fingerprint:
            self.verify(name)
        return super().train(mode)

    def extra_repr(self) -> str:
        """As PEFT's other layers on quantised ones."""
        backend = self.quantization_backend
        return "" if backend is None else f"quantization_backend={backend.backend_name!r}"

    def __repr__(self) -> str:
        return "osora." + super().__repr__()


def _as(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    return values if dtype is None else values.to(dtype)


def _started(values: Tensor, config: OsoraConfig) -> Tensor:
    """S or O at its start; moved at random where the adapter is not to start as nothing."""
    if config.init_weights or values.is_meta:
        return values
    return values * (1 + START_NOISE * torch.randn_like(values))
