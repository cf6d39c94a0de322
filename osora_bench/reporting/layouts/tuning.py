"""Layout `tuning`: the learning rates that were tried, and their losses."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from osora_bench.planning.experiments import TableSpec
from osora_bench.records.record import held_out_loss
from osora_bench.records.schema import ValidationRecord
from osora_bench.reporting.numbers import NOT_IN_GRID, scientific
from osora_bench.reporting.rows import Row
from osora_bench.reporting.table import Table


def tuning(name: str, spec: TableSpec, rows: Sequence[Row]) -> Table:
    """The loss on held-out rows by method and learning rate; the lowest of a method in bold."""
    by_label: dict[str, dict[float, str]] = {}
    for row in rows:
        config = row.cell.config
        label = f"{config.method.label}, r = {config.method.rank}"
        losses = [validation["loss"] for validation in _validations(row)]
        loss = f"{np.mean(losses):.4f}" if losses else "diverged" if row.runs else ""
        by_label.setdefault(label, {})[config.trainer.learning_rate] = loss
    rates = sorted({rate for by_rate in by_label.values() for rate in by_rate})
    frame = pd.DataFrame(
        [
            [label, *(by_rate.get(rate, NOT_IN_GRID) for rate in rates)]
            for label, by_rate in by_label.items()
        ],
        columns=["Method", *map(scientific, rates)],
    )
    losses_only = frame.iloc[:, 1:].apply(pd.to_numeric, errors="coerce")
    best = losses_only.eq(losses_only.min(axis="columns"), axis="index")
    best.insert(0, "Method", False)
    sizes = {(v["rows"], v["tokens"]) for r in rows for v in _validations(r)}
    notes = [
        f"Mean loss of {tokens} tokens in {count} rows that no run trains on; lowest in bold."
        for count, tokens in sorted(sizes)
    ]
    return Table(name, spec.title, frame, best, notes or ["No run has finished yet."])


def _validations(row: Row) -> list[ValidationRecord]:
    """Of the runs that have a loss: one that diverged has none."""
    return [loss for run in row.runs if (loss := held_out_loss(run)) is not None]
