"""Layout `ranking`: where each method stands, and between which ranks it may."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from osora_bench.planning.experiments import TableSpec
from osora_bench.reporting.layouts.against import baseline_of, notes
from osora_bench.reporting.numbers import shown_points
from osora_bench.reporting.rows import Row
from osora_bench.reporting.statistics import ALPHA, Answers, adjusted_pairs, improvement, mean
from osora_bench.reporting.table import Table

COLUMNS = ("Method", "r", "Seeds", "Avg.", "95 % interval", "Rank")


def ranking(name: str, spec: TableSpec, rows: Sequence[Row]) -> Table:
    """A row a method, the highest Avg. first: mean over seeds, interval, the ranks it may have, and
    with a `baseline` the probability that a run of it scores higher than one of that.

    Raises:
        UserError: a baseline that is not among the methods.
    """
    baseline = (
        baseline_of("table", name, spec.baseline, rows) if spec.baseline is not None else None
    )
    compared = [(row, a) for row in rows if (a := row.answers(row.datasets)) is not None]
    compared.sort(key=lambda entry: -entry[1].averages.mean())
    ranks = possible_ranks([answers for _, answers in compared])
    own = baseline.answers(baseline.datasets) if baseline is not None else None
    lines = [
        [*_line(row, answers), _span(*span), *_better(baseline, own, row, answers)]
        for (row, answers), span in zip(compared, ranks, strict=True)
    ]
    blank = [row for row in rows if row.answers(row.datasets) is None]
    lines += [[*_names(row), *[""] * (len(COLUMNS) - 2), *_better(baseline)] for row in blank]
    headings = list(COLUMNS)
    if baseline is not None:
        headings.append(f"P(above {baseline.cell.config.method.label})")
    frame = pd.DataFrame(lines, columns=headings, dtype=str)
    best = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    best.loc[[i for i, (low, _) in enumerate(ranks) if low == 1], "Avg."] = True
    below = [*_rules(baseline is not None), *notes(rows)]
    in_order = [*(row for row, _ in compared), *blank]
    of = dict.fromkeys(headings[3:], in_order)
    return Table(name, spec.title, frame, best, below, of=of)


def possible_ranks(methods: Sequence[Answers]) -> list[tuple[int, int]]:
    """The lowest and highest rank of each: one more than the methods that are significantly better,
    and as many as are not significantly worse (all pairs, Holm)."""
    averages = np.array([one.averages.mean() for one in methods])
    differs = adjusted_pairs(methods) < ALPHA
    above: Any = averages[None, :] > averages[:, None]
    better = (differs & above).sum(axis=1)
    worse = (differs & above.T).sum(axis=1)
    return [(1 + int(b), len(methods) - int(w)) for b, w in zip(better, worse, strict=True)]


def _line(row: Row, answers: Answers) -> list[str]:
    estimate = mean(answers)
    interval = (
        f"{shown_points(max(0.0, estimate.low))} to {shown_points(min(100.0, estimate.high))}"
    )
    return [*_names(row), str(answers.seeds), shown_points(estimate.points), interval]


def _names(row: Row) -> list[str]:
    return [row.cell.config.method.label, str(row.cell.config.method.rank or "")]


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _better(
    baseline: Row | None, own: Answers | None = None, row: Row | None = None, *answers: Answers
) -> list[str]:
    """The column of a baseline, if there is one."""
    if baseline is None:
        return []
    if own is None or row is baseline or not answers:
        return [""]
    return [f"{improvement(answers[0], own):.2f}"]


def _rules(baseline: bool) -> list[str]:
    lines = [
        "Rank: from one more than the methods that are significantly better to as many as are not "
        "significantly worse (paired tests of all pairs, Holm, 5 %); in bold who is beaten by none."
    ]
    if baseline:
        lines.append("P: of pairs of runs, the share in which it scores higher (ties half).")
    return lines
