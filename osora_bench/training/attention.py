"""Attention that a CPU trains fast with, among transformers' attention functions.

torch's fused attention has a backward pass on a CPU that is slow for short sequences: on tokens of
bfloat16 it takes 3 to 13 times as long as the three plain products, up to 1.5 times in float32
(benchmarks/training.py). Here all query heads that share keys are rows of one product. The scores
of all pairs of tokens are kept for the backward pass, so that long sequences stay with the fused
one, as does a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from osora_bench.models.base import inside
from osora_bench.models.trial import alike, trial_losses

GROUPED = "osora_bench_grouped"
"""The name of `grouped_attention` among transformers' attention functions."""
LONGEST = {torch.bfloat16: 512, torch.float32: 256}
"""Tokens up to which it is faster than torch's fused attention, by type; of others: never."""
CHANGES_SCORES = ("softcap", "s_aux", "position_bias", "head_mask")
"""What some models hand to their attention that this one does not know."""


def grouped_attention(  # noqa: PLR0917 (transformers' own order)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """softmax(Q K^T / sqrt(d) + mask) V, rounded to the type of Q after each step.

    Args:
        query: (batch, heads, tokens, head size); of `key` and `value`, groups of heads share one.
        attention_mask: (batch or 1, 1, tokens, keys), added to the scores.

    Returns:
        (batch, tokens, heads, head size), and no weights.

    Raises:
        NotImplementedError: the model's attention is of another kind.
    """
    if unknown := [name for name in CHANGES_SCORES if others.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    tokens, keys = query.shape[2], key.shape[2]
    if attention_mask is not None:
        attention_mask = _of_type(attention_mask, query.dtype)
    if attention_mask is None or keys > LONGEST.get(query.dtype, 0):
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return result
    batch, heads, _, size = query.shape
    groups = batch * key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    rows = (query * scale).reshape(groups, -1, size)
    scores = torch.bmm(rows, key.reshape(groups, keys, size).transpose(1, 2))
    scores = scores.view(batch, heads, tokens, keys) + attention_mask
    weights = nn.functional.dropout(scores.softmax(dim=-1), dropout, module.training)
    mixed = torch.bmm(weights.view(groups, -1, keys), value.reshape(groups, keys, -1))
    return mixed.view(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


def _of_type(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added, in another type; its least number stays a number."""
    return mask if mask.dtype == dtype else mask.clamp_min(torch.finfo(dtype).min).to(dtype)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)


@contextmanager
def trained_with(model: Any, attention: str, *, on_cpu: bool) -> Iterator[None]:
    """Exchange a model's attention for as long as it is trained.

    Args:
        attention: a name that transformers knows; `auto`: the model's own, or on a CPU
            `grouped_attention` where the model would take torch's fused one and computes the same.
        on_cpu: a CPU trains it, and has all of its weights.
    """
    base = inside(model)
    own = base.config.get_text_config()._attn_implementation
    if attention == "auto":
        attention = GROUPED if on_cpu and _takes_grouped(model) else own
    base.set_attn_implementation(attention)
    try:
        yield
    finally:
        base.set_attn_implementation(own)


_TAKES: WeakKeyDictionary[Any, dict[tuple[str, ...], bool]] = WeakKeyDictionary()
"""What `_takes_grouped` found of a base model, by its attention and the kinds of its adapters."""


def _takes_grouped(model: Any) -> bool:
    """Whether a model computes the same with `grouped_attention`; tried once for a base model and
    a kind of adapter, since seeds, ranks and rates change no attention."""
    base = inside(model)
    known = _TAKES.setdefault(base, {})
    kinds = sorted(str(c.peft_type) for c in getattr(model, "peft_config", {}).values())
    key = (base.config.get_text_config()._attn_implementation, *kinds)
    if key not in known:
        known[key] = _losses_stay(model)
    return known[key]


def _losses_stay(model: Any) -> bool:
    """Whether the losses of short texts stay the same."""
    base, training = inside(model), model.training
    own = base.config.get_text_config()._attn_implementation
    if own != "sdpa" or not base._can_set_attn_implementation():
        return False
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):  # whatever follows draws what it would have drawn
            expected = trial_losses(model)
            base.set_attn_implementation(GROUPED)
            return alike(trial_losses(model), expected, model)
    except NotImplementedError:
        return False
    finally:
        base.set_attn_implementation(own)
        model.train(training)
