"""The harness's training beside a plain loop, as in benchmarks/training.py, at 7B shapes.

Rows of made-up tokens, of 40 to 512 as the real ones are.
"""

import random
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks.cuda import shapes
from benchmarks.rows import Row, in_turns, row, run
from benchmarks.training import Benchmark, Recipe
from osora_bench.planning.cell import cell_of
from osora_bench.planning.compose import compose, composer, resolve


def made_up(count: int, longest: int) -> list[dict[str, Any]]:
    """Rows of random tokens, the loss on all of them."""
    choose = random.Random(0)
    lengths = [choose.randint(longest // 12, longest) for _ in range(count)]
    ids = [[choose.randrange(1, 900) for _ in range(length)] for length in lengths]
    return [{"input_ids": row, "labels": row} for row in ids]


def rows(*, device: str = "cuda", tiny: bool = False, pairs: int = 4) -> Iterator[Row]:
    """`tiny=True device=cpu`: the same code on a CPU, for a test."""
    steps, batch, micro, longest = (1, 4, 2, 24) if tiny else (16, 32, 8, 512)
    for name in shapes.MODELS:
        recipe = Recipe(name, "lora", "bfloat16", steps, batch, micro)
        model = shapes.base_model(name, device, tiny=tiny)
        with tempfile.TemporaryDirectory() as folder:
            overrides = [
                f"model={name}", "task=toy", "trainer=paper", f"device={device}",
                "method=lora", f"trainer.batch_size={batch}", f"trainer.micro_batch_size={micro}",
                f"trainer.max_steps={steps}", "trainer.gradient_checkpointing=false",
                "trainer.checkpoint_minutes=null", f"runs={folder}", f"ledger={folder}/ledger",
            ]  # fmt: skip
            with composer():
                cell = cell_of(resolve(compose(overrides, name), name), overrides)
            bench = Benchmark(recipe, cell, model, made_up(batch * steps, longest), device)
            bench.rate(bench.ours)  # what is done once only
            shapes.forget_peak(device)
            ours, plain = in_turns(
                lambda b=bench: b.rate(b.ours), lambda b=bench: b.rate(b.plain), pairs
            )
        rate = statistics.median(ours)
        share = shapes.share_of_peak(rate * shapes.operations(model), device)
        yield row(
            f"training, {name}, 2 layers, LoRA: tokens a second, ours / a plain loop",
            [a / b for a, b in zip(ours, plain, strict=True)], None,
            f"{rate:,.0f} / {statistics.median(plain):,.0f} tokens/s; {share}"
            f"{shapes.memory(device)}",
            at_least=1.0,
        )  # fmt: skip


if __name__ == "__main__":
    run(rows)
