"""records and counts -> figures as PNG, SVG and PDF: the charts of the page, drawn without it.

Kinds, after the paper's figures:
    parameters  trainable parameters against rank, a line a method (Figure 1)
    bars        accuracy by dataset, a bar a method (Figure 3), beside the paper's where it has them
    ranks       Avg. against rank with its 95 % interval, a line a method (Table 3 as a picture)
    rows        the same against how many rows were trained on
    costs       Avg. against a cost, with the Pareto front
    forest      differences to `baseline` with intervals
    tuning      the loss on held-out rows by learning rate
    losses      the training loss by step
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import vl_convert

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import Experiment, FigureSpec
from osora_bench.reporting.charts import of_rows, style
from osora_bench.reporting.charts.style import Spec
from osora_bench.reporting.costs import COSTS
from osora_bench.reporting.layouts.against import baselines_of
from osora_bench.reporting.rows import Row, recorded_rows, selected
from osora_bench.reporting.rows import rows as rows_of

KINDS: dict[str, Callable[[FigureSpec, Sequence[Row]], Spec]] = {
    "bars": of_rows.by_set,
    "ranks": partial(of_rows.by_setting, "ranks"),
    "rows": partial(of_rows.by_setting, "rows"),
    "costs": of_rows.costs,
    "forest": of_rows.forest,
    "tuning": of_rows.tuning,
    "losses": of_rows.losses,
}
"""Those that are made of records; `parameters` is counted."""
SUFFIXES = (".png", ".svg", ".pdf")
PIXELS = 2.0
"""Of a PNG for one of the chart's own."""
VERSION = "6.4"
"""Of Vega-Lite, among those that the renderer knows."""


def draw(
    experiment: Experiment, cells: Sequence[Cell], folder: Path, *, others: bool = False
) -> list[Path]:
    """Draw every figure of an experiment; return the files. The same numbers give the same bytes.

    `others` lets limited sets and other seeds in, as in tabulate.build_tables.

    Raises:
        UserError: a kind of figure that is not known.
    """
    check_figures(experiment, cells)
    charts = {n: chart(spec, cells, others=others) for n, spec in experiment.figures.items()}
    return write_figures(charts, folder)


def write_figures(charts: Mapping[str, Spec], folder: Path) -> list[Path]:
    """Draw charts, by the name of their files; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, spec in charts.items():
        for suffix, content in drawn(spec).items():
            files.append(folder / f"{name}{suffix}")
            files[-1].write_bytes(content)
    return files


def chart(spec: FigureSpec, cells: Sequence[Cell], *, others: bool = False) -> Spec:
    """What a figure shows."""
    if spec.kind == "parameters":
        return of_rows.parameters(spec, cells)
    rows = recorded_rows(cells, others=others)[0]
    return KINDS[spec.kind](spec, [row for row in rows if selected(row, spec)])


def drawn(spec: Spec) -> dict[str, bytes]:
    """A chart as the bytes of its files, by suffix."""
    svg = vl_convert.vegalite_to_svg(spec, vl_version=VERSION, config=style.theme(style.LIGHT))
    return {
        ".png": vl_convert.svg_to_png(svg, scale=PIXELS),
        ".svg": svg.encode(),
        ".pdf": _in_one_order(vl_convert.svg_to_pdf(svg)),
    }


RESOURCES = re.compile(rb"(/(?:Font|ExtGState|ColorSpace|XObject|Pattern) <<\n)((?: +/\w+ .*\n)+)")


def _in_one_order(pdf: bytes) -> bytes:
    """A PDF whose lists of resources are sorted: the renderer writes them in the order of a hash
    table, another one each time."""
    return RESOURCES.sub(lambda part: part[1] + b"".join(sorted(part[2].splitlines(True))), pdf)


def check_figures(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raise UserError if a figure cannot be made of an experiment's cells, whatever their records:
    a kind, cost or baseline that is not known."""
    for name, spec in experiment.figures.items():
        if spec.kind not in (*KINDS, "parameters"):
            raise UserError(unknown("kind of figure", spec.kind, (*KINDS, "parameters")))
        check(name, spec, [row for row in rows_of(cells, {}) if selected(row, spec)])


def check(name: str, spec: FigureSpec, rows: Sequence[Row]) -> None:
    """Raise UserError if such a figure cannot be made, whatever the records."""
    if spec.kind == "costs" and spec.cost not in COSTS:
        raise UserError(f"figure {name}: {unknown('cost', str(spec.cost), COSTS)}")
    if spec.kind == "forest":
        baselines_of("figure", name, spec.baseline, rows)
