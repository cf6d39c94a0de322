"""records + layout -> tables: a pure function, with pandas and without torch.

Layouts, after the paper's tables:
    methods  rows model x method; `columns` says which columns, of COLUMNS, in the table's order
             (Tables 1, 2, 4 to 8); models without a column of their own head their rows
    ranks    rows rank, columns method, the value is Avg. (Table 3)
    rates, rows    the same with rows learning rate, or how many rows were trained on
    tuning, against, ranking, costs: in files of these names in layouts/
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import Experiment, TableSpec
from osora_bench.reporting.beside_paper import compared
from osora_bench.reporting.layouts import against, costs, ranking, tuning
from osora_bench.reporting.layouts.methods import by_method
from osora_bench.reporting.layouts.values import by_value
from osora_bench.reporting.reference import load_reference
from osora_bench.reporting.rows import VARIED, Row, recorded_rows, rows, selected
from osora_bench.reporting.table import TUNED, Table

COMPARING = ("against", "ranking")
"""Layouts that test each row beside others."""


def build_tables(
    experiment: Experiment,
    cells: Sequence[Cell],
    *,
    compare: bool = False,
    others: bool = False,
) -> tuple[list[Table], list[str]]:
    """Every table of an experiment from its ledger, and a line for each damaged record.

    Args:
        compare: show the paper's number and the difference below each of ours.
        others: let limited sets and other seeds in, marked.

    Raises:
        UserError: `compare`, and no table has results of the paper's to be set beside.
    """
    by_seed, damaged = recorded_rows(cells, others=others)
    tables = tables_of(experiment, by_seed)
    return compared(experiment, tables) if compare else tables, damaged


def tables_of(experiment: Experiment, by_seed: Sequence[Row]) -> list[Table]:
    """Every table of an experiment from the rows of its cells."""
    tables = []
    for name, spec in experiment.tables.items():
        parts = _apart(name, spec, by_seed)
        for part_name, part, part_rows in parts:
            table = _layout(part.layout)(part_name, part, part_rows)
            if part.layout in COMPARING:
                chosen = [row for row in by_seed if selected(row, spec)]
                elsewhere = _elsewhere(
                    chosen, part_rows, [n for n, _, _ in parts if n != part_name]
                )
                table = replace(table, notes=[*table.notes, *elsewhere])
            tables.append(table)
    return tables


def _elsewhere(chosen: Sequence[Row], shown: Sequence[Row], sisters: Sequence[str]) -> list[str]:
    """Which rows of a table its part does not compare, and where they stand."""
    here = {id(row) for row in shown}
    names = ", ".join(dict.fromkeys(row.name for row in chosen if id(row) not in here))
    if not names:
        return []
    if sisters:
        return [f"Compared in table {sisters[0]}, apart as settings given and tuned are: {names}."]
    return [
        "Not compared, since of these and the baseline one has settings as given, the other tuned "
        f"ones: {names}."
    ]


def check_tables(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raise UserError if a table cannot be made of an experiment's cells, whatever their records:
    a layout, column, baseline or reference that is not known."""
    without_records = rows(cells, {})
    for name, spec in experiment.tables.items():
        for part_name, part, part_rows in _apart(name, spec, without_records):
            _layout(part.layout)(part_name, part, part_rows)
        if spec.reference is not None:
            load_reference(spec.reference)


def _layout(name: str) -> Callable[[str, TableSpec, Sequence[Row]], Table]:
    layouts: dict[str, Callable[[str, TableSpec, Sequence[Row]], Table]] = {
        "methods": by_method,
        "ranks": partial(by_value, "r", VARIED["ranks"]),
        "rows": partial(by_value, "Rows", VARIED["rows"]),
        "rates": partial(by_value, "Rate", VARIED["rates"]),
        "tuning": tuning.tuning,
        "against": against.against,
        "ranking": ranking.ranking,
        "costs": costs.costs,
    }
    if name not in layouts:
        raise UserError(unknown("table layout", name, layouts))
    return layouts[name]


def _apart(
    name: str, spec: TableSpec, by_seed: Sequence[Row]
) -> list[tuple[str, TableSpec, list[Row]]]:
    """A table's rows; as two tables where some have settings as given and others tuned ones. A part
    without the table's baseline is left out, if the other has it."""
    chosen = [row for row in by_seed if selected(row, spec)]
    trained = [row.cell for row in chosen if row.cell.config.trains and not row.cell.is_trial]
    if len({cell.config.tuning is None for cell in trained}) < 2:
        return [(name, spec, chosen)]
    parts = []
    for suffix, told, tuned in (("", "settings as given", False), (TUNED, "tuned", True)):
        rows_of_part = [
            row
            for row in chosen
            if not row.cell.config.trains or (row.cell.config.tuning is not None) == tuned
        ]
        title = f"{spec.title}, {told}"
        parts.append((f"{name}{suffix}", replace(spec, title=title), rows_of_part))
    with_baseline = [part for part in parts if spec.baseline in _methods(part[2])]
    return with_baseline or parts


def _methods(rows: Sequence[Row]) -> set[str | None]:
    return {row.cell.config.method.name for row in rows}
