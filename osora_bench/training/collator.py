"""Rows of tokens -> padded batches."""

import inspect
from typing import Any

import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from osora_bench.models.base import inside
from osora_bench.training.data import IGNORED_LABEL


class Collator:
    """Pads rows on the right to the longest of the batch.

    Args:
        labelled_only: have the model compute logits only where one of the rows has a label. With
            the loss on the answers these are few, and the vocabulary is a model's widest layer.
    """

    def __init__(self, pad_token_id: int, labelled_only: bool = False) -> None:
        self.pad_token_id = pad_token_id
        self.labelled_only = labelled_only

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Stack rows into int64 tensors of shape (batch, longest row)."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, value: int) -> torch.Tensor:
            return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

        mask = [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows]
        labels = padded("labels", IGNORED_LABEL)
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "attention_mask": torch.tensor(mask),
            "labels": labels,
            **(_places(labels) if self.labelled_only else {}),
        }


def _places(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Where in (batch, length) any row has a next token to learn, and these: (batch, places)."""
    next_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    positions = (next_labels != IGNORED_LABEL).any(dim=0).nonzero()[:, 0]
    if not len(positions):  # rows without a label: a loss of nothing
        positions = torch.zeros(1, dtype=torch.long)
    return {"logits_to_keep": positions, "shift_labels": next_labels[:, positions].contiguous()}


def takes_places(model: Any) -> bool:
    """Whether a model computes the loss of some places only: transformers' own loss for causal
    language models, and no virtual tokens that move the places."""
    base = inside(model)
    adapter = getattr(model, "active_peft_config", None)
    return (
        "logits_to_keep" in inspect.signature(base.forward).parameters
        and base.loss_function is ForCausalLMLoss
        and not getattr(adapter, "is_prompt_learning", False)
    )
