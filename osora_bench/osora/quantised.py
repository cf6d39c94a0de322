"""Base layers of bitsandbytes, 4 and 8 bits: which they are, and their weight as it was."""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .older_peft import BEFORE_20, needs

INSTALL = 'pip install "osora-bench[quantised]"'
MISSING = f"bitsandbytes is not installed: {INSTALL}"
MERGEABLE = ("bnb 4bit", "bnb 8bit")
"""Names of PEFT's backends whose layers OSoRA works on."""


def backend_of(base: nn.Module) -> Any:
    """PEFT's backend for a quantised layer; None for one that is not, and before PEFT 0.20."""
    if BEFORE_20:
        return None
    from peft.utils.quantization_utils import resolve_quantization_backend

    return resolve_quantization_backend(base, get_apply_tensor_subclass=lambda: None)


def kind_of(base: nn.Module) -> str:
    """The class of a layer, as errors name it."""
    return f"{type(base).__module__}.{type(base).__name__}"


def precision_of(base: Any) -> str | None:
    """How the weight of a layer is quantised ("nf4", "fp4", "int8"); None where it is not."""
    backend = backend_of(base)
    if backend is None:
        return None
    if is_4bit(backend):
        return str(base.weight.quant_type)
    return "int8" if backend.backend_name == "bnb 8bit" else str(backend.backend_name)


def problem_of(base: Any, backend: Any) -> str | None:
    """Why OSoRA cannot work on a layer that is quantised; None where it can."""
    if BEFORE_20:
        return f"is a quantised layer ({kind_of(base)}): {needs('that as a base', '0.20')}"
    if backend is None or backend.backend_name not in MERGEABLE:
        return (
            f"is a quantised layer ({kind_of(base)}); OSoRA works on those of bitsandbytes "
            "(Linear4bit, Linear8bitLt), float32 and 16 bits"
        )
    if not is_4bit(backend) and base.state.has_fp16_weights:
        return (
            f"({kind_of(base)}) keeps its weight in 16 bits (has_fp16_weights=True); OSoRA works "
            "on has_fp16_weights=False, as transformers' load_in_8bit=True makes it"
        )
    if not _is_quantised(base, backend):
        return f"({kind_of(base)}) is not quantised yet: move the model to its device first"
    return None


def _is_quantised(base: Any, backend: Any) -> bool:
    """Whether a layer has its scales. The type of the numbers does not tell: four bits may be
    stored as any (`bnb_4bit_quant_storage`, FSDP's way)."""
    holders = [base.weight, getattr(base, "state", None), base]
    name = "quant_state" if is_4bit(backend) else "SCB"
    return any(getattr(holder, name, None) is not None for holder in holders)


def number_dtype(base: Any, backend: Any, model: torch.dtype) -> torch.dtype:
    """What the weight of a layer is as numbers. An 8-bit one does not know what it was made of:
    that is the rest of the `model`."""
    if backend is None:
        dtype: torch.dtype = base.weight.dtype
        return dtype
    return cast(torch.dtype, base.weight.quant_state.dtype) if is_4bit(backend) else model


def is_4bit(backend: Any) -> bool:
    """Whether a backend is that of bitsandbytes' 4-bit layers."""
    return bool(backend.backend_name == MERGEABLE[0])


def weight_of(base: Any, backend: Any) -> Tensor:
    """The weight (d_out, d_in) of a quantised layer as numbers.

    On processors with AVX512-BF16 bitsandbytes lays a 4-bit weight out anew, its scales rounded to
    bfloat16, at the first pass without gradients; that layout has to be turned back.
    """
    state = getattr(base.weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse, dequantize_4bit

        data, turned = _convert_weight_packed_for_cpu_inverse(base.weight.data, copy(state))
        return cast(Tensor, dequantize_4bit(data, turned))
    return cast(Tensor, backend.get_base_weight(base))


class Kept(NamedTuple):
    """A base layer's quantised weight, to be put back."""

    weight: nn.Parameter
    state: dict[str, Any] | None  # of an 8-bit layer: its numbers and scales

    @classmethod
    def of(cls, base: Any) -> Kept:
        """What `base` has now."""
        state = getattr(base, "state", None)
        return cls(base.weight, None if state is None else {n: getattr(state, n) for n in STATE})

    def put_back(self, base: Any) -> None:
        """Restore it, byte for byte; on the device where the layer is now."""
        device = base.weight.device
        base.weight = self.weight if self.weight.device == device else self.weight.to(device)
        for name, value in (self.state or {}).items():
            setattr(base.state, name, value.to(device) if isinstance(value, Tensor) else value)


STATE = ("CB", "SCB")


def weight_shape(base: Any) -> torch.Size:
    """Shape of a layer's weight as it is stored, or (d_out, d_in) where that is packed."""
    if backend_of(base) is None:
        shape: torch.Size = base.weight.shape
        return shape
    return torch.Size((base.out_features, base.in_features))
