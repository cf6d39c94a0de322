"""The charts of an experiment on its page: those that its file names, and those of its rows."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import Experiment, FigureSpec
from osora_bench.reporting.charts import of_rows, style
from osora_bench.reporting.charts.style import Spec
from osora_bench.reporting.costs import COSTS, cost_of
from osora_bench.reporting.figures import methods_of, of_rows_or_cells
from osora_bench.reporting.html.findings import baseline
from osora_bench.reporting.rows import VARIED, Row


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
    named = [_alone(of_rows_or_cells(spec, cells, rows)) for spec in experiment.figures.values()]
    drawn = {(spec.kind, spec.eval) for spec in experiment.figures.values()}
    found = [place for place in named if _has_data(place)]
    for on, group in _groups(rows):
        suite = group[0].cell.config.eval.name
        kinds = {kind for kind, of in drawn if of in (None, suite)}
        found += [place for place in _of_group(experiment, on, group, kinds) if _has_data(place)]
    return dressed_for(found, methods_of(cells))


def dressed_for(found: Sequence[Place], methods: Sequence[str]) -> list[Place]:
    """Charts in which each of these methods looks as in all others for the same methods."""
    return [
        replace(place, plots=[
            replace(plot, spec=style.dressed_for(plot.spec, methods)) for plot in place.plots
        ])
        for place in found
    ]  # fmt: skip


def by_file(found: Sequence[Place]) -> dict[str, Spec]:
    """Charts by the name of a file: `accuracy-by-rank-r-openbookqa`."""
    charts: dict[str, Spec] = {}
    for place in found:
        for plot in place.plots:
            words = re.findall(r"[a-z0-9]+", f"{place.title} {plot.choice}".lower())
            name = "-".join(words)
            alike = sum(other == name or other.startswith(f"{name}--") for other in charts)
            charts[f"{name}--{alike + 1}" if alike else name] = plot.spec
    return charts


def _has_data(place: Place) -> bool:
    return any(plot.spec["data"]["values"] for plot in place.plots)


def _alone(spec: Spec) -> Place:
    title = str(spec["title"]["text"])
    return Place(title, "", [_plot(spec)])


def _plot(spec: Spec, choice: str = "") -> Plot:
    said = f"{spec['title']['text']}: {spec['description']}"
    return Plot(spec["title"].get("subtitle", ""), spec, said, choice)


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows that may be compared with one another: of one suite, model and task; with what they are
    called, which is another for each."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        config = row.cell.config
        if row.shown:
            task = config.task.label if config.trains else ""
            groups.setdefault((config.eval.label, config.model.label, task), []).append(row)
    trained = {key: group for key, group in groups.items() if key[2]}
    several = [len({key[place] for key in trained}) > 1 for place in range(3)]
    for (suite, model, task), group in trained.items():
        names = [suite] * (not group[0].cell.is_trial)
        names += [model] * several[1] + [task] * several[2]
        base = groups.get((suite, model, ""), [])  # stands beside all that was trained
        yield "".join(f", {name}" for name in names), base + group


def _of_group(
    experiment: Experiment, on: str, rows: Sequence[Row], drawn: set[str]
) -> Iterator[Place]:
    if rows[-1].cell.is_trial:
        spec = _spec("tuning", f"Loss on held-out rows by learning rate{on}")
        yield _alone(of_rows.tuning(spec, rows))
        return
    settings = [kind for kind in VARIED if _varies(kind, rows)]
    for kind in settings:
        if kind not in drawn:
            spec = _spec(kind, f"Accuracy by {of_rows.AXES[kind]}{on}")
            yield _alone(of_rows.by_setting(kind, spec, rows))
    if "ranks" in settings:
        spec = _spec("parameters", f"Trainable parameters by rank{on}")
        yield _alone(of_rows.recorded_parameters(spec, rows))
    if len({row.name for row in rows}) < len(rows):
        return  # rows that their names do not tell apart
    against = _baseline(experiment, rows)
    if against is not None and "forest" not in drawn:
        spec = _spec("forest", f"Differences{on}", baseline=against)
        yield _alone(of_rows.forest(spec, rows))
    yield _costs(on, rows, against)
    yield _alone(of_rows.losses(_spec("losses", f"Training loss{on}"), rows))


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


def _costs(on: str, rows: Sequence[Row], baseline: str | None) -> Place:
    """Accuracy against each cost that a record tells of."""
    title, plots = f"Accuracy against cost{on}", []
    for name, kind in COSTS.items():
        if any(cost_of(row, name) is not None and row.cell.config.trains for row in rows):
            spec = _spec("costs", title, baseline)
            spec.cost = name
            chart = of_rows.costs(spec, rows)
            if chart["data"]["values"]:
                plots.append(_plot(chart, kind.heading))
    return Place(title, "Cost", plots)
