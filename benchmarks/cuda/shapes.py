"""Random models of two layers in a 7B model's shapes, and what a card could do with them.

Two layers are enough for a step: all layers of a model are alike. With `tiny`, the same code runs
on shapes that a CPU takes in its stride.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from osora_bench.planning.compose import compose, composer, resolve

MODELS = ("mistral-7b-instruct-v0.3", "qwen2-7b")
"""Files of conf/model whose shapes are measured."""
LAYERS = 2
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 1024}  # fmt: skip
PEAKS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "GH200": 989,
    "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A40": 150, "A30": 165, "A10G": 70, "A10": 125,
    "RTX A6000": 155, "RTX 6000 Ada": 364, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
"""10^12 operations a second in bfloat16 without sparsity, from the makers' data sheets; of names
that begin alike the longer comes first."""


def base_model(name: str, device: str, *, tiny: bool) -> Any:
    """A random model of a file's shapes in bfloat16, its weights frozen."""
    with composer():
        told = resolve(compose([f"model={name}", "task=toy", "trainer=toy"], name), name)
    shape = dict(told.model.architecture or {}) | {"num_hidden_layers": LAYERS, "use_cache": True}
    config = AutoConfig.for_model(**(shape | TINY if tiny else shape), pad_token_id=0)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False).eval()


def rank_of(model: Any) -> int:
    """Of OSoRA: hidden / 8, as the paper's 512 is to 4096."""
    return int(model.config.hidden_size) // 8


def operations(model: Any, *, again: bool = False) -> float:
    """Of the products with the frozen weights for a token of a training step: forward and back to
    the input, forward once more under gradient checkpointing."""
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    return 2.0 * weights * (3 if again else 2)


def share_of_peak(speed: float, device: str) -> str:
    """Operations a second as a share of what the card can do, or why that is not known."""
    if device == "cpu":
        return "no card"
    name = torch.cuda.get_device_name()
    for known, peak in PEAKS.items():
        if known in name:
            return f"{speed / peak / 1e12:.0%} of {peak} TFLOP/s"
    return f"{speed / 1e12:.0f} TFLOP/s (the peak of {name} is not in shapes.py)"


def forget_peak(device: str) -> None:
    """Begin to look for the largest memory anew."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory(device: str) -> str:
    """The most memory since then."""
    return "" if device == "cpu" else f"; {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
