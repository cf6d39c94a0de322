"""Layouts `ranks` and `rates`: rows the values of one setting, columns methods (Table 3)."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pandas as pd

from osora_bench.planning.config import Config
from osora_bench.planning.experiments import TableSpec
from osora_bench.reporting.layouts.against import apart
from osora_bench.reporting.layouts.notes import notes_below
from osora_bench.reporting.numbers import NOT_IN_GRID, mean_or_none
from osora_bench.reporting.reference import AVERAGE
from osora_bench.reporting.rows import Row, by_model, numbers_of
from osora_bench.reporting.statistics import Answers
from osora_bench.reporting.table import Table, best_marks, tie_marks


def by_value(
    heading: str,
    value_of: Callable[[Config], Any],
    name: str,
    spec: TableSpec,
    all_rows: Sequence[Row],
) -> Table:
    """Table 3: a row a rank, each model's apart, a column a method, Avg. inside; "-" where the grid
    has no such cell.

    `value_of` takes what varies down the rows from a configuration, rank or another value; cells
    that have none are left out.
    """
    rows = [row for row in all_rows if value_of(row.cell.config) is not None]
    labels = {r.cell.config.method.name: r.cell.config.method.label for r in rows}
    lines, by_column = _grid(rows, value_of, spec.methods or list(labels))
    models = [model for model, _ in lines]
    of = {labels.get(method, method): column for method, column in by_column.items()}
    averages = {
        label: [row.averages() if row else [] for row in column] for label, column in of.items()
    }
    answers: dict[str, list[Answers | None]] = {
        label: [row.answers(row.datasets) if row else None for row in column]
        for label, column in of.items()
    }
    frame = {heading: [str(value) for _, value in lines]}
    frame |= {label: _texts(column, averages[label]) for label, column in of.items()}
    numbers = {
        label: numbers_of(column, _only_set(rows), [mean_or_none(v) for v in averages[label]])
        for label, column in of.items()
    }
    best = best_marks(models, averages).reindex(columns=list(frame), fill_value=False)
    ties = tie_marks(models, best, answers)
    notes = notes_below(rows)
    table = pd.DataFrame(frame)
    return Table(name, spec.title, table, best, notes, apart(models), numbers, ties, of)


def _grid(
    rows: Sequence[Row], value_of: Callable[[Config], Any], methods: Sequence[str]
) -> tuple[list[tuple[str, Any]], dict[str, list[Row | None]]]:
    """The lines, a model and a value each, and by method the row of each line; None where the grid
    has no such cell."""
    models = by_model(rows)
    lines = [
        (model, value)
        for model, of_model in models.items()
        for value in sorted({value_of(row.cell.config) for row in of_model})
    ]
    cells = {
        (model, row.cell.config.method.name, value_of(row.cell.config)): row
        for model, of_model in models.items()
        for row in of_model
    }
    return lines, {
        method: [cells.get((model, method, value)) for model, value in lines] for method in methods
    }


def _texts(column: Sequence[Row | None], averages: Sequence[list[Decimal]]) -> list[str]:
    return [
        _with_edge(row, row.show(values)) if row else NOT_IN_GRID
        for row, values in zip(column, averages, strict=True)
    ]


def _with_edge(row: Row, text: str) -> str:
    return text + row.edge if text else text


def _only_set(rows: Sequence[Row]) -> str:
    """What the average is an average of: one set goes by its own name."""
    sets = rows[0].cell.config.eval.datasets if rows else []
    return sets[0].label if len(sets) == 1 else AVERAGE
