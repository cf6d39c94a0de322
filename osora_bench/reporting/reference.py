"""The paper's printed numbers, and what arithmetic says of them. Imports no torch.

results/reference/<artefact>.csv has one line for each printed number: the row of the table that it
stands in, the model, method and rank of that row by their names in conf/, the column's heading, and
the value as printed (parameters without commas).
"""

import csv
from dataclasses import dataclass
from decimal import Decimal

from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.reporting.numbers import mean, percent

AVERAGE, PARAMS = "Avg.", "Params"
SETTINGS = ("r", "η", "Batch")
"""Columns of Tables 7 and 8, which hold no results."""


@dataclass(frozen=True)
class Key:
    """Where a number belongs: what was run, and the column that it stands in."""

    model: str
    method: str
    rank: int | None
    column: str


@dataclass(frozen=True)
class Printed:
    """One number as the paper prints it, and its row in the table (1 for the first)."""

    key: Key
    row: int
    value: str


def names() -> list[str]:
    """The artefacts that have a reference."""
    return sorted(p.stem for p in paths.REFERENCE.glob("*.csv"))


def load_reference(name: str) -> dict[Key, Printed]:
    """The printed numbers of one artefact (`table1`, ..., `figure3`), in its order.

    Raises:
        UserError: no such artefact.
    """
    file = paths.REFERENCE / f"{name}.csv"
    if not file.is_file():
        raise UserError(unknown("reference", name, names()))
    with file.open(encoding="utf-8", newline="") as stream:
        lines = [
            Printed(
                Key(line["model"], line["method"], int(line["rank"]), line["column"]),
                int(line["row"]),
                line["value"],
            )
            for line in csv.DictReader(stream)
        ]
    return {line.key: line for line in lines}


def possible(value: Decimal, n: int) -> bool:
    """Whether some k of n questions, in per cent and rounded half up, prints as `value`."""
    nearest = int(value * n / 100)
    return any(percent(k, n) == value for k in (nearest - 1, nearest, nearest + 1, nearest + 2))


@dataclass(frozen=True)
class Average:
    """An average as printed, and the mean of its row's printed accuracies."""

    key: Key
    printed: Decimal
    computed: Decimal


def averages(name: str) -> list[Average]:
    """Every Avg. of a table beside the mean, rounded half up, of the accuracies in its row."""
    printed = load_reference(name)
    result = []
    for key, number in printed.items():
        if key.column == AVERAGE:
            accuracies = [
                Decimal(other.value)
                for other in printed.values()
                if other.row == number.row and other.key.column not in (AVERAGE, PARAMS)
            ]
            result.append(Average(key, Decimal(number.value), mean(accuracies)))
    return result


def audit() -> list[str]:
    """A line for each average that the paper prints otherwise than its own cells give."""
    return [
        f"{name}: {a.key.model} {a.key.method}: printed {a.printed}, its cells give {a.computed}"
        for name in names()
        for a in averages(name)
        if a.printed != a.computed
    ]
