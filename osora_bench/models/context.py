"""How many tokens a model reads at most, by its configuration."""

import sys
from typing import Any

from transformers import AutoConfig

from osora_bench.common.errors import UserError
from osora_bench.planning.blank import location
from osora_bench.planning.config import ModelConfig

NAMES = (
    "max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len",
    "max_sequence_length", "seq_length", "n_ctx",
)  # fmt: skip
"""What transformers' configurations call it. In Falcon and the like one name stands for another."""
WITHOUT_END = ("bloom", "mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "rwkv", "xlstm")
"""Model types that read on: their state, or ALiBi's bias, is made for each next token alike."""
UNBOUNDED = sys.maxsize
"""The context of such a model."""


def context_of(config: Any, name: str) -> int:
    """Tokens of the longest text that a model reads; UNBOUNDED where it has no end.

    Args:
        config: of transformers; that of the text part counts in a model of text and images.
        name: of the model, for the message.

    Raises:
        UserError: the configuration does not say.
    """
    text = config.get_text_config()
    found = [value for key in NAMES if (value := getattr(text, key, None)) is not None]
    if found:
        return int(found[0])
    if text.model_type in WITHOUT_END:
        return UNBOUNDED
    raise UserError(
        f"model {name}: the configuration of {text.model_type} does not say how many tokens it "
        f"reads (none of {', '.join(NAMES)}); `max_position_embeddings` in its config.json would"
    )


def check_context(model: ModelConfig) -> None:
    """Raise UserError if a model's config.json does not say how many tokens it reads."""
    options = {"revision": model.revision, "local_files_only": True}
    context_of(AutoConfig.from_pretrained(location(model), **options), model.name)
