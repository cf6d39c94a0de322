"""records and counts -> figures as PNG, SVG and PDF, readable in grey.

Kinds, after the paper's figures:
    parameters  trainable parameters against rank, a line a method (Figure 1)
    bars        accuracy by dataset, a bar a method (Figure 3), beside the paper's where it has them
    ranks       Avg. against rank with its standard error, a line a method (Table 3 as a picture)
    rows        the same against how many rows were trained on
    costs, forest: plots.py
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import Config
from osora_bench.planning.experiments import Experiment, FigureSpec
from osora_bench.reporting import plots, reference
from osora_bench.reporting.numbers import mean
from osora_bench.reporting.rows import Row, recorded_rows, selected
from osora_bench.reporting.rows import rows as rows_of

matplotlib.use("agg")

Kind = Callable[[FigureSpec, Sequence[Cell]], Any]

KINDS = ("parameters", "bars", "ranks", "rows", "costs", "forest")
SUFFIXES = (".png", ".svg", ".pdf")
LINES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "^", "D")
GREYS = ("0.25", "0.55", "0.8", "1.0")
HATCHES = ("", "//", "..", "xx")
METADATA: dict[str, dict[str, Any]] = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""No dates: the same numbers give the same files."""


def draw(
    experiment: Experiment, cells: Sequence[Cell], folder: Path, *, others: bool = False
) -> list[Path]:
    """Draw every figure of an experiment; return the files.

    `others` lets limited sets and other seeds in, as in tabulate.build.

    Raises:
        UserError: a kind of figure that is not known.
    """

    def from_rows(plot: Callable[[FigureSpec, Sequence[Row]], Any]) -> Kind:
        return lambda spec, cells: plot(spec, _of(spec, recorded_rows(cells, others=others)[0]))

    kinds: dict[str, Kind] = {
        "parameters": parameters,
        "bars": partial(bars, others=others),
        "ranks": from_rows(partial(curves, "rank r", lambda config: config.method.rank)),
        "rows": from_rows(partial(curves, "training rows", lambda config: config.task.max_rows)),
        "costs": from_rows(plots.costs),
        "forest": from_rows(plots.forest),
    }
    check_figures(experiment, cells)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with plt.rc_context({"svg.hashsalt": "osora_bench", "font.size": 9}):
        for name, spec in experiment.figures.items():
            figure = kinds[spec.kind](spec, cells)
            for suffix in SUFFIXES:
                files.append(folder / f"{name}{suffix}")
                figure.savefig(files[-1], dpi=150, metadata=METADATA[suffix])
            plt.close(figure)
    return files


def check_figures(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raise UserError if a figure cannot be made of an experiment's cells, whatever their records:
    a kind, cost or baseline that is not known."""
    for name, spec in experiment.figures.items():
        if spec.kind not in KINDS:
            raise UserError(unknown("kind of figure", spec.kind, KINDS))
        plots.check(name, spec, _of(spec, rows_of(cells, {})))


def _of(spec: FigureSpec, rows: Sequence[Row]) -> list[Row]:
    """The rows that a figure shows."""
    return [row for row in rows if selected(row, spec)]


def parameters(spec: FigureSpec, cells: Sequence[Cell]) -> Any:
    """Figure 1. Both axes are logarithmic, so LoRA's straight line of slope one is its linear
    growth: the published caption calls it exponential."""
    from osora_bench.models import counting

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for index, name in enumerate(spec.methods or _methods(cells)):
        configs = [c.config for c in cells if c.config.method.name == name]
        ranks = [config.method.rank or 0 for config in configs]
        counts = [counting.count(config).trainable for config in configs]
        axes.plot(
            ranks,
            counts,
            label=_growth(configs[0].method.label, ranks, counts),
            color="black",
            linestyle=LINES[index % len(LINES)],
            marker=MARKS[index % len(MARKS)],
            markerfacecolor=GREYS[index % len(GREYS)],
            # methods may lie on one line: a larger mark shows behind a smaller one
            markersize=4 + 3 * index,
            zorder=10 - index,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ranks, [str(rank) for rank in ranks], minor=False)
    axes.set_xlabel("rank r (both axes logarithmic; every method is linear in r)")
    axes.set_ylabel("trainable parameters")
    axes.set_title(spec.title)
    axes.legend(frameon=False)
    return figure


def _growth(label: str, ranks: Sequence[int], counts: Sequence[int]) -> str:
    """`LoRA: 315,392 more for each rank`, from the counts themselves."""
    slope = (counts[-1] - counts[0]) // (ranks[-1] - ranks[0])
    return f"{label}: {slope:,} more for each rank"


def _methods(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.config.method.name for cell in cells))


def curves(
    axis: str, value_of: Callable[[Config], int | None], spec: FigureSpec, all_rows: Sequence[Row]
) -> Any:
    """Avg. by a setting, a line a method; the bars are one standard error of the questions on each
    side. Rows without a value of the setting are left out."""
    rows = [row for row in all_rows if value_of(row.cell.config) is not None]
    cells = [row.cell for row in rows]
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for index, name in enumerate(spec.methods or _methods(cells)):
        method_rows = [r for r in rows if r.cell.config.method.name == name and r.averages()]
        axes.errorbar(
            [value_of(row.cell.config) for row in method_rows],
            [float(mean(row.averages())) for row in method_rows],
            [row.standard_error() for row in method_rows],
            label=_label(cells, name),
            color="black",
            capsize=2,
            linestyle=LINES[index % len(LINES)],
            marker=MARKS[index % len(MARKS)],
            markerfacecolor=GREYS[index % len(GREYS)],
        )
    ticks = sorted({value for row in rows if (value := value_of(row.cell.config)) is not None})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_xlabel(axis)
    axes.set_ylabel("accuracy, %")
    done = any(row.averages() for row in rows)
    axes.set_title(spec.title if done else f"{spec.title}\n(no run has finished yet)")
    axes.legend(frameon=False)
    return figure


def _label(cells: Sequence[Cell], method: str) -> str:
    labels = {c.config.method.name: str(c.config.method.label) for c in cells}
    return labels.get(method, method)


def bars(spec: FigureSpec, cells: Sequence[Cell], *, others: bool = False) -> Any:
    """Figure 3: a group of bars a dataset, ours filled, the paper's outlined beside them."""
    rows = recorded_rows(cells, others=others)[0]
    printed = reference.load_reference(spec.reference) if spec.reference is not None else {}
    datasets = cells[0].config.eval.datasets
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    width = 0.8 / (2 * len(rows))
    for index, row in enumerate(rows):
        label = row.cell.config.method.label
        style = {"hatch": HATCHES[index % len(HATCHES)], "edgecolor": "black"}
        for group, dataset in enumerate(datasets):
            left = group - 0.4 + 2 * index * width
            values = [float(v) for v in row.values(dataset.name)]
            if values:
                height = sum(values) / len(values)
                bar = axes.bar(
                    left, height, width, align="edge", color=GREYS[index % len(GREYS)], **style
                )
                axes.bar_label(bar, fmt="%.2f", fontsize=7)
            key = row.key(dataset.label)
            if key in printed:
                paper = float(printed[key].value)
                bar = axes.bar(left + width, paper, width, align="edge", color="white", **style)
                axes.bar_label(bar, labels=[printed[key].value], fontsize=7, color="0.4")
        axes.bar(0, 0, color=GREYS[index % len(GREYS)], label=label, **style)
    if printed:
        axes.bar(0, 0, color="white", edgecolor="black", label="white: the paper's")
    if not any(row.shown for row in rows):
        axes.set_title(f"{spec.title}\n(no run has finished yet)")
    else:
        axes.set_title(spec.title)
    axes.set_xticks(range(len(datasets)), [d.label for d in datasets])
    axes.set_ylabel("accuracy, %")
    axes.legend(frameon=False)
    return figure
