"""Whether the decoder computes what a model itself would: by its configuration, and by trying."""

import inspect
from typing import Any

import torch
from torch import Tensor

from osora_bench.evaluation.decoder import Decoder
from osora_bench.models.base import inside
from osora_bench.models.trial import alike, trial_losses, trial_texts

KINDS = {"full_attention", "sliding_attention"}


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
    texts = trial_texts(model)
    decoder = Decoder(model, eos_ids=(), pad_id=0, memory=1 << 40, most_rows=len(texts))
    losses: dict[int, Tensor] = {}
    try:
        decoder.losses(texts, losses.__setitem__)
        expected = trial_losses(model)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model's code makes of arguments that it does not expect
        return False
    return alike(torch.cat([losses[i] for i in range(len(texts))]), expected, model)
