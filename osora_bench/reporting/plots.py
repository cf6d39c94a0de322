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
from osora_bench.reporting.rows import Row
from osora_bench.reporting.statistics import difference, mean

EMPTY = "(no run has finished yet)"


def check(name: str, spec: FigureSpec, rows: Sequence[Row]) -> None:
    """Raise UserError if such a figure cannot be made, whatever the records."""
    if spec.kind == "costs" and spec.cost not in COSTS:
        raise UserError(f"figure {name}: {unknown('cost', str(spec.cost), COSTS)}")
    if spec.kind == "forest":
        baseline_of("figure", name, spec.baseline, rows)


def costs(spec: FigureSpec, rows: Sequence[Row]) -> Any:
    """Avg. with its 95 % interval against a cost; the Pareto front is a line with full marks."""
    assert spec.cost is not None
    kind = COSTS[spec.cost]
    drawn = [
        (row, cost, mean(answers))
        for row in rows
        if row.cell.config.trains
        and (cost := cost_of(row, spec.cost)) is not None
        and (answers := row.answers(row.datasets)) is not None
    ]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    front = pareto([(cost, score.points) for _, cost, score in drawn], less=kind.less)
    for index, (row, cost, score) in enumerate(drawn):
        axes.errorbar(
            cost, score.points, score.margin, color="black", ecolor="0.7", capsize=2, marker="o",
            markerfacecolor="black" if index in front else "white",
        )  # fmt: skip
        axes.annotate(
            row.name, (cost, score.points), xytext=(5, 4), textcoords="offset points", fontsize=7
        )
    best = sorted((drawn[i][1], drawn[i][2].points) for i in front)
    axes.plot([x for x, _ in best], [y for _, y in best], color="0.4", linewidth=1, zorder=0)
    values = [cost for _, cost, _ in drawn]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_xscale("log")
    axes.set_xlabel(kind.heading + ("" if kind.less else " (more is better)"))
    axes.set_ylabel("accuracy, %, and 95 % interval")
    title = f"{spec.title}\nfilled: no other has a higher accuracy at no more cost"
    axes.set_title(title if drawn else f"{spec.title}\n{EMPTY}", fontsize=9)
    return figure


def forest(spec: FigureSpec, rows: Sequence[Row]) -> Any:
    """How far each method's Avg. is from that of `baseline`, with 95 % intervals, the highest
    first; full marks are those whose interval leaves out zero."""
    baseline = baseline_of("figure", "forest", spec.baseline, rows)
    own = baseline.answers(baseline.datasets)
    drawn = [
        (row.name, difference(answers, own))
        for row in rows
        if row is not baseline
        and own is not None
        and (answers := row.answers(row.datasets)) is not None
    ]
    drawn.sort(key=lambda entry: entry[1].points)
    figure, axes = plt.subplots(figsize=(6, 1.2 + 0.22 * len(drawn)), layout="constrained")
    for place, (_, gap) in enumerate(drawn):
        beyond = gap.low > 0 or gap.high < 0
        axes.errorbar(
            gap.points, place, xerr=gap.margin, color="black", capsize=2, marker="o",
            markerfacecolor="black" if beyond else "white",
        )  # fmt: skip
    axes.axvline(0, color="0.5", linewidth=1)
    axes.set_yticks(range(len(drawn)), [name for name, _ in drawn])
    axes.set_xlabel(f"points above {baseline.name}, 95 % interval")
    axes.set_title(spec.title if drawn else f"{spec.title}\n{EMPTY}", fontsize=9)
    return figure
