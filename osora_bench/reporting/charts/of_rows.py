"""What each kind of chart shows of the rows of an experiment."""

import itertools
from collections.abc import Collection, Sequence
from math import inf, isfinite
from statistics import fmean
from typing import Any

from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import FigureSpec
from osora_bench.records.record import held_out_loss
from osora_bench.reporting import reference
from osora_bench.reporting.charts import points, style
from osora_bench.reporting.charts.bars import Bar, bars
from osora_bench.reporting.charts.lines import Axes, Point, lines
from osora_bench.reporting.charts.points import Named
from osora_bench.reporting.charts.style import Spec
from osora_bench.reporting.costs import COSTS, cost_of
from osora_bench.reporting.layouts.against import baselines_of
from osora_bench.reporting.numbers import grouped, mean, probability, scientific, signed
from osora_bench.reporting.rows import VARIED, Row, by_model
from osora_bench.reporting.statistics import Estimate, comparisons, verdict
from osora_bench.reporting.statistics import mean as mean_of

MOST_RUNS = 4
"""Runs that are named where a pointer rests."""
BEYOND = 5
"""How many times as far from the lowest loss as the others one may lie that is in the chart."""
FAR = 2
"""How many times the lowest loss the highest must be for a logarithmic axis."""
SAMPLES = 60
"""Points of a loss curve that are shown."""
AXES = {"ranks": "rank r", "rows": "training rows", "rates": "learning rate"}
"""What the settings of `VARIED` are called."""


def by_setting(kind: str, spec: FigureSpec, rows: Sequence[Row]) -> Spec:
    """Avg. by the setting of a kind (`VARIED`) with its 95 % interval, a line a method and model.
    Rows without a value of the setting, or without an average, are left out."""
    every = _series([row for row in rows if row.averages()])
    shown = _methods(spec.methods, every)
    drawn = [
        _scored(series, row, value)
        for series, row in shown
        if (value := VARIED[kind](row.cell.config)) is not None
    ]
    drawn.sort(key=lambda point: point.x)
    ticks = sorted({point.x for point in drawn})
    axes = Axes(AXES[kind], "accuracy, %", log_x=True, ticks=ticks)
    intervals = "vertical: 95 % intervals, side by side" if drawn else ""
    left_out = _left_out(shown, every) if spec.methods is None else ""
    subtitle = "; ".join(filter(None, [intervals, left_out]))
    order = list(dict.fromkeys(series for series, _ in shown))
    drawn.sort(key=lambda point: order.index(point.series))
    return lines(spec.title, axes, drawn, subtitle=subtitle)


Series = list[tuple[str, Row]]
"""Rows, each with the name of the line that it is a point of."""


def _series(rows: Sequence[Row]) -> Series:
    """By method, with the model where there are several."""
    models = by_model(rows)
    return [
        (_with_model(model, row.cell.config.method.label, models), row)
        for model, of_model in models.items()
        for row in of_model
    ]


def _methods(wanted: Sequence[str] | None, rows: Series) -> Series:
    """The lines that are drawn: of the methods that are wanted in this order, or of all as many as
    can be told apart, those with the highest averages."""
    if wanted is not None:
        return [
            (name, row) for method in wanted for name, row in rows
            if row.cell.config.method.name == method
        ]  # fmt: skip
    best: dict[str, float] = {}
    for name, row in rows:
        value = float(mean(averages)) if (averages := row.averages()) else 0.0
        best[name] = max(best.get(name, value), value)
    names = list(best)
    if len(names) > style.MOST_SERIES:
        names = sorted(names, key=lambda name: -best[name])[: style.MOST_SERIES]
    return [(name, row) for name in names for series, row in rows if series == name]


def _left_out(shown: Series, every: Series) -> str:
    """How many lines a chart shows, if not all."""
    some, all_ = (len(dict(rows)) for rows in (shown, every))
    return f"the best {some} of {all_}" if some < all_ else ""


def _scored(series: str, row: Row, value: float) -> Point:
    average, estimate = mean(row.averages()), _estimate(row)
    low, high = (None, None) if estimate is None else estimate.possible
    told, method = _told(row, estimate), row.cell.config.method.label
    return Point(series, value, float(average), low, high, told, method)


def _estimate(row: Row) -> Estimate | None:
    answers = row.answers(row.datasets)
    return None if answers is None else mean_of(answers)


def _told(row: Row, estimate: Estimate | None = None, **more: str) -> dict[str, str]:
    """What is told of a point: the method, its numbers, and the runs behind them."""
    told = {"Method": row.name}
    if row.averages():
        told["Average"] = str(mean(row.averages()))
    if estimate is not None:
        told["95 %"] = estimate.told
    return {**told, **more, **told_runs(row)}


def told_runs(row: Row) -> dict[str, str]:
    """Run id, seed and commit of the first runs of a row; all ids for who wants their records."""
    lines_ = [
        f"{run['run_id']} (seed {run['config']['seed']}, commit {_commit(run)})"
        for run in row.shown[:MOST_RUNS]
    ]
    more = len(row.shown) - len(lines_)
    text = "; ".join(lines_) + (f"; {more} more" if more else "")
    return {"Runs": text, "runs": _runs([row])}


def _runs(rows: Sequence[Row]) -> str:
    return ",".join(run["run_id"] for row in rows for run in row.shown)


def _commit(run: Any) -> str:
    commit = run["provenance"].get("code", {}).get("commit")
    return commit[:7] if commit else "unknown"


def costs(spec: FigureSpec, rows: Sequence[Row]) -> Spec:
    """Avg. against a cost, of the methods that train."""
    assert spec.cost is not None
    kind = COSTS[spec.cost]
    models = by_model(rows)
    drawn = [
        Named(_named(model, row, models), estimate, cost,
              _told(row, estimate, **{kind.heading: grouped(kind.form.format(cost))}), model,
              row.cell.config.method.name, baseline=row.cell.config.method.name == spec.baseline)
        for model, of_model in models.items()
        for row in of_model
        if row.cell.config.trains
        and (cost := cost_of(row, spec.cost)) is not None
        and (estimate := _estimate(row)) is not None
    ]  # fmt: skip
    return points.against_cost(spec.title, kind.heading, drawn, less=kind.less)


def forest(spec: FigureSpec, rows: Sequence[Row]) -> Spec:
    """How far the Avg. of each model's `baseline` is above each other's, with 95 % intervals and
    what the paired test says, as layout `against`; models without it are named as left out."""
    models, gaps = by_model(rows), list[Named]()
    baselines = baselines_of("figure", "forest", spec.baseline, rows)
    for model, of_model in models.items():
        baseline = baselines[model]
        own = None if baseline is None else baseline.answers(baseline.datasets)
        others = [
            (row, answers) for row in of_model
            if row is not baseline and (answers := row.answers(row.datasets)) is not None
        ]  # fmt: skip
        if baseline is None or own is None:
            continue
        found = comparisons(own, [answers for _, answers in others])
        for (row, _), (gap, p) in zip(others, found, strict=True):
            said = verdict(gap, p)
            interval = f"{signed(gap.points)} ({signed(gap.low)} to {signed(gap.high)})"
            so = f"{baseline.cell.config.method.label} {said}, p (Holm) {probability(p)}"
            told = {**_told(row, None, Difference=interval, So=so), "runs": _runs([baseline, row])}
            method = row.cell.config.method.name
            name = _named(model, row, models)
            gaps.append(Named(name, gap, 0.0, told, model, method, differs=said != "ties"))
    names = dict.fromkeys(row.name for row in baselines.values() if row is not None)
    without = [model for model, row in baselines.items() if row is None]
    return points.forest(spec.title, " or ".join(names), gaps, without)


def _named(model: str, row: Row, models: Collection[str]) -> str:
    """A method and its rank, with its model where there are several."""
    return _with_model(model, row.name, models)


def _with_model(model: str, name: str, models: Collection[str]) -> str:
    return f"{model}, {name}" if len(models) > 1 else name


def _named_rows(rows: Sequence[Row]) -> Series:
    """By method and rank, with the model where there are several."""
    models = by_model(rows)
    return [(_named(model, row, models), row) for model, own in models.items() for row in own]


def tuning(spec: FigureSpec, rows: Sequence[Row]) -> Spec:
    """The loss on held-out rows by learning rate, a line a method, rank and model; the loss
    logarithmic where the highest is far from the lowest."""
    every = [(name, row) for name, row in _named_rows(rows) if _losses(row)]
    shown = _lowest([(name, row, fmean(_losses(row))) for name, row in every])
    drawn = [
        Point(name, row.cell.config.trainer.learning_rate, loss, None, None, told,
              row.cell.config.method.label)
        for name, row in shown
        for loss in [fmean(_losses(row))]
        for told in [{
            "Method": name,
            "Rate": scientific(row.cell.config.trainer.learning_rate),
            "Loss": f"{loss:.4f}", **told_runs(row),
        }]
    ]  # fmt: skip
    order = list(dict(shown))
    drawn.sort(key=lambda point: (order.index(point.series), point.x))
    ticks = sorted({point.x for point in drawn})
    top = _top([point for point in drawn if isfinite(point.y)])
    found = [point.y for point in drawn if point.y <= top]
    far = bool(found) and max(found) > FAR * min(found)
    title = "loss on held-out rows, nats"
    axes = Axes("learning rate", title, log_x=True, log_y=far, ticks=ticks, top=top)
    return lines(spec.title, axes, drawn, subtitle=_left_out(shown, every))


def _top(points: Sequence[Point]) -> float:
    """Above what losses would leave no room for the others, which a choice is made among: several
    times as far from the lowest of all as any line's second lowest."""
    by_series: dict[str, list[float]] = {}
    for point in points:
        by_series.setdefault(point.series, []).append(point.y)
    if not by_series:
        return inf
    second = max(sorted(own)[:2][-1] for own in by_series.values())
    lowest, highest = (end(point.y for point in points) for end in (min, max))
    return second if highest - lowest > BEYOND * (second - lowest) > 0 else inf


def _lowest(rows: Sequence[tuple[str, Row, float]]) -> Series:
    """As many lines as can be told apart, those whose loss is lowest; one that is no number is
    higher than any."""
    lowest: dict[str, float] = {}
    for name, _, loss in rows:
        known = loss if isfinite(loss) else inf
        lowest[name] = min(lowest.get(name, known), known)
    kept = sorted(lowest, key=lambda name: lowest[name])[: style.MOST_SERIES]
    return [(name, row) for name in kept for own, row, _ in rows if own == name]


def _losses(row: Row) -> list[float]:
    return [loss["loss"] for run in row.runs if (loss := held_out_loss(run)) is not None]


def losses(spec: FigureSpec, rows: Sequence[Row]) -> Spec:
    """The training loss by step, mean over the seeds, a line a method, rank and model."""
    every = [(name, row, curve) for name, row in _named_rows(rows) if (curve := _curve(row))]
    shown = _lowest([(name, row, curve[-1][1]) for name, row, curve in every])
    curves = {name: curve for name, _, curve in every}
    drawn = [
        Point(name, step, loss, None, None,
              {"Method": name, "Step": str(int(step)), "Loss": f"{loss:.4f}", **told_runs(row)},
              row.cell.config.method.label)
        for name, row in shown
        for step, loss in curves[name]
    ]  # fmt: skip
    axes = Axes("step", "training loss, nats", log_y=True)
    left_out = _left_out(shown, [(name, row) for name, row, _ in every])
    return lines(spec.title, axes, drawn, subtitle=left_out, marks=False)


def _curve(row: Row) -> list[tuple[float, float]]:
    """A row's curve, from the steps that all of its runs tell of."""
    by_step: dict[float, list[float]] = {}
    trainings = [run["training"] for run in row.runs]
    told = [training["loss"] for training in trainings if training and training.get("loss")]
    for curve in told:
        for step, loss in curve:
            by_step.setdefault(step, []).append(loss)
    common = sorted(step for step, values in by_step.items() if len(values) == len(told))
    every = -(-len(common) // SAMPLES) or 1
    kept = common[::-1][::every][::-1]  # with the last
    return [(step, fmean(by_step[step])) for step in kept]


def parameters(spec: FigureSpec, cells: Sequence[Cell]) -> Spec:
    """Figure 1. Both axes are logarithmic, so LoRA's straight line of slope one is its linear
    growth: the published caption calls it exponential."""
    from osora_bench.models import counting

    drawn = []
    models = list(dict.fromkeys(cell.config.model.label for cell in cells))
    names = list(dict.fromkeys(cell.config.method.name for cell in cells))
    for name, model in itertools.product(spec.methods or names, models):
        configs = [
            c.config for c in cells
            if (c.config.method.name, c.config.model.label) == (name, model)
        ]  # fmt: skip
        if not configs:
            continue
        ranks = [config.method.rank or 0 for config in configs]
        counts = [counting.count(config).trainable for config in configs]
        label = _with_model(model, configs[0].method.label, models)
        series = growth(label, ranks, counts)
        drawn += [
            Point(series, rank, count, None, None,
                  {"Method": label, "Rank": str(rank), "Trainable": f"{count:,}"},
                  configs[0].method.label)
            for rank, count in zip(ranks, counts, strict=True)
        ]  # fmt: skip
    ticks = sorted({point.x for point in drawn})
    axes = Axes("rank r", "trainable parameters", log_x=True, log_y=True, ticks=ticks)
    subtitle = "both axes logarithmic; every method is linear in r"
    return lines(spec.title, axes, drawn, subtitle=subtitle)


def growth(label: str, ranks: Sequence[int], counts: Sequence[int]) -> str:
    """`LoRA: 315,392 more for each rank`, from the counts themselves."""
    slope = (counts[-1] - counts[0]) // (ranks[-1] - ranks[0])
    return f"{label}: {slope:,} more for each rank"


def recorded_parameters(spec: FigureSpec, rows: Sequence[Row]) -> Spec:
    """Trainable parameters by rank, as the records tell them."""
    every = [
        (name, row) for name, row in _series(rows)
        if row.cell.config.method.rank is not None and cost_of(row, "params")
    ]  # fmt: skip
    shown = _methods(None, every)
    drawn = [
        Point(name, rank, count, None, None,
              {"Method": row.name, "Trainable": f"{count:,.0f}", **told_runs(row)},
              row.cell.config.method.label)
        for name, row in shown
        if (rank := row.cell.config.method.rank) and (count := cost_of(row, "params"))
    ]  # fmt: skip
    order = list(dict(shown))
    drawn.sort(key=lambda point: (order.index(point.series), point.x))
    ticks = sorted({point.x for point in drawn})
    axes = Axes("rank r", "trainable parameters", log_x=True, log_y=True, ticks=ticks)
    subtitle = "; ".join(filter(None, ["both axes logarithmic", _left_out(shown, every)]))
    return lines(spec.title, axes, drawn, subtitle=subtitle)


def by_set(spec: FigureSpec, rows: Sequence[Row]) -> Spec:
    """A group of bars a set, a bar a method and model, and the paper's where it has one."""
    printed = reference.load_reference(spec.reference) if spec.reference is not None else {}
    datasets = rows[0].cell.config.eval.datasets
    drawn = []
    for label, row in _series(rows):
        for dataset in datasets:
            values, key = row.values(dataset.name), row.key(dataset.label)
            if values:
                value = mean(values)
                bar = Bar(dataset.label, label, float(value), str(value), runs=_runs([row]))
                drawn.append(bar)
            if key in printed:
                paper = printed[key].value
                drawn.append(Bar(dataset.label, label, float(paper), paper, paper=True))
    empty = not any(row.shown for row in rows)
    return bars(spec.title, drawn, [d.label for d in datasets], empty=empty)
