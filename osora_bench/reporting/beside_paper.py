"""A table beside the paper's numbers."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pandas as pd

from osora_bench.common.errors import UserError
from osora_bench.planning.experiments import Experiment
from osora_bench.reporting.numbers import NOT_IN_GRID
from osora_bench.reporting.reference import Key, Printed, load_reference
from osora_bench.reporting.table import SOURCE, TUNED, Number, Table


def compared(experiment: Experiment, tables: Sequence[Table]) -> list[Table]:
    specs = [experiment.tables[table.name.removesuffix(TUNED)] for table in tables]
    references = [spec.reference for spec in specs]
    if not any(name and table.numbers for table, name in zip(tables, references, strict=True)):
        raise UserError("compare=paper: the paper has no results to stand beside these tables")
    return [
        beside(table, load_reference(name)) if name and table.numbers else table
        for table, name in zip(tables, references, strict=True)
    ]


def beside(table: Table, reference: dict[Key, Printed]) -> Table:
    """Each row three times: ours, the paper's numbers, and ours less the paper's."""
    texts: list[dict[str, str]] = []
    marked: list[list[dict[str, bool]]] = [[], []]  # best, ties
    for index, row in enumerate(table.frame.to_dict("records")):
        paper = {
            column: _printed(number, reference)
            for column, numbers in table.numbers.items()
            if (number := numbers[index]) is not None
        }
        differences = {c: _difference(table.numbers[c][index], value) for c, value in paper.items()}
        blank = {c: NOT_IN_GRID for c in table.numbers if c not in paper}
        for source, values in (("ours", row), ("paper", paper), ("difference", differences)):
            texts.append({**row, **blank, SOURCE: source, **values})
            for of, marks in zip((table.best, table.ties), marked, strict=True):
                own = of.iloc[index].to_dict() if of is not None and source == "ours" else {}
                marks.append({**dict.fromkeys(row, False), SOURCE: False, **own})
    order = list(table.frame)
    order.insert(min(order.index(c) for c in table.numbers), SOURCE)
    groups = None if table.groups is None else [g for g in table.groups for _ in range(3)]
    return replace(
        table,
        frame=pd.DataFrame(texts, columns=order),
        best=pd.DataFrame(marked[0], columns=order),
        ties=pd.DataFrame(marked[1], columns=order),
        groups=groups,
        title=f"{table.title}, beside the paper's",
    )


def _printed(number: Number, reference: dict[Key, Printed]) -> str:
    return reference[number.key].value if number.key in reference else ""


def _difference(ours: Number | None, paper: str) -> str:
    return (
        ""
        if ours is None or ours.value is None or not paper
        else f"{ours.value - Decimal(paper):+}"
    )
