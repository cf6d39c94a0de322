"""A table before it is rendered."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import pandas as pd

from osora_bench.reporting.numbers import mean
from osora_bench.reporting.reference import Key

LIMITED = "†"
"""Marks, on request, what is no full result of the experiment's own seeds."""
SOURCE = ""
"""Heading of the column that says whose numbers a line has."""
CORRECTED = "Avg. corrected"


@dataclass(frozen=True)
class Number:
    """A value of ours, or none yet, and where the paper's stands."""

    key: Key
    value: Decimal | None


@dataclass(frozen=True)
class Table:
    """A table as text, where its best values stand, and what a reader must know of it.

    `groups` holds, for each row, a heading that stands above the rows that share it. `numbers`
    holds by column what the text shows, or None where the grid has no cell.
    """

    name: str
    title: str
    frame: pd.DataFrame
    best: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    groups: list[str] | None = None
    numbers: dict[str, list[Number | None]] = field(default_factory=dict)


def best_marks(groups: Sequence[str], columns: dict[str, list[list[Decimal]]]) -> pd.DataFrame:
    """Where the highest mean of each column stands within each group of rows."""
    marks = {}
    for name, by_row in columns.items():
        means = [mean(values) if values else None for values in by_row]
        top: dict[str, Decimal] = {}
        for group, value in zip(groups, means, strict=True):
            if value is not None:
                top[group] = max(top.get(group, value), value)
        marks[name] = [v is not None and v == top[g] for g, v in zip(groups, means, strict=True)]
    return pd.DataFrame(marks, index=range(len(groups)))
