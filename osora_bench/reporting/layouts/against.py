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
    notes = [*_notes(baseline, others), *of_one_seed(rows)]
    return Table(name, spec.title, frame, best, notes)


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


def _notes(baseline: Row, others: Sequence[Row]) -> list[str]:
    """What the intervals and tests hold, and which test each pair had."""
    own = baseline.answers(baseline.datasets)
    tested = [
        (row.cell.config.method.label, own.single and answers.single)
        for row in others
        if own is not None and (answers := row.answers(row.datasets)) is not None
    ]
    family = (
        f"for the table's {len(tested)} comparisons; a ranking's is for all pairs, and may leave "
        "open what is told apart here"
        if len(tested) > 1
        else "for one comparison"
    )
    return [
        "Avg. in points, paired by question. Intervals hold the spread of the questions and, where "
        "several ran, of the seeds, and are of one comparison each; p is adjusted (Holm) "
        f"{family}.",
        *which_test([label for label, exact in tested if exact], [n for n, e in tested if not e]),
    ]


def which_test(exact: Sequence[str], others: Sequence[str]) -> list[str]:
    """Names the test of what is compared, each where they differ."""
    kinds = [
        ("McNemar's exact test (one seed each, one set)", exact),
        ("Student's t of the paired difference (normal where seeds show no spread)", others),
    ]
    used = [(kind, dict.fromkeys(names)) for kind, names in kinds if names]
    if len(used) < 2:
        return [f"Test: {kind}." for kind, _ in used]
    told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in used)
    return [f"Tests: {told}."]


def of_one_seed(rows: Sequence[Row]) -> list[str]:
    """What intervals and tests cannot hold."""
    trained = [row for row in rows if row.cell.config.trains and row.runs]
    single = [row.cell.config.method.label for row in trained if len(row.runs) == 1]
    if not single:
        return []
    return [
        f"Of one seed ({', '.join(dict.fromkeys(single))}) no spread between seeds is known: "
        "such intervals and tests are of these adapters alone, not of the methods."
    ]
