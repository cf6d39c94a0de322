"""Whether the decoder computes what a model itself would: by its configuration, and by trying."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from osora_bench.evaluation.decoder import Decoder, nll
from osora_bench.models.base import inside

KINDS = {"full_attention", "sliding_attention"}
TRIAL = [[5, 3, 9, 2, 7, 4, 8, 6, 1, 5, 4, 9], [5, 3, 9, 2, 4, 8, 1]]
"""Made-up texts (a shared prefix, sequences of two lengths), in tenths of the vocabulary, whose
first tokens are marks: their activations can be so large that bfloat16 rounds the rest away."""


def supports(model: Any) -> bool:
    """Whether `Decoder` computes what the model, in evaluation mode, itself would.

    What the configuration tells is asked first: a layer that reaches over its tokens in another
    way, positions whose frequencies depend on how long the longest sequence is, or an adapter of
    virtual tokens or one that looks for a token (aLoRA). Else both ways are tried on two short
    texts.
    """
    base = inside(model)
    config = base.config.get_text_config()
    adapter = getattr(model, "active_peft_config", None)
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = {str(r.get("rope_type")) for r in (rope, *rope.values()) if isinstance(r, dict)}
    return (
        bool(base._can_set_attn_implementation())
        and not config.is_encoder_decoder
        and set(getattr(config, "layer_types", None) or ()) <= KINDS
        and not ropes & {"dynamic", "longrope"}
        and not getattr(adapter, "is_prompt_learning", False)
        and not getattr(adapter, "alora_invocation_tokens", None)
        and "position_ids" in inspect.signature(base.forward).parameters
        and _agrees(model)
    )


@torch.inference_mode()
def _agrees(model: Any) -> bool:
    """Whether the losses of two short texts are those of the model's own forward pass."""
    decoder = Decoder(model, eos_ids=(), pad_id=0, memory=1 << 40, most_rows=len(TRIAL))
    texts = _trial(model)
    losses: dict[int, Tensor] = {}
    try:
        decoder.losses(texts, losses.__setitem__)
        expected = trial_losses(model)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model's code makes of arguments that it does not expect
        return False
    return alike(torch.cat([losses[i] for i in range(len(texts))]), expected, model)


def _trial(model: Any) -> list[list[int]]:
    size = inside(model).config.get_text_config().vocab_size
    return [[tenths * size // 10 for tenths in text] for text in TRIAL]


def trial_losses(model: Any) -> Tensor:
    """The losses of two made-up texts by the model's own forward pass."""
    return torch.cat([plain_losses(model, text) for text in _trial(model)])


def alike(batched: Tensor, plain: Tensor, model: Any) -> bool:
    """Whether losses are the same but for round-off in the model's type."""
    round_off = 1e-3 if torch.finfo(inside(model).dtype).bits >= 32 else 3e-2
    return bool((batched - plain).abs().mean() < round_off * plain.abs().mean())


@torch.inference_mode()
def plain_losses(model: Any, tokens: Sequence[int]) -> Tensor:
    """As `Decoder.losses` of one text, by the model's own forward pass: (tokens - 1,)."""
    ids = torch.tensor([list(tokens)], device=next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return nll(logits[-len(tokens) : -1], tokens[1:])  # virtual tokens come first
