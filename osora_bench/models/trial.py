"""Made-up texts and their losses, to tell one model, or one way to compute it, from another."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from osora_bench.models.base import inside

TRIAL = [
    [5, 3, 9, 2, 7, 4, 8, 6, 1, 5, 4, 9],
    [5, 3, 9, 2, 7, 4, 8, 1, 9],
    [5, 3, 9, 2, 4, 8, 1],
]
"""Made-up texts, longest first, in tenths of the vocabulary: a prefix that all share, two that go
on alike. Their first tokens are marks, whose activations can be so large that bfloat16 rounds the
rest away."""


def nll(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """-log p of each token by the logits of its place: (tokens,), float32, on the CPU."""
    target = torch.tensor(tokens, device=logits.device, dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits.float(), target, reduction="none").cpu()


def trial_texts(model: Any) -> list[list[int]]:
    """The made-up texts in tokens of the model's vocabulary."""
    size = inside(model).config.get_text_config().vocab_size
    return [[tenths * size // 10 for tenths in text] for text in TRIAL]


def trial_losses(model: Any) -> Tensor:
    """The losses of the made-up texts by the model's own forward pass."""
    return torch.cat([plain_losses(model, text) for text in trial_texts(model)])


def alike(one: Tensor, other: Tensor, model: Any) -> bool:
    """Whether losses are the same but for round-off in the model's type."""
    round_off = 1e-3 if torch.finfo(inside(model).dtype).bits >= 32 else 3e-2
    return bool((one - other).abs().mean() < round_off * other.abs().mean())


@torch.inference_mode()
def plain_losses(model: Any, tokens: Sequence[int]) -> Tensor:
    """-log p of each token but the first by the model's own forward pass: (tokens - 1,)."""
    ids = torch.tensor([list(tokens)], device=next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return nll(logits[-len(tokens) : -1], tokens[1:])  # virtual tokens come first
