"""What the paper does not show: which rate was chosen for a method, and whether methods differ.

Layouts, beside those of methods.py and values.py:
    tuning   rows method, columns learning rate, the value is the loss on the held-out rows
    against  rows method: how far the Avg. of `baseline` is from the method's, question by question
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.experiments import TableSpec
from osora_bench.records.record import unpack
from osora_bench.reporting.numbers import CENT
from osora_bench.reporting.rows import Row
from osora_bench.reporting.table import Table

NORMAL_95 = 1.96
"""Standard errors on each side that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Difference:
    """Of two methods' Avg., in points, with its standard error."""

    points: float
    error: float

    @property
    def low(self) -> float:
        return self.points - NORMAL_95 * self.error

    @property
    def high(self) -> float:
        return self.points + NORMAL_95 * self.error

    @property
    def outcome(self) -> str:
        """What the 95 % interval says of the first method."""
        return "wins" if self.low > 0 else "loses" if self.high < 0 else "ties"


def difference(first: Row, second: Row) -> Difference:
    """Avg. of one method less the other's, over the seeds of each.

    Both answered the same questions, so each question's difference is taken first, of its rates of
    right answers over the seeds: what makes a question hard for both falls out. The variance of
    Avg. is that of the questions' differences, and on top that of each method's Avg. between its
    seeds.
    """
    gaps, variances = [], []
    for name in first.datasets:
        gap = _rights(first, name).mean(axis=0) - _rights(second, name).mean(axis=0)
        gaps.append(gap.mean())
        variances.append(gap.var(ddof=1) / gap.size)
    count = len(gaps)
    variance = sum(variances) / count**2 + _between_seeds(first) + _between_seeds(second)
    return Difference(100 * float(np.mean(gaps)), 100 * sqrt(variance))


def _rights(row: Row, dataset: str) -> Any:
    """Right (1) or wrong (0), seeds x questions."""
    scores = [run["scores"][dataset] for run in row.runs]
    return np.array([unpack(s["right"], s["n"]) for s in scores], dtype=float)


def _between_seeds(row: Row) -> float:
    """Variance of the mean over seeds of Avg.; of one seed, none is known."""
    averages = np.mean([_rights(row, name).mean(axis=1) for name in row.datasets], axis=0)
    return float(averages.var(ddof=1) / averages.size) if averages.size > 1 else 0.0


def against(name: str, spec: TableSpec, rows: Sequence[Row]) -> Table:
    """Each method beside `baseline`.

    Raises:
        UserError: a baseline that is not among the methods.
    """
    methods = {row.cell.config.method.name: row for row in rows}
    if spec.baseline not in methods:
        raise UserError(f"table {name}: {unknown('baseline', str(spec.baseline), methods)}")
    baseline = methods[spec.baseline]
    label = baseline.cell.config.method.label
    lines = []
    for method, row in methods.items():
        if method == spec.baseline:
            continue
        cells = ["", "", ""]
        if row.runs and baseline.runs and row.averages() and baseline.averages():
            gap = difference(baseline, row)
            cells = [_signed(gap.points), f"{_signed(gap.low)} to {_signed(gap.high)}"]
            cells.append(f"{label} {gap.outcome}")
        lines.append([row.cell.config.method.label, *cells])
    frame = pd.DataFrame(
        lines, columns=["Method", f"{label} less it", "95 % interval", "so"], dtype=str
    )
    best = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    notes = [
        "Avg. in points, paired by question; the interval holds the spread of the questions' "
        "differences and of each method's seeds."
    ]
    if any(len(row.runs) == 1 and row.cell.config.trains for row in rows):
        notes.append("Of a method with one seed no spread is known: its intervals are too narrow.")
    return Table(name, spec.title, frame, best, notes)


def _signed(points: float) -> str:
    return f"{Decimal(points).quantize(CENT, ROUND_HALF_UP):+}"
