"""Training throughput of the harness beside a plain loop, in one process.

    make smollm2
    OSORA_DATA=... python -m benchmarks.training precision=float32

The peer is what the PEFT project compares methods with, written from its description: batches of
like lengths out of a bucket of twenty, the model under autocast, adapters and AdamW in float32,
clipped gradients, a cosine schedule. Both take the same rows of CommonsenseQA, as many optimiser
steps of as many rows, in the same precision. Tokens are counted without padding; the limit are the
products with the frozen weights alone, forward and back to the input.
"""

import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.rows import (
    Row,
    faster_precision,
    in_turns,
    need_data,
    need_smollm2,
    row,
    run,
    seconds,
)
from osora_bench.models import adapters
from osora_bench.pipeline.session import Session
from osora_bench.planning.cell import Cell, cell_of
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.training.collator import Collator
from osora_bench.training.data import TokenisedTask
from osora_bench.training.train import TrainingSetup, train

BUCKET = 20
"""Batches that the peer sorts by length together."""


@dataclass(frozen=True)
class Recipe:
    """How both train."""

    model: str
    method: str
    precision: str
    steps: int
    batch: int
    micro: int

    def cell(self, folder: str) -> Cell:
        """The cell that trains so."""
        overrides = [
            f"model={self.model}", f"model.dtype={self.precision}", f"method={self.method}",
            "task=commonsense", "trainer=commonsense", "device=cpu",
            f"trainer.precision={self.precision}",
            f"trainer.batch_size={self.batch}", f"trainer.micro_batch_size={self.micro}",
            f"trainer.max_steps={self.steps}", "trainer.gradient_checkpointing=false",
            "trainer.checkpoint_minutes=null", f"runs={folder}", f"ledger={folder}/ledger",
        ]  # fmt: skip
        with composer():
            return cell_of(resolve(compose(overrides, self.method), self.method), overrides)


class Benchmark:
    """A base model, rows of tokens, and the two ways to train an adapter on them."""

    def __init__(
        self, recipe: Recipe, cell: Cell, model: Any, rows: list[Any], device: str = "cpu"
    ) -> None:
        self.recipe, self.cell, self.device, self.model = recipe, cell, device, model
        self.rows = rows[: recipe.batch * recipe.steps]
        self.tokens = sum(len(row["input_ids"]) for row in self.rows)

    def rate(self, how: Callable[[Any], None]) -> float:
        """Tokens a second of one run with a fresh adapter."""
        torch.manual_seed(0)
        model = adapters.with_fresh_adapter(self.model, self.cell)
        spent = seconds(lambda: how(model), self.device)
        model.unload()
        return self.tokens / spent

    def ours(self, model: Any) -> None:
        """By the harness."""
        setup = TrainingSetup(
            self.cell.config, rows=TokenisedTask(self.rows, 0), held_out=None, pad_token_id=0,
            checkpoints=self.cell.paths.trainer, device=torch.device(self.device), label="bench",
            log=lambda _: None,
        )  # fmt: skip
        train(model, setup)

    def plain(self, model: Any) -> None:
        """By the peer's loop."""
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.recipe.steps)
        collate = Collator(0)
        per_step = self.recipe.batch // self.recipe.micro
        mixed = self.recipe.precision == "bfloat16"
        model.train()
        for number, rows in enumerate(buckets(self.rows, self.recipe.micro), start=1):
            batch = {name: part.to(self.device) for name, part in collate(rows).items()}
            with torch.autocast(self.device, torch.bfloat16, enabled=mixed):
                loss = model(**batch).loss / per_step
            loss.backward()
            if number % per_step == 0:
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def buckets(rows: list[Any], size: int) -> Iterator[list[Any]]:
    """Batches of neighbours in length, out of `BUCKET` batches at a time."""
    for begin in range(0, len(rows), size * BUCKET):
        part = sorted(rows[begin : begin + size * BUCKET], key=lambda row: len(row["input_ids"]))
        for start in range(0, len(part), size):
            yield part[start : start + size]


def floor(model: nn.Module, dtype: torch.dtype, tokens: int = 512) -> float:
    """Tokens a second if a step were the products with the frozen matrices, there and back."""
    total = 0.0
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for (wide, narrow), count in Counter(tuple(layer.weight.shape) for layer in layers).items():
        weight = torch.randn(wide, narrow, dtype=dtype)
        inputs = torch.randn(tokens, narrow, dtype=dtype)
        times = [seconds(lambda x=inputs, w=weight: (x @ w.T) @ w) for _ in range(5)]
        total += count * statistics.median(times)
    return tokens / total


def rows(
    *,
    model: str = "smollm2-135m",
    method: str = "lora",
    precision: str | None = None,
    steps: int = 2,
    batch: int = 32,
    micro: int = 8,
    pairs: int = 3,
) -> Iterator[Row]:
    """`batch`: rows of an optimiser step; `micro`: of a micro-batch; `precision`: by default that
    in which this processor is faster."""
    need_smollm2()
    need_data("commonsenseqa")
    precision = precision or faster_precision()
    recipe = Recipe(model, method, precision, steps, batch, micro)
    with tempfile.TemporaryDirectory() as folder:
        session, cell = Session(), recipe.cell(folder)
        base = session.workspace.base(cell.config)
        tokens = session.tokenised(cell, base.tokenizer).rows
        bench = Benchmark(recipe, cell, base.model, tokens)
        bench.rate(bench.ours)  # what is done once only
        ours, plain = in_turns(
            lambda: bench.rate(bench.ours), lambda: bench.rate(bench.plain), pairs
        )
        limit = floor(base.model, getattr(torch, precision))
    mine, theirs = statistics.median(ours), statistics.median(plain)
    yield row(
        f"training, {model}, {method}, {precision}: tokens a second, ours / a plain loop",
        [a / b for a, b in zip(ours, plain, strict=True)],
        limit / theirs,
        f"{mine:.0f} / {theirs:.0f} tokens/s",
        at_least=1.3,
    )


if __name__ == "__main__":
    run(rows)
