"""Training throughput of the harness beside a plain loop, in one process.

    make smollm2
    OSORA_DATA=... python benchmarks/training.py

The peer is what the PEFT project compares methods with, written from its description: batches of
like lengths out of a bucket of twenty, the model under autocast, adapters and AdamW in float32,
clipped gradients, a cosine schedule. Both take the same rows of CommonsenseQA, as many optimiser
steps of as many rows, in the same precision. Runs alternate (A B B A); printed are medians of the
ratios with the quartiles, tokens without padding a second of processor time, and the floor: the
products with the frozen weights alone, forward and back to the input.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from osora_bench.models import adapters
from osora_bench.models.base import Base
from osora_bench.pipeline.session import Session
from osora_bench.planning.cell import Cell, cell_of
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.training.collator import Collator
from osora_bench.training.data import TokenisedTask
from osora_bench.training.train import TrainingSetup, train

BUCKET = 20
"""Batches that the peer sorts by length together."""


def cell(method: str, args: argparse.Namespace, folder: str) -> Cell:
    overrides = [
        f"model={args.model}", f"model.dtype={args.precision}", f"method={method}",
        "task=commonsense", "trainer=commonsense", "device=cpu",
        f"trainer.precision={args.precision}",
        f"trainer.batch_size={args.batch}", f"trainer.micro_batch_size={args.micro}",
        f"trainer.max_steps={args.steps}", "trainer.gradient_checkpointing=false",
        "trainer.checkpoint_minutes=null", f"runs={folder}", f"ledger={folder}/ledger",
    ]  # fmt: skip
    with composer():
        return cell_of(resolve(compose(overrides, method), method), overrides)


class Benchmark:
    """A base model, its rows, and the two ways to train an adapter on it."""

    def __init__(self, chosen: Cell, args: argparse.Namespace) -> None:
        self.cell, self.args, self.session = chosen, args, Session()
        self.base: Base = self.session.workspace.base(chosen.config)
        needed = args.batch * args.steps
        self.rows = self.session.tokenised(chosen, self.base.tokenizer).rows[:needed]
        self.tokens = sum(len(row["input_ids"]) for row in self.rows)

    def rate(self, run: Any) -> float:
        """Tokens a second of processor time of one run with a fresh adapter."""
        torch.manual_seed(0)
        self.base = self.session.workspace.base(self.cell.config)
        model = adapters.with_fresh_adapter(self.base.model, self.cell)
        start = time.process_time()
        run(model)
        seconds = time.process_time() - start
        self.session.workspace.release(model)
        return self.tokens / seconds

    def ours(self, model: nn.Module) -> None:
        setup = TrainingSetup(
            self.cell.config, rows=TokenisedTask(self.rows, 0), held_out=None,
            pad_token_id=self.base.tokenizer.pad_token_id, checkpoints=self.cell.paths.trainer,
            device=torch.device("cpu"), label="bench", log=lambda _: None,
        )  # fmt: skip
        train(model, setup)

    def plain(self, model: nn.Module) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.args.steps)
        collate = Collator(self.base.tokenizer.pad_token_id)
        per_step = self.args.batch // self.args.micro
        model.train()
        for number, rows in enumerate(buckets(self.rows, self.args.micro), start=1):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.args.precision == "bfloat16"):
                loss = model(**collate(rows)).loss / per_step
            loss.backward()
            if number % per_step == 0:
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def buckets(rows: list[Any], size: int) -> Any:
    """Batches of neighbours in length, out of `BUCKET` batches at a time."""
    for begin in range(0, len(rows), size * BUCKET):
        part = sorted(rows[begin : begin + size * BUCKET], key=lambda row: len(row["input_ids"]))
        for start in range(0, len(part), size):
            yield part[start : start + size]


def floor(model: nn.Module, dtype: torch.dtype, tokens: int = 512) -> float:
    """Tokens a second if a step were the products with the frozen matrices, there and back."""
    seconds = 0.0
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    shapes: dict[tuple[int, int], int] = {}
    for layer in layers:
        shape = (layer.weight.shape[0], layer.weight.shape[1])
        shapes[shape] = shapes.get(shape, 0) + 1
    for (wide, narrow), count in shapes.items():
        weight = torch.randn(wide, narrow, dtype=dtype)
        inputs = torch.randn(tokens, narrow, dtype=dtype)
        times = []
        for _ in range(5):
            start = time.process_time()
            (inputs @ weight.T) @ weight
            times.append(time.process_time() - start)
        seconds += count * statistics.median(times)
    return tokens / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="a file of conf/model")
    parser.add_argument("--method", default="lora", help="a file of conf/method")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="rows of an optimiser step")
    parser.add_argument("--micro", type=int, default=8, help="rows of a micro-batch")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--ours-only", action="store_true", help="to compare two commits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Benchmark(cell(args.method, args, folder), args)
        bench.rate(bench.ours)  # what is done once only
        if args.ours_only:
            rates = [bench.rate(bench.ours) for _ in range(2 * args.pairs)]
            print(f"{statistics.median(rates):.0f} tokens/s  {[round(r) for r in rates]}")
            return
        report(bench, args)


def report(bench: Benchmark, args: argparse.Namespace) -> None:
    ours, plain = [], []
    for _ in range(args.pairs):
        ours.append(bench.rate(bench.ours))
        plain += [bench.rate(bench.plain), bench.rate(bench.plain)]
        ours.append(bench.rate(bench.ours))
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    limit = floor(bench.base.model, getattr(torch, args.precision))
    print(f"| training, {args.model}, {args.method}, {args.precision} | {middle:.2f} "
          f"({low:.2f} to {high:.2f}) | {limit / statistics.median(plain):.2f} | "
          f"{statistics.median(ours):.0f} / {statistics.median(plain):.0f} tokens/s |")  # fmt: skip


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[1])
    main()
