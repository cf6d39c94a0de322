"""Layout `costs`: what each method scores and what it costs."""

from collections.abc import Sequence

import pandas as pd

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.experiments import TableSpec
from osora_bench.reporting.costs import COSTS, cost_of
from osora_bench.reporting.layouts.against import apart
from osora_bench.reporting.layouts.notes import edge_note
from osora_bench.reporting.numbers import mean
from osora_bench.reporting.reference import AVERAGE
from osora_bench.reporting.rows import Row, by_model
from osora_bench.reporting.table import Table


def costs(name: str, spec: TableSpec, all_rows: Sequence[Row]) -> Table:
    """A row a method, each model's apart: Avg., and the costs that `columns` names (all). Bold: no
    other row of the model costs less of it, among those that train.

    Raises:
        UserError: a cost that is not known.
    """
    columns = spec.columns or list(COSTS)
    for column in columns:
        if column not in COSTS:
            raise UserError(f"table {name}: {unknown('cost', column, COSTS)}")
    models = by_model(all_rows)
    groups = [model for model, of_model in models.items() for _ in of_model]
    rows = [row for of_model in models.values() for row in of_model]
    frame: dict[str, list[str]] = {
        "Method": [row.cell.config.method.label + row.edge for row in rows],
        "r": [str(row.cell.config.method.rank or "") for row in rows],
        AVERAGE: [str(mean(a)) if (a := row.averages()) else "" for row in rows],
    }
    marks: dict[str, list[bool]] = {heading: [False] * len(rows) for heading in frame}
    for column in columns:
        kind, values = COSTS[column], [cost_of(row, column) for row in rows]
        frame[kind.heading] = ["" if v is None else kind.form.format(v) for v in values]
        trained = [
            value if row.cell.config.trains else None
            for row, value in zip(rows, values, strict=True)
        ]
        marks[kind.heading] = _least(groups, trained, less=kind.less)
    table = pd.DataFrame(frame, dtype=str)
    below = [*_notes(rows), *edge_note(rows)]
    best = pd.DataFrame(marks, columns=table.columns)
    of = dict.fromkeys(table.columns[2:], rows)
    return Table(name, spec.title, table, best, below, apart(groups), of=of)


def _least(groups: Sequence[str], values: Sequence[float | None], *, less: bool) -> list[bool]:
    """Where the best of each group is."""
    best: dict[str, float] = {}
    for group, value in zip(groups, values, strict=True):
        if value is not None:
            best[group] = (min if less else max)(best.get(group, value), value)
    return [v is not None and v == best[g] for g, v in zip(groups, values, strict=True)]


def _notes(rows: Sequence[Row]) -> list[str]:
    """What the columns hold, and why some are blank."""
    runs = [run for row in rows if row.cell.config.trains for run in row.runs]
    lines = [
        "Medians over the seeds. Start: of the adapter, with its decompositions unless the store "
        "has them; training: the loop alone, all its parts where it was interrupted; tokens "
        "without padding; memory: the most above that of the base model; frozen: what the adapter "
        "holds and does not train. MB are 10^6 bytes. Times are of the machines that the records "
        "name, and comparable on one of them only."
    ]
    if any(run["config"]["trainer"].get("processes", 1) > 1 for run in runs):
        lines.append(
            "Where processes share the model: seconds of the first, and its memory above its part "
            "of model and adapter."
        )
    told = [run["measured"].get("training") for run in runs]
    if any(costs is None or costs["seconds"] is None for costs in told):
        lines.append(
            "Blank: not recorded, as before costs were kept, or the seconds of a training whose "
            "first part was interrupted then."
        )
    return lines
