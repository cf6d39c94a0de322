"""What a training costs of what the model knew: the loss on a fixed sample of plain text."""

import math
from typing import Any

import torch

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.models.trial import plain_losses
from osora_bench.planning.config import TaskConfig
from osora_bench.training.rows import read_text

PIECES, LONGEST = 64, 256
"""Pieces of the text that are read, and tokens of one."""


def pieces(task: TaskConfig, tokenizer: Any) -> list[list[int]]:
    """The first pieces of a task's `retained` text in tokens: its paragraphs, which blank lines
    part, cut at `LONGEST` tokens.

    Raises:
        UserError: no such file, text that is not UTF-8, or fewer than two tokens in all.
    """
    assert task.retained is not None
    place = paths.data_file(task.retained)
    if not place.is_file():
        raise UserError(f"task.retained: {place}: no such file")
    chosen: list[list[int]] = []
    for paragraph in read_text(place).split("\n\n"):
        tokens = list(tokenizer(paragraph, add_special_tokens=False)["input_ids"])
        cut = [tokens[i : i + LONGEST] for i in range(0, len(tokens), LONGEST)]
        chosen += [piece for piece in cut if len(piece) > 1]
        if len(chosen) >= PIECES:
            break
    if not chosen:
        raise UserError(f"task.retained: {place}: holds no text")
    return chosen[:PIECES]


def loss(model: Any, texts: list[list[int]]) -> float:
    """Mean -log p (nats) of a token but the first of each piece.

    Raises:
        ArithmeticError: it is no number.
    """
    training = model.training
    model.eval()
    losses = torch.cat([plain_losses(model, text) for text in texts])
    model.train(training)
    mean = float(losses.double().mean())
    if not math.isfinite(mean):
        raise ArithmeticError(f"the loss on task.retained is {mean}")
    return round(mean, 6)
