"""Layout `costs`: what each method scores and what it costs."""

from collections.abc import Sequence

import pandas as pd

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.experiments import TableSpec
from osora_bench.reporting.costs import COSTS, cost_of
from osora_bench.reporting.numbers import mean
from osora_bench.reporting.reference import AVERAGE
from osora_bench.reporting.rows import Row
from osora_bench.reporting.table import Table


def costs(name: str, spec: TableSpec, rows: Sequence[Row]) -> Table:
    """A row a method: Avg., and the costs that `columns` names (all). Bold: no other row costs less
    of it, among those that train.

    Raises:
        UserError: a cost that is not known.
    """
    columns = spec.columns or list(COSTS)
    for column in columns:
        if column not in COSTS:
            raise UserError(f"table {name}: {unknown('cost', column, COSTS)}")
    frame: dict[str, list[str]] = {
        "Method": [row.cell.config.method.label for row in rows],
        "r": [str(row.cell.config.method.rank or "") for row in rows],
        AVERAGE: [str(mean(a)) if (a := row.averages()) else "" for row in rows],
    }
    marks: dict[str, list[bool]] = {heading: [False] * len(rows) for heading in frame}
    for column in columns:
        kind, values = COSTS[column], [cost_of(row, column) for row in rows]
        frame[kind.heading] = ["" if v is None else kind.form.format(v) for v in values]
        trained = [
            value
            for row, value in zip(rows, values, strict=True)
            if value is not None and row.cell.config.trains
        ]
        best = (min if kind.less else max)(trained, default=None)
        marks[kind.heading] = [
            value is not None and value == best and row.cell.config.trains
            for row, value in zip(rows, values, strict=True)
        ]
    table = pd.DataFrame(frame, dtype=str)
    best_of_column = pd.DataFrame(marks, columns=table.columns)
    of = dict.fromkeys(table.columns[2:], rows)
    return Table(name, spec.title, table, best_of_column, _notes(rows), of=of)


def _notes(rows: Sequence[Row]) -> list[str]:
    """What the numbers are of, and why some are blank."""
    notes = [
        "Medians over the seeds. Start: of the adapter, with its decompositions unless the store "
        "has them; training: the loop alone; tokens without padding; memory: the most above that "
        "of the base model; frozen: what the adapter holds and does not train. Times are of the "
        "machines that the records name, and comparable on one of them only."
    ]
    if any(
        run
        for row in rows
        for run in row.runs
        if "training" not in run["measured"] and row.cell.config.trains
    ):
        notes.append(
            "Blank: not recorded, as before costs were kept, or where several processes trained."
        )
    return notes
