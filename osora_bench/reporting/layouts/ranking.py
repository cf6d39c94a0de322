"""Layout `ranking`: where each method stands, and between which ranks it may."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from osora_bench.planning.experiments import TableSpec
from osora_bench.reporting.layouts.against import apart, baseline_of, of_one_seed, which_test
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
    tested: list[list[tuple[Row, Answers]]] = []
    label: str | None = None
    for model, of_model in by_model(rows).items():
        baseline = None
        if spec.baseline is not None:
            baseline = baseline_of("table", name, spec.baseline, of_model)
            label = baseline.cell.config.method.label
        compared = [(row, a) for row in of_model if (a := row.answers(row.datasets)) is not None]
        ranked, unbeaten, ordered = _ranked(of_model, compared, baseline)
        tested.append(compared)
        first += [len(lines) + index for index in unbeaten]
        lines += ranked
        groups += [model] * len(ranked)
        in_order += ordered
    headings = [*COLUMNS, *([] if label is None else [f"P(above {label})"])]
    frame = pd.DataFrame(lines, columns=headings, dtype=str)
    best = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    best.loc[first, "Avg."] = True
    below = [
        *_notes(tested, label is not None),
        *of_one_seed(rows),
        *two_seeds_note(rows),
        *edge_note(rows),
    ]
    of = dict.fromkeys(headings[3:], in_order)
    return Table(name, spec.title, frame, best, below, apart(groups), of=of)


def _ranked(
    rows: Sequence[Row], scored: Sequence[tuple[Row, Answers]], baseline: Row | None
) -> tuple[list[list[str]], list[int], list[Row]]:
    """The lines of one model's methods, which of them no other beats, and whose they are."""
    compared = sorted(scored, key=lambda entry: -entry[1].averages.mean())
    ranks = possible_ranks([answers for _, answers in compared])
    own = baseline.answers(baseline.datasets) if baseline is not None else None
    lines = [
        [*_line(row, answers), _span(*span), *_better(baseline, own, row, answers)]
        for (row, answers), span in zip(compared, ranks, strict=True)
    ]
    blank = [row for row in rows if row.answers(row.datasets) is None]
    lines += [[*_names(row), *[""] * (len(COLUMNS) - 2), *_better(baseline)] for row in blank]
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
    interval = (
        f"{shown_points(max(0.0, estimate.low))} to {shown_points(min(100.0, estimate.high))}"
    )
    return [*_names(row), str(answers.seeds), shown_points(estimate.points), interval]


def _names(row: Row) -> list[str]:
    return [row.cell.config.method.label + row.edge, str(row.cell.config.method.rank or "")]


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


def _notes(models: Sequence[Sequence[tuple[Row, Answers]]], baseline: bool) -> list[str]:
    """What the intervals, ranks and shares are, and which test each pair of a model had."""
    compared = [entry for model in models for entry in model]
    pairs = [len(model) * (len(model) - 1) // 2 for model in models]
    family = f"{pairs[0]} pairs" if len(pairs) == 1 else "each model's pairs"
    single = [row.cell.config.method.label for row, answers in compared if answers.single]
    lines = [
        "Interval: of the method's own Avg., over its questions and, where several ran, seeds; "
        "methods whose intervals overlap may still differ, question by question.",
        "Rank: from one more than the methods that are significantly better to as many as are not "
        f"significantly worse (Holm over {family}, 5 %); in bold who is beaten by none.",
        *which_test(
            [f"pairs of {', '.join(dict.fromkeys(single))}"] if len(single) > 1 else [],
            ["all others"] if len(single) < len(compared) else [],
        ),
    ]
    if baseline:
        lines.append("P: of pairs of runs, the share in which it scores higher (ties half).")
    if any(count > len(model) - 1 for count, model in zip(pairs, models, strict=True)):
        lines.append(
            "`against` adjusts for the comparisons with its baseline alone, so that it may tell "
            "apart what these ranks leave open."
        )
    return lines
