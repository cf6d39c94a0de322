"""Figures that compare methods: accuracy against a cost, and the forest of differences.

Readable in grey: what stands out does so by its mark, and every point is labelled where it is.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.experiments import FigureSpec
from osora_bench.reporting.costs import COSTS, cost_of, pareto
from osora_bench.reporting.layouts.against import baseline_of
from osora_bench.reporting.rows import Row, by_model
from osora_bench.reporting.statistics import Estimate, difference, mean

EMPTY = "(no run has finished yet)"


def check(name: str, spec: FigureSpec, rows: Sequence[Row]) -> None:
    """Raise UserError if such a figure cannot be made, whatever the records."""
    if spec.kind == "costs" and spec.cost not in COSTS:
        raise UserError(f"figure {name}: {unknown('cost', str(spec.cost), COSTS)}")
    if spec.kind == "forest":
        for of_model in by_model(rows).values() or [rows]:
            baseline_of("figure", name, spec.baseline, of_model)


def _priced(rows: Sequence[Row], cost_name: str) -> list[tuple[Row, float, Estimate]]:
    """The rows that train and have both a cost and a score."""
    return [
        (row, cost, mean(answers))
        for row in rows
        if row.cell.config.trains
        and (cost := cost_of(row, cost_name)) is not None
        and (answers := row.answers(row.datasets)) is not None
    ]


def costs(spec: FigureSpec, rows: Sequence[Row]) -> Any:
    """Avg. with its 95 % interval against a cost; the Pareto front of each model
    is a line with full marks."""
    assert spec.cost is not None
    kind = COSTS[spec.cost]
    models = by_model(rows)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    drawn = []
    for model, of_model in models.items():
        points = _priced(of_model, spec.cost)
        front = pareto([(cost, score.points) for _, cost, score in points], less=kind.less)
        for index, (row, cost, score) in enumerate(points):
            axes.errorbar(
                cost, score.points, score.margin, color="black", ecolor="0.7", capsize=2,
                marker="o", markerfacecolor="black" if index in front else "white",
            )  # fmt: skip
            axes.annotate(
                f"{model}, {row.name}" if len(models) > 1 else row.name,
                (cost, score.points), xytext=(5, 4), textcoords="offset points", fontsize=7,
            )  # fmt: skip
        best = sorted((points[i][1], points[i][2].points) for i in front)
        axes.plot([x for x, _ in best], [y for _, y in best], color="0.4", linewidth=1, zorder=0)
        drawn += points
    values = [cost for _, cost, _ in drawn]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_xscale("log")
    axes.set_xlabel(kind.heading + ("" if kind.less else " (more is better)"))
    axes.set_ylabel("accuracy, %, and 95 % interval")
    whose = " of the model" if len(models) > 1 else ""
    title = f"{spec.title}\nfilled: no other{whose} has a higher accuracy at no more cost"
    axes.set_title(title if drawn else f"{spec.title}\n{EMPTY}", fontsize=9)
    return figure


def forest(spec: FigureSpec, rows: Sequence[Row]) -> Any:
    """How far each method's Avg. is from that of its model's `baseline`, with 95 % intervals, a
    model after the other, the highest first; full marks: the interval leaves out zero."""
    drawn: list[tuple[str, Estimate]] = []
    models, baselines = by_model(rows), []
    for model, of_model in reversed(models.items()):  # the first stands at the top
        baseline = baseline_of("figure", "forest", spec.baseline, of_model)
        baselines.append(baseline.name)
        own = baseline.answers(baseline.datasets)
        gaps = [
            (f"{model}, {row.name}" if len(models) > 1 else row.name, difference(answers, own))
            for row in of_model
            if row is not baseline
            and own is not None
            and (answers := row.answers(row.datasets)) is not None
        ]
        drawn += sorted(gaps, key=lambda entry: entry[1].points)
    figure, axes = plt.subplots(figsize=(6, 1.2 + 0.22 * len(drawn)), layout="constrained")
    for place, (_, gap) in enumerate(drawn):
        beyond = gap.low > 0 or gap.high < 0
        axes.errorbar(
            gap.points, place, xerr=gap.margin, color="black", capsize=2, marker="o",
            markerfacecolor="black" if beyond else "white",
        )  # fmt: skip
    axes.axvline(0, color="0.5", linewidth=1)
    axes.set_yticks(range(len(drawn)), [name for name, _ in drawn])
    axes.set_xlabel(f"points above {' or '.join(dict.fromkeys(baselines))}, 95 % interval")
    axes.set_title(spec.title if drawn else f"{spec.title}\n{EMPTY}", fontsize=9)
    return figure
