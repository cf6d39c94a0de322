"""Layout `methods`: rows model x method (Tables 1, 2, 4 to 8)."""

from collections.abc import Callable, Sequence
from decimal import Decimal

import pandas as pd

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.experiments import TableSpec
from osora_bench.reporting.layouts.notes import notes_below, rules_below
from osora_bench.reporting.numbers import mean_count, mean_or_none, scientific
from osora_bench.reporting.reference import AVERAGE, PARAMS, SETTINGS
from osora_bench.reporting.rows import Row, limit_mark, numbers_of
from osora_bench.reporting.statistics import Answers
from osora_bench.reporting.table import CORRECTED, Table, best_marks, tie_marks

COLUMNS = {
    "model": "Model",
    "method": "Method",
    "rank": SETTINGS[0],
    "learning_rate": SETTINGS[1],
    "batch_size": SETTINGS[2],
    "params": PARAMS,
    "datasets": "",
    "average": AVERAGE,
    "unread": "Unread",
    "corrected": CORRECTED,
}
"""Columns of the layout `methods` and their headings; a suite's datasets head their own."""


def by_method(name: str, spec: TableSpec, all_rows: Sequence[Row]) -> Table:
    """Tables 1, 2 and 4 to 8: a row a method, grouped by model; the columns of `spec`."""
    rows = _ordered(all_rows, spec)
    columns = spec.columns or _usual_columns(rows, spec)
    for column in columns:
        if column not in COLUMNS:
            raise UserError(f"table {name}: {unknown('column', column, COLUMNS)}")
    models = [row.cell.config.model.label for row in rows]
    frame: dict[str, list[str]] = {}
    scores: dict[str, list[list[Decimal]]] = {}
    for column in columns:
        if column in ("datasets", "average", "corrected"):
            by_heading = _scores(rows, column)
            scores |= by_heading
            frame |= {
                label: [r.show(v) for r, v in zip(rows, values, strict=True)]
                for label, values in by_heading.items()
            }
        else:
            heading = spec.headings.get(column, COLUMNS[column])
            frame[heading] = [_setting(row, column) for row in rows]
    best = best_marks(models, scores).reindex(columns=list(frame), fill_value=False)
    ties = tie_marks(models, best, _answers(rows, columns))
    numbers = {c: numbers_of(rows, c, [mean_or_none(v) for v in scores[c]]) for c in scores}
    if "params" in columns:
        counts = [Decimal(text) if text else None for text in frame[PARAMS]]
        numbers[PARAMS] = numbers_of(rows, PARAMS, counts)
    groups = models if "model" not in columns and len(set(models)) > 1 else None
    notes = notes_below(rows, by_set="datasets" in columns) if scores else []
    notes += rules_below(rows) if "corrected" in columns else []
    notes += _budget(spec, rows)
    of = dict.fromkeys([c for c in frame if c in numbers or c == COLUMNS["unread"]], rows)
    return Table(name, spec.title, pd.DataFrame(frame), best, notes, groups, numbers, ties, of)


def _ordered(rows: Sequence[Row], spec: TableSpec) -> list[Row]:
    """By model, then by method: both in the order of the experiment, or methods in the table's."""
    models = list(dict.fromkeys(row.cell.config.model.name for row in rows))
    methods = spec.methods or list(dict.fromkeys(r.cell.config.method.name for r in rows))

    def position(row: Row) -> tuple[int, int]:
        config = row.cell.config
        return models.index(config.model.name), methods.index(config.method.name)

    return sorted(rows, key=position)


def _usual_columns(rows: Sequence[Row], spec: TableSpec) -> list[str]:
    ranks = {row.cell.config.method.rank for row in rows}
    rank = ["rank"] if len(ranks) > 1 and spec.select is not None else []
    params = ["params"] if spec.params else []
    return ["model", "method", *rank, *params, "datasets", "average"]


def _scores(rows: Sequence[Row], column: str) -> dict[str, list[list[Decimal]]]:
    if not rows:
        return {}
    if column != "datasets":
        corrected = column == "corrected"
        return {COLUMNS[column]: [row.averages(corrected=corrected) for row in rows]}
    suite = rows[0].cell.config.eval
    return {
        f"{d.label}{limit_mark(suite, d)}": [row.values(d.name) for row in rows]
        for d in suite.datasets
    }


def _budget(spec: TableSpec, rows: Sequence[Row]) -> list[str]:
    """How near each method's parameters are to the number that its rank was chosen for."""
    if spec.budget is None:
        return []
    trained = [(row.name, int(n)) for row in rows if row.cell.config.trains and (n := _params(row))]
    near = ", ".join(f"{name} {100 * (n / spec.budget - 1):+.1f} %" for name, n in trained)
    return (
        [f"Ranks are those nearest to {spec.budget:,} trained parameters: {near}."] if near else []
    )


def _answers(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, list[Answers | None]]:
    """What is behind the scores of `_scores`, by heading."""
    if not rows:
        return {}
    suite = rows[0].cell.config.eval
    names = [d.name for d in suite.datasets]
    by_heading: dict[str, list[Answers | None]] = {}
    if "datasets" in columns:
        for d in suite.datasets:
            by_heading[f"{d.label}{limit_mark(suite, d)}"] = [row.answers([d.name]) for row in rows]
    for column in ("average", "corrected"):
        if column in columns:
            corrected = column == "corrected"
            answers = [row.answers(names, corrected=corrected) for row in rows]
            by_heading[COLUMNS[column]] = answers
    return by_heading


def _setting(row: Row, column: str) -> str:
    config = row.cell.config
    settings: dict[str, Callable[[], str]] = {
        "model": lambda: str(config.model.label),
        "method": lambda: config.method.label + row.edge,
        "rank": lambda: str(config.method.rank or ""),
        "learning_rate": lambda: scientific(config.trainer.learning_rate) if config.trains else "",
        "batch_size": lambda: str(config.trainer.batch_size),
        "params": lambda: _params(row),
        "unread": lambda: mean_count(row.unread()),
    }
    return settings[column]()


def _params(row: Row) -> str:
    if not row.cell.config.trains:
        return "0"
    return str(row.shown[0]["parameters"].get("trainable", "")) if row.shown else ""
