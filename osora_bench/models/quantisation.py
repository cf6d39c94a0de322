"""A base model whose linear layers bitsandbytes keeps in 4 or 8 bits (`model.quantization`)."""

from importlib.util import find_spec
from typing import Any

import torch

from osora_bench.common.errors import UserError
from osora_bench.planning.config import ModelConfig

LAYOUT_SWITCH = "support_avx512bf16_for_cpu"


def check_library(model: ModelConfig) -> None:
    """Raise UserError if a model is to be quantised and bitsandbytes is not installed."""
    if model.quantization is not None and find_spec("bitsandbytes") is None:
        from osora_bench.osora.quantised import INSTALL

        raise UserError(
            f"model.quantization={model.quantization} needs bitsandbytes, which is not installed: "
            f"{INSTALL}"
        )


def loading_options(model: ModelConfig, dtype: str, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is given beside the place, so that it quantises as it reads.

    As QLoRA has it (arXiv 2305.14314), but for its second quantisation of the scales, which saves
    0.4 bits a weight: products in the model's precision, on weights turned back into numbers.
    """
    if model.quantization is None:
        return {}
    check_library(model)
    from transformers import BitsAndBytesConfig

    if model.quantization == "int8":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=model.quantization,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    return {"quantization_config": settings, "device_map": {"": device}}


def keep_layout(model: torch.nn.Module) -> None:
    """Have 4-bit weights stay as they were read. Some processors lay them out anew, their scales
    rounded, at the first pass without gradients: what a cell computes would depend on what ran
    before it."""
    for module in model.modules():
        if hasattr(module, LAYOUT_SWITCH):
            setattr(module, LAYOUT_SWITCH, False)
