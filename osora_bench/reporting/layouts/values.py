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
from osora_bench.reporting.table import Number, Table, best_marks, tie_marks


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
    lines = [
        (model, value)
        for model, of_model in by_model(rows).items()
        for value in sorted({value_of(r.cell.config) for r in of_model})
    ]
    models = [model for model, _ in lines]
    cells = {
        (model, r.cell.config.method.name, value_of(r.cell.config)): r
        for model, of_model in by_model(rows).items()
        for r in of_model
    }
    frame: dict[str, list[str]] = {heading: [str(value) for _, value in lines]}
    columns: dict[str, list[list[Decimal]]] = {}
    numbers: dict[str, list[Number | None]] = {}
    answers: dict[str, list[Answers | None]] = {}
    of: dict[str, Sequence[Row | None]] = {}
    for method in spec.methods or list(labels):
        method_rows = [cells.get((model, method, value)) for model, value in lines]
        label = labels.get(method, method)
        of[label] = method_rows
        answers[label] = [row.answers(row.datasets) if row else None for row in method_rows]
        columns[label] = [row.averages() if row else [] for row in method_rows]
        frame[label] = [
            _with_edge(row, row.show(averages)) if row else NOT_IN_GRID
            for row, averages in zip(method_rows, columns[label], strict=True)
        ]
        numbers[label] = numbers_of(
            method_rows, _only_set(rows), [mean_or_none(v) for v in columns[label]]
        )
    best = best_marks(models, columns).reindex(columns=list(frame), fill_value=False)
    ties = tie_marks(models, best, answers)
    notes = notes_below(rows)
    table = pd.DataFrame(frame)
    return Table(name, spec.title, table, best, notes, apart(models), numbers, ties, of)


def _with_edge(row: Row, text: str) -> str:
    return text + row.edge if text else text


def _only_set(rows: Sequence[Row]) -> str:
    """What the average is an average of: one set goes by its own name."""
    sets = rows[0].cell.config.eval.datasets if rows else []
    return sets[0].label if len(sets) == 1 else AVERAGE
