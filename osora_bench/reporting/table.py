"""A table before it is rendered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

import pandas as pd

from osora_bench.reporting.numbers import mean
from osora_bench.reporting.reference import Key
from osora_bench.reporting.statistics import ALPHA, Answers, adjusted_pairs

if TYPE_CHECKING:
    from osora_bench.reporting.rows import Row

LIMITED = "†"
"""Marks, on request, what is no full result of the experiment's own seeds."""
SOURCE = ""
"""Heading of the column that says whose numbers a line has."""
TUNED = "-tuned"
"""Ends the name of a table's second part, where some settings are as given and others tuned."""
EDGE = "‡"
"""Marks settings that were chosen at the end of those tried."""
TIED = "≈"
"""Marks what no test tells from the best."""
CORRECTED = "Avg. corrected"


@dataclass(frozen=True)
class Number:
    """A value of ours, or none yet, and where the paper's stands."""

    key: Key
    value: Decimal | None


@dataclass(frozen=True)
class Table:
    """A table as text, where its best values stand, and what a reader must know of it.

    `ties` are values below the best that no test tells from it. `groups` holds, for each row, a
    heading that stands above the rows that share it. `numbers` holds by column what the text shows,
    or None where the grid has no cell; `of` by column the row whose runs each text is of, and
    `beside` by column the row that it is held against.
    """

    name: str
    title: str
    frame: pd.DataFrame
    best: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    groups: list[str] | None = None
    numbers: dict[str, list[Number | None]] = field(default_factory=dict)
    ties: pd.DataFrame | None = None
    of: "Mapping[str, Sequence[Row | None]]" = field(default_factory=dict)
    beside: "Mapping[str, Sequence[Row | None]]" = field(default_factory=dict)


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


def tie_marks(
    groups: Sequence[str], best: pd.DataFrame, columns: dict[str, list[Answers | None]]
) -> pd.DataFrame:
    """Where a value of a column is not significantly below the best of its group: by the paired
    tests of all pairs of the group, with Holm's adjustment.

    Args:
        columns: the answers behind each value; None: not all questions were asked.
    """
    marks = pd.DataFrame(False, index=best.index, columns=best.columns)
    for column, answers in columns.items():
        for group in dict.fromkeys(groups):
            indexes = [i for i, g in enumerate(groups) if g == group and answers[i] is not None]
            leaders = [i for i in indexes if best.loc[i, column]]
            if not leaders:
                continue
            compared = [a for i in indexes if (a := answers[i]) is not None]
            p = adjusted_pairs(compared)[indexes.index(leaders[0])]
            tied = [i for i, value in zip(indexes, p, strict=True) if value >= ALPHA]
            marks.loc[[i for i in tied if i not in leaders], column] = True
    return marks
