"""Layout `ranking`: where each method stands, and between which ranks it may."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from osora_bench.planning.experiments import TableSpec
from osora_bench.reporting.layouts.against import (
    apart,
    baselines_of,
    label_of,
    nothing_to_compare,
    of_one_seed,
    which_test,
    without_note,
)
from osora_bench.reporting.layouts.notes import edge_note, two_seeds_note
from osora_bench.reporting.numbers import shown_points
from osora_bench.reporting.rows import Row, by_model
from osora_bench.reporting.statistics import ALPHA, Answers, adjusted_pairs, improvement, mean
from osora_bench.reporting.table import Table

COLUMNS = ("Method", "r", "Seeds", "Avg.", "95 % interval", "Rank")


def ranking(name: str, spec: TableSpec, rows: Sequence[Row]) -> Table:
    """A row a method, each model's apart, the highest Avg. first: mean over seeds, interval, the
    ranks it may have, and with a `baseline` the probability that a run of it scores higher than one
    of that.

    Raises:
        UserError: a baseline that is not among the methods.
    """
    lines: list[list[str]] = []
    groups: list[str] = []
    first: list[int] = []
    in_order: list[Row] = []
    tested: dict[str, list[tuple[Row, Answers]]] = {}
    wanted = spec.baseline if rows else None
    baselines = baselines_of("table", name, wanted, rows) if wanted is not None else {}
    label = label_of(baselines)
    for model, of_model in by_model(rows).items():
        compared = [(row, a) for row in of_model if (a := row.answers(row.datasets)) is not None]
        ranked, unbeaten, ordered = _ranked(of_model, compared)
        tested[model] = compared
        if label is not None:
            shares = _shares(baselines[model], ordered)
            ranked = [[*line, share] for line, share in zip(ranked, shares, strict=True)]
        first += [len(lines) + index for index in unbeaten]
        lines += ranked
        groups += [model] * len(ranked)
        in_order += ordered
    headings = [*COLUMNS, *([] if label is None else [f"P(above {label})"])]
    frame = pd.DataFrame(lines, columns=headings, dtype=str)
    best = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    best.loc[first, "Avg."] = True
    below = [*_notes(tested, label is not None, rows), *without_note(baselines)]
    below += [*of_one_seed(rows), *two_seeds_note(rows), *edge_note(rows)]
    of = dict.fromkeys(headings[2:], in_order)
    beside = {h: [baselines[model] for model in groups] for h in headings[len(COLUMNS) :]}
    return Table(name, spec.title, frame, best, below, apart(groups), of=of, beside=beside)


def _ranked(
    rows: Sequence[Row], scored: Sequence[tuple[Row, Answers]]
) -> tuple[list[list[str]], list[int], list[Row]]:
    """The lines of one model's methods, which of them no other beats, and whose they are."""
    compared = sorted(scored, key=lambda entry: -entry[1].averages.mean())
    ranks = possible_ranks([answers for _, answers in compared])
    lines = [
        [*_line(row, answers), _span(*span)]
        for (row, answers), span in zip(compared, ranks, strict=True)
    ]
    blank = [row for row in rows if row.answers(row.datasets) is None]
    lines += [[*_names(row), *[""] * (len(COLUMNS) - 2)] for row in blank]
    in_order = [*(row for row, _ in compared), *blank]
    return lines, [i for i, (low, _) in enumerate(ranks) if low == 1], in_order


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
    points = shown_points(estimate.points)
    return [*_names(row), str(answers.seeds), points, estimate.told]


def _names(row: Row) -> list[str]:
    return [row.cell.config.method.label + row.edge, str(row.cell.config.method.rank or "")]


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _shares(baseline: Row | None, rows: Sequence[Row]) -> list[str]:
    """The column of a baseline: blank for itself, and where one of the two is not complete."""
    own = None if baseline is None else baseline.answers(baseline.datasets)
    compared = [None if row is baseline else row.answers(row.datasets) for row in rows]
    return [
        "" if own is None or answers is None else f"{improvement(answers, own):.2f}"
        for answers in compared
    ]


def _notes(
    models: Mapping[str, Sequence[tuple[Row, Answers]]], baseline: bool, rows: Sequence[Row]
) -> list[str]:
    """What the intervals, ranks and shares are, and which test each pair of a model had."""
    counts = [len(compared) for compared in models.values()]
    if not any(counts):
        return nothing_to_compare(rows)
    lines = [
        "Interval: of the method's own Avg., over its questions and, where several ran, seeds; "
        "methods whose intervals overlap may still differ, question by question.",
        *_alike(models),
    ]
    if max(counts) < 2:
        return [*lines, *nothing_to_compare(rows)]
    pairs = [count * (count - 1) // 2 for count in counts]
    family = (
        f"Holm over {pairs[0]} pairs, " if len(pairs) == 1 else "Holm over each model's pairs, "
    )
    lines += [
        "Rank: from one more than the methods that are significantly better to as many as are not "
        f"significantly worse ({family if max(pairs) > 1 else ''}5 %); in bold who is beaten by "
        "none.",
        *_tests(models),
    ]
    if baseline:
        lines.append("P: of pairs of runs, the share in which it scores higher (ties half).")
    if any(count > 2 for count in counts):
        lines.append(
            "`against` adjusts for the comparisons with its baseline alone, so that it may tell "
            "apart what these ranks leave open."
        )
    return lines


def _alike(models: Mapping[str, Sequence[tuple[Row, Answers]]]) -> list[str]:
    """Whose interval is not made of a spread."""
    alike = [
        row.name
        for compared in models.values()
        for row, answers in compared
        if mean(answers).exact is not None
    ]
    if not alike:
        return []
    return [
        "All right or all wrong in each set, so that the interval is Clopper and Pearson's: "
        f"{', '.join(dict.fromkeys(alike))}."
    ]


def _tests(models: Mapping[str, Sequence[tuple[Row, Answers]]]) -> list[str]:
    """Of which pairs each test is: those of one run each on one set, and all others of a model."""
    exact, others = [], False
    for model, compared in models.items():
        single = [row.cell.config.method.label for row, answers in compared if answers.single]
        if len(single) > 1:
            where = f" on {model}" if len(models) > 1 else ""
            exact.append(f"pairs of {', '.join(dict.fromkeys(single))}{where}")
        others |= len(compared) > max(1, len(single))
    return which_test(exact, ["all others"] if others else [])
