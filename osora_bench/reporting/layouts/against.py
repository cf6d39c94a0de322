"""Layout `against`: how far the Avg. of one method is from each other's, question by question."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.experiments import TableSpec
from osora_bench.reporting.numbers import probability, signed
from osora_bench.reporting.rows import Row
from osora_bench.reporting.statistics import ALPHA, difference, holm, p_values
from osora_bench.reporting.table import Table

COLUMNS = ("95 % interval", "p (Holm)", "so")


def against(name: str, spec: TableSpec, rows: Sequence[Row]) -> Table:
    """Each method beside `baseline`; `so` is what the test says at 5 %, after Holm's adjustment.

    Raises:
        UserError: a baseline that is not among the methods.
    """
    baseline = baseline_of("table", name, spec.baseline, rows)
    label = baseline.cell.config.method.label
    others = [row for row in rows if row is not baseline]
    lines = dict(enumerate(_lines(label, baseline, others)))
    heading = f"{label} less it"
    frame = pd.DataFrame(lines.values(), columns=["Method", heading, *COLUMNS], dtype=str)
    best = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    of = dict.fromkeys(frame.columns[1:], others)
    return Table(name, spec.title, frame, best, notes(rows), of=of)


def baseline_of(what: str, name: str, wanted: str | None, rows: Sequence[Row]) -> Row:
    """The row of a table's or figure's baseline; UserError if no row is of it, or several."""
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row.cell.config.method.name, []).append(row)
    if wanted not in methods:
        raise UserError(f"{what} {name}: {unknown('baseline', str(wanted), methods)}")
    if len(methods[wanted]) > 1:
        raise UserError(
            f"{what} {name}: {len(methods[wanted])} rows are of baseline {wanted}: "
            "`select` says which"
        )
    return methods[wanted][0]


def _lines(label: str, baseline: Row, others: Sequence[Row]) -> list[list[str]]:
    own = baseline.answers(baseline.datasets)
    compared = [None if own is None else row.answers(row.datasets) for row in others]
    raw = [p_values([own, a])[0, 1] for a in compared if own is not None and a is not None]
    adjusted = iter(holm(np.array(raw)))
    lines = []
    for row, answers in zip(others, compared, strict=True):
        cells = ["", "", "", ""]
        if own is not None and answers is not None:
            gap, p = difference(own, answers), next(adjusted)
            so = "ties" if p >= ALPHA else "wins" if gap.points > 0 else "loses"
            interval = f"{signed(gap.low)} to {signed(gap.high)}"
            cells = [signed(gap.points), interval, probability(p), f"{label} {so}"]
        lines.append([row.cell.config.method.label, *cells])
    return lines


def notes(rows: Sequence[Row]) -> list[str]:
    """What the intervals and tests hold, and what they cannot."""
    lines = [
        "Avg. in points, paired by question; intervals hold the spread of the questions and of the "
        "seeds (Student's t), and are of one comparison each: p is adjusted for all of the table."
    ]
    trained = [row for row in rows if row.cell.config.trains and row.runs]
    if single := [row.cell.config.method.label for row in trained if len(row.runs) == 1]:
        lines.append(
            f"Of one seed ({', '.join(dict.fromkeys(single))}) no spread between seeds is known: "
            "such intervals and tests are of these adapters alone, not of the methods."
        )
    return lines
