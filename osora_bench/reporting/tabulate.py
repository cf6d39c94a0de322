"""records + layout -> tables: a pure function, with pandas and without torch.

Layouts, after the paper's tables:
    methods  rows model x method; `columns` says which columns, of COLUMNS, in the table's order
             (Tables 1, 2, 4 to 8); models without a column of their own head their rows
    ranks    rows rank, columns method, the value is Avg. (Table 3)
    rates, rows    the same with rows learning rate, or how many rows were trained on
    tuning, against, ranking, costs: in files of these names in layouts/
"""

from collections.abc import Callable, Sequence
from functools import partial

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import Experiment, TableSpec
from osora_bench.reporting.beside_paper import compared
from osora_bench.reporting.layouts import against, costs, ranking, tuning
from osora_bench.reporting.layouts.methods import by_method
from osora_bench.reporting.layouts.values import by_value
from osora_bench.reporting.reference import load_reference
from osora_bench.reporting.rows import Row, recorded_rows, rows, selected
from osora_bench.reporting.table import Table


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
    tables = [
        _layout(spec.layout)(name, spec, [row for row in by_seed if selected(row, spec)])
        for name, spec in experiment.tables.items()
    ]
    return compared(experiment, tables) if compare else tables, damaged


def check_tables(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raise UserError if a table cannot be made of an experiment's cells, whatever their records:
    a layout, column, baseline or reference that is not known."""
    without_records = rows(cells, {})
    for name, spec in experiment.tables.items():
        _layout(spec.layout)(name, spec, [r for r in without_records if selected(r, spec)])
        if spec.reference is not None:
            load_reference(spec.reference)


def _layout(name: str) -> Callable[[str, TableSpec, Sequence[Row]], Table]:
    layouts: dict[str, Callable[[str, TableSpec, Sequence[Row]], Table]] = {
        "methods": by_method,
        "ranks": partial(by_value, "r", lambda config: config.method.rank),
        "rows": partial(by_value, "Rows", lambda config: config.task.max_rows),
        "rates": partial(by_value, "Rate", lambda config: config.trainer.learning_rate),
        "tuning": tuning.tuning,
        "against": against.against,
        "ranking": ranking.ranking,
        "costs": costs.costs,
    }
    if name not in layouts:
        raise UserError(unknown("table layout", name, layouts))
    return layouts[name]
