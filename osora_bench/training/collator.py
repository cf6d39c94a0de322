"""Rows of tokens -> padded batches, shared out into micro-batches."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from osora_bench.models.base import inside
from osora_bench.training.data import IGNORED_LABEL

PIECE = 512
"""Tokens that a CPU needs at once for its products to be fast."""
PIECE_WORK = 2**35
"""Tokens x parameters from which on padding costs a CPU more than one more micro-batch, whose
thousands of operations are dear to a small model."""
FILLED = 0.9
"""Share of a large enough micro-batch's longest row that its shortest has at least."""


class Collator:
    """Pads rows on the right to the longest of the batch.

    Args:
        labelled_only: have the model compute logits where there are labels only (`with_places`).
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
        batch = {
            "input_ids": padded("input_ids", self.pad_token_id),
            "attention_mask": torch.tensor(mask),
            "labels": padded("labels", IGNORED_LABEL),
        }
        return with_places(batch) if self.labelled_only else batch


def with_places(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Have the model compute logits only where one of the rows has a next token to learn: with the
    loss on the answers these are few, and the vocabulary is a model's widest layer."""
    labels = batch["labels"]
    next_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    positions = (next_labels != IGNORED_LABEL).any(dim=0).nonzero()[:, 0]
    if not len(positions):  # rows without a label: a loss of nothing
        positions = torch.zeros(1, dtype=torch.long, device=labels.device)
    shifted = next_labels[:, positions].contiguous()
    return {**batch, "logits_to_keep": positions, "shift_labels": shifted}


def piece(device: torch.device, parameters: int) -> int | None:
    """Tokens from which on a micro-batch may end early for less padding; None: it never does, as on
    a GPU, which is fast with as many as it can hold."""
    return max(PIECE, PIECE_WORK // parameters) if device.type == "cpu" else None


def micro_batches(
    lengths: Sequence[int], most_rows: int, enough: int | None = None
) -> list[list[int]]:
    """An optimiser step's rows shared out by length, longest first, so that little is padding.

    Args:
        lengths: of each row, in tokens.
        most_rows: of one micro-batch.
        enough: tokens from which on one ends early where that saves padding; None: it does not.

    Returns:
        Positions of the rows of each micro-batch.
    """
    found: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rows = found[-1] if found else []
        longest = lengths[rows[0]] if rows else 0
        large = enough is not None and len(rows) * longest >= enough
        if not rows or len(rows) == most_rows or (large and lengths[position] < FILLED * longest):
            found.append([position])
        else:
            rows.append(position)
    return found


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
