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
from osora_bench.records.record import unpack

MODELS = {
    "toy": ["trainer.max_steps=20", "eval.limit=40"],
    "smollm2-135m": ["trainer.max_steps=2", "trainer.batch_size=8", "trainer.micro_batch_size=8",
                     "eval.limit=10"],
}  # fmt: skip
"""Cells that one thread runs in seconds, so that the whole stays below nine minutes."""
METHODS = ("lora", "osora", "pissa")
QUICK = ["task=toy", "trainer=toy", "model.dtype=float32", "method.rank=16", "eval.max_out_len=8"]
LOSSES, TURNED = 1e-3, 2
"""By how much losses may differ, of their value, and how many answers may turn."""


def record_of(model: str, method: str, device: str, folder: str, *more: str) -> dict[str, Any]:
    """The record of a cell, run here and now; `more` are overrides."""
    overrides = [*QUICK, *MODELS[model], f"model={model}", f"method={method}", f"device={device}",
                 f"runs={folder}", f"ledger={folder}/ledger", *more]  # fmt: skip
    with composer():
        cell = cell_of(resolve(compose(overrides, method), method), overrides)
    if attempt(cell) != "done":
        raise RuntimeError(f"{cell.label} on {device}: {cell.error}")
    return dict(json.loads(cell.record.read_text(encoding="utf-8")))


def verdicts(score: dict[str, Any]) -> list[bool]:
    """Which questions of a set were answered right."""
    return unpack(score["right"], score["n"])


def compared(name: str, here: dict[str, Any], cpu: dict[str, Any]) -> Row:
    """Two records of a cell."""
    curves = [[loss for _, loss in one["training"]["loss"]] for one in (here, cpu)]
    apart = max(abs(a - b) / b for a, b in zip(*curves, strict=True))
    turned = sum(
        a != b
        for name, one in cpu["scores"].items()
        for a, b in zip(verdicts(one), verdicts(here["scores"][name]), strict=True)
    )
    spent = [record["measured"]["seconds"]["total"] for record in (here, cpu)]
    return Row(
        f"cell, {name}", (spent[1] / spent[0],) * 3, None,
        f"losses within {LOSSES}, ≤ {TURNED} answers",
        f"{spent[1]:.1f} / {spent[0]:.1f} s; losses within {apart:.1e}, {turned} answers turned",
        apart > LOSSES or turned > TURNED,
    )  # fmt: skip


def rows(*, device: str = "cuda", tiny: bool = False) -> Iterator[Row]:
    """`tiny=True device=cpu`: the same code on a CPU, for a test."""
    for model in ("toy",) if tiny else MODELS:
        if model == "smollm2-135m" and not (ROOT / "models" / model).exists():
            yield Row(f"cell, {model}", None, None, "", "left out: make smollm2 makes the model")
            continue
        for method in METHODS[:1] if tiny else METHODS:
            with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
                cpu = record_of(model, method, "cpu", a)
                here = record_of(model, method, device, b)
            yield compared(f"{model}, {method} r=16: the CPU's time / the card's", here, cpu)


if __name__ == "__main__":
    run(rows)
