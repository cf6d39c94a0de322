"""Embeddings that were saved with an adapter, perhaps with more words than the base model has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

PREFIX = "base_model.model."
"""Of a base model's tensor in a file of PEFT's."""
WORDS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out")
"""What transformers' models call the layers with a row for each word."""
FILE = "adapter_model.safetensors"


def saved_words(folder: Path) -> int:
    """The most words that embeddings in an adapter's folder have; 0 where none were saved."""
    if not (folder / FILE).is_file():
        return 0
    with safe_open(folder / FILE, "pt") as file:
        names = [n for n in file.keys() if _is_embedding(n)]  # noqa: SIM118 (no mapping)
        return max((int(file.get_slice(n).get_shape()[0]) for n in names), default=0)


def _is_embedding(name: str) -> bool:
    parts = [part for part in name.split(".") if part != "base_layer"]
    return parts[-1] == "weight" and len(parts) > 1 and parts[-2] in WORDS


def saved_names(model: Any, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.nn.Module]:
    """The names of a saved adapter's tensors that are a transformers model's own embeddings or
    output layer, with the layer of each."""
    layers = {id(x) for x in (model.get_input_embeddings(), model.get_output_embeddings())}
    found = {}
    for name, module in model.named_modules():
        for inner in ("", ".base_layer"):
            key = f"{PREFIX}{name}{inner}.weight"
            if id(module) in layers and key in stored:
                found[key] = module
    return found


def make_room(model: Any, stored: Mapping[str, torch.Tensor]) -> None:
    """Give a base model as many words as the embeddings that were saved with an adapter have, as
    PEFT's AutoPeftModel does by the tokenizer beside it.

    Raises:
        ValueError: one of embeddings and output layer is missing and not tied to the other: its new
            rows would hold random numbers.
    """
    found = saved_names(model, stored)
    own = model.get_input_embeddings().weight.shape[0]
    rows = {stored[key].shape[0] for key in found} - {own}
    if not rows:
        return
    layers = {id(x) for x in (model.get_input_embeddings(), model.get_output_embeddings())}
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    if len(rows) > 1 or (not tied and {id(m) for m in found.values()} != layers):
        raise ValueError(
            f"its embeddings have {max(rows)} words, the model {own}, and embeddings and output "
            "layer were not both saved with them"
        )
    model.resize_token_embeddings(rows.pop(), mean_resizing=False)
