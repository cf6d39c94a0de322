"""The charts of an experiment on its page: those that its file names, and those of its rows."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import Experiment, FigureSpec
from osora_bench.reporting.charts import of_rows
from osora_bench.reporting.charts.style import Spec
from osora_bench.reporting.costs import COSTS, cost_of
from osora_bench.reporting.figures import KINDS
from osora_bench.reporting.html.findings import baseline
from osora_bench.reporting.rows import VARIED, Row, selected

MOST_SAID = 40
"""Values that a chart's description tells; the tables have all."""


@dataclass(frozen=True)
class Plot:
    """A chart, how it is read (`note`), and what it is called where several share a place
    (`choice`); `said` tells what it shows to who cannot see it."""

    note: str
    spec: Spec
    said: str
    choice: str = ""


@dataclass(frozen=True)
class Place:
    """Charts of which one is seen at a time, by choice."""

    title: str
    label: str
    plots: list[Plot]


def places(experiment: Experiment, cells: Sequence[Cell], rows: Sequence[Row]) -> list[Place]:
    """All charts of an experiment; of what no record tells there is none."""
    named = [
        _alone(KINDS[spec.kind](spec, [row for row in rows if selected(row, spec)])
               if spec.kind in KINDS else of_rows.parameters(spec, cells))
        for spec in experiment.figures.values()
    ]  # fmt: skip
    drawn = {(spec.kind, spec.eval) for spec in experiment.figures.values()}
    found = [place for place in named if _has_data(place)]
    for on, group in _groups(rows):
        suite = group[0].cell.config.eval.name
        kinds = {kind for kind, of in drawn if of in (None, suite)}
        found += [place for place in _of_group(experiment, on, group, kinds) if _has_data(place)]
    return found


def by_file(found: Sequence[Place]) -> dict[str, Spec]:
    """Charts by the name of a file: `accuracy-by-rank-r-openbookqa`."""
    charts: dict[str, Spec] = {}
    for place in found:
        for plot in place.plots:
            words = re.findall(r"[a-z0-9]+", f"{place.title} {plot.choice}".lower())
            charts["-".join(words)] = plot.spec
    return charts


def _has_data(place: Place) -> bool:
    return any(plot.spec["data"]["values"] for plot in place.plots)


def _alone(spec: Spec) -> Place:
    title = str(spec["title"]["text"])
    return Place(title, "", [_plot(spec)])


def _plot(spec: Spec, choice: str = "") -> Plot:
    return Plot(spec["title"].get("subtitle", ""), spec, _said(spec), choice)


def _said(spec: Spec) -> str:
    """What a chart shows, in words."""
    values = spec["data"]["values"]
    hidden = ("Runs", "runs")
    told = [
        ", ".join(f"{key} {value[key]}" for key in value if key[0].isupper() and key not in hidden)
        for value in values[:MOST_SAID]
    ]
    more = f"; and {len(values) - MOST_SAID} more" if len(values) > MOST_SAID else ""
    return f"{spec['title']['text']}: {'; '.join(filter(None, told))}{more}"


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows that may be compared with one another: of one suite, model and task; with what they are
    called."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        config = row.cell.config
        if row.shown:
            task = config.task.label if config.trains else ""
            groups.setdefault((config.model.label, config.eval.label, task), []).append(row)
    several = len({model for model, _, _ in groups}) > 1
    for (model, suite, task), group in groups.items():
        if not task:  # the untrained model stands beside all that was trained
            continue
        base = groups.get((model, suite, ""), [])
        yield f"{suite}, {model}" if several else suite, base + group


def _of_group(
    experiment: Experiment, on: str, rows: Sequence[Row], drawn: set[str]
) -> Iterator[Place]:
    if rows[-1].cell.is_trial:
        yield _alone(
            of_rows.tuning(_spec("tuning", "Loss on held-out rows by learning rate"), rows)
        )
        return
    settings = [kind for kind in VARIED if _varies(kind, rows)]
    for kind in settings:
        if kind not in drawn:
            spec = _spec(kind, f"Accuracy by {of_rows.AXES[kind]}, {on}")
            yield _alone(of_rows.by_setting(kind, spec, rows))
    if "ranks" in settings:
        spec = _spec("parameters", f"Trainable parameters by rank, {on}")
        yield _alone(of_rows.recorded_parameters(spec, rows))
    if len({row.name for row in rows}) < len(rows):
        return  # rows that their names do not tell apart
    against = _baseline(experiment, rows)
    if against is not None and "forest" not in drawn:
        spec = _spec("forest", f"Differences, {on}", baseline=against)
        yield _alone(of_rows.forest(spec, rows))
    yield _costs(on, rows)
    yield _alone(of_rows.losses(_spec("losses", f"Training loss, {on}"), rows))


def _spec(kind: str, title: str, baseline: str | None = None) -> FigureSpec:
    return FigureSpec(kind, title, baseline=baseline)


def _varies(kind: str, rows: Sequence[Row]) -> bool:
    """Whether a method was run at several values of a setting, and everything else but the setting
    names one row for each."""
    points = [
        (row.cell.config.method.name, value)
        for row in rows
        if (value := VARIED[kind](row.cell.config)) is not None and row.cell.config.trains
    ]
    methods = [name for name, _ in points]
    return len(set(points)) == len(points) and len(set(methods)) < len(methods)


def _baseline(experiment: Experiment, rows: Sequence[Row]) -> str | None:
    """The method that others are held against: the tables', or the first that trains, where one row
    alone is of it."""
    names = [row.cell.config.method.name for row in rows if row.averages()]
    trained = [row.cell.config.method.name for row in rows if row.cell.config.trains]
    for name in (baseline(experiment.tables.values()), *trained[:1]):
        if name is not None and names.count(name) == 1 and len(names) > 1:
            return name
    return None


def _costs(on: str, rows: Sequence[Row]) -> Place:
    """Accuracy against each cost that a record tells of."""
    plots = []
    for name, kind in COSTS.items():
        if any(cost_of(row, name) is not None and row.cell.config.trains for row in rows):
            spec = _spec("costs", f"Accuracy against cost, {on}")
            spec.cost = name
            chart = of_rows.costs(spec, rows)
            if chart["data"]["values"]:
                plots.append(_plot(chart, kind.heading))
    return Place(f"Accuracy against cost, {on}", "Cost", plots)
