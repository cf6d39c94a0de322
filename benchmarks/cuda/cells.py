"""Whole cells on a GPU beside the same cells on the CPU: their losses and scores agree.

A few steps of the toy and, where `make smollm2` was run, of SmolLM2-135M, in float32. A training
carries round-off on, so that losses may part by 1e-3 of their value; an answer may turn where two
logits nearly tie. Adapters start alike: PEFT draws their numbers on the CPU.
"""

import json
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks.rows import ROOT, Row, run
from osora_bench.pipeline.attempt import attempt
from osora_bench.planning.cell import cell_of
from osora_bench.planning.compose import compose, composer, resolve

MODELS = ("toy", "smollm2-135m")
METHODS = ("lora", "osora", "pissa")
QUICK = ["task=toy", "trainer=toy", "model.dtype=float32", "eval.limit=40", "eval.max_out_len=8"]
LOSSES, TURNED = 1e-3, 2
"""By how much losses may differ, of their value, and how many answers may turn."""


def record_of(
    model: str, method: str, device: str, steps: int, folder: str, *more: str
) -> dict[str, Any]:
    """The record of a cell, run here and now; `more` are overrides."""
    overrides = [*QUICK, f"model={model}", f"method={method}", "method.rank=16", f"device={device}",
                 f"trainer.max_steps={steps}", f"runs={folder}",
                 f"ledger={folder}/ledger", *more]  # fmt: skip
    with composer():
        cell = cell_of(resolve(compose(overrides, method), method), overrides)
    if attempt(cell) != "done":
        raise RuntimeError(f"{cell.label} on {device}: {cell.error}")
    return dict(json.loads(cell.record.read_text(encoding="utf-8")))


def compared(name: str, here: dict[str, Any], cpu: dict[str, Any]) -> Row:
    """Two records of a cell."""
    curves = [[loss for _, loss in one["training"]["loss"]] for one in (here, cpu)]
    apart = max(abs(a - b) / b for a, b in zip(*curves, strict=True))
    right = [{k: one["k"] for k, one in record["scores"].items()} for record in (here, cpu)]
    turned = sum(abs(right[0][k] - right[1][k]) for k in right[1])
    spent = [record["measured"]["seconds"]["total"] for record in (here, cpu)]
    return Row(
        f"cell, {name}", (spent[1] / spent[0],) * 3, None,
        f"losses within {LOSSES}, ≤ {TURNED} answers",
        f"{spent[1]:.1f} / {spent[0]:.1f} s; losses within {apart:.1e}, {turned} answers turned",
        apart > LOSSES or turned > TURNED,
    )  # fmt: skip


def rows(*, device: str = "cuda", tiny: bool = False) -> Iterator[Row]:
    """`tiny=True device=cpu`: the same code on a CPU, for a test."""
    for model in MODELS[:1] if tiny else MODELS:
        if model == "smollm2-135m" and not (ROOT / "models" / model).exists():
            yield Row(f"cell, {model}", None, None, "", "left out: make smollm2 makes the model")
            continue
        for method in METHODS[:1] if tiny else METHODS:
            with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
                steps = 2 if tiny or model != "toy" else 20
                cpu = record_of(model, method, "cpu", steps, a)
                here = record_of(model, method, device, steps, b)
            yield compared(
                f"{model}, {method} r=16, {steps} steps: the CPU's time / the card's", here, cpu
            )


if __name__ == "__main__":
    run(rows)
