"""Whether the decoder computes what a model itself would: by its configuration, and by trying."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from osora_bench.evaluation.batched_model import BatchedModel
from osora_bench.evaluation.scorer import Scorer
from osora_bench.evaluation.shared_prefix import KVCache
from osora_bench.models.base import inside
from osora_bench.models.trial import alike, nll, plain_losses, trial_texts

KINDS = {"full_attention", "sliding_attention"}


def supports(model: Any) -> bool:
    """Whether `Decoder` computes what the model, in evaluation mode, itself would.

    What the configuration tells is asked first: a layer that reaches over its tokens in another
    way, positions whose frequencies depend on how long the longest sequence is, or an adapter of
    virtual tokens or one that looks for a token (aLoRA). Else both ways are tried on three
    short texts.
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
    """Whether the losses of short texts are those of the model's own forward pass, both where they
    are scored and where they are read to be continued."""
    scorer = Scorer(model, pad_id=0, memory=1 << 40, most_rows=1 << 10)
    texts = trial_texts(model)
    losses: dict[int, Tensor] = {}
    try:
        scorer.losses(texts, losses.__setitem__)
        read, shared = _losses_as_read(scorer, texts)
        expected = [plain_losses(model, text) for text in texts]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model's code makes of arguments that it does not expect
        return False
    behind = torch.cat([of_one[shared:] for of_one in expected])
    scored = torch.cat([losses[i] for i in range(len(texts))])
    return alike(scored, torch.cat(expected), model) and alike(read, behind, model)


def _losses_as_read(model: BatchedModel, texts: Sequence[list[int]]) -> tuple[Tensor, int]:
    """Of each text, longest first, the losses of all tokens but one behind what they begin with, by
    the logits that `Decoder` would continue it with; and how many tokens that is."""
    with model._exchanged_attention():
        prefix, shared, _ = model._prefix(texts)
        rest = [text[shared:] for text in texts]
        cache = KVCache(prefix, model.device)
        cache.change([], [len(tokens) for tokens in rest])
        logits = [row for piece in model._read(rest, cache, keep=0) for row in piece]
    pairs = zip(logits, rest, strict=True)
    return torch.cat([nll(row[-len(r) : -1], r[1:]) for row, r in pairs]), shared
