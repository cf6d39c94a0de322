"""Tables as the page shows them: every number leads to its records, with interval and reference."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from osora_bench.reporting.numbers import grouped
from osora_bench.reporting.reference import AVERAGE, PARAMS, Key, Printed
from osora_bench.reporting.rows import Row
from osora_bench.reporting.statistics import mean
from osora_bench.reporting.table import CORRECTED, LIMITED, TIED, Table

FACETS = ("model", "method", "rank", "task")
"""What tables are filtered by."""


@dataclass(frozen=True)
class Cell:
    """A text of a table, what stands smaller below it, and the run ids that it is of."""

    text: str
    below: str = ""
    best: bool = False
    runs: str = ""


@dataclass(frozen=True)
class Column:
    """A heading; `kind`: `number`, and `name` of what a line is of, or both; `method` where the
    column is of one method alone."""

    heading: str
    kind: str
    method: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a table and what it is filtered by."""

    cells: list[Cell]
    facets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """A table for the page."""

    name: str
    title: str
    columns: list[Column]
    lines: list[Line]
    notes: list[str]


def view(table: Table, reference: dict[Key, Printed]) -> View:
    """A table with what the page adds: intervals, questions and seeds, the paper's numbers."""
    headings = _average_early(table)
    of_methods = _columns_of_methods(table)
    texts = table.frame.astype(str).to_dict("records")
    lines = []
    counted = AVERAGE in table.numbers and not of_methods
    for index, row in enumerate(texts):
        cells = [_cell(table, heading, index, row[heading], reference) for heading in headings]
        shown = _shown(table, index)
        cells += _counts(shown) if counted else []
        group = [] if table.groups is None else [Cell(table.groups[index])]
        lines.append(Line(group + cells, _facets(shown, of_methods)))
    columns = [Column(h, _kind(table, h), of_methods.get(h, "")) for h in headings]
    if counted:
        columns += [Column("n", "number"), Column("Seeds", "number")]
    if table.groups is not None:
        columns.insert(0, Column("Model", ""))
    return View(table.name, table.title, columns, lines, table.notes)


def _average_early(table: Table) -> list[str]:
    """The headings, the average before all other numbers: a narrow screen shows few columns."""
    headings = [str(heading) for heading in table.frame.columns]
    if AVERAGE not in headings:
        return headings
    headings.remove(AVERAGE)
    first = next((i for i, h in enumerate(headings) if h in table.of), len(headings))
    return [*headings[:first], AVERAGE, *headings[first:]]


NAME = "Method"
"""Heading of the column that says what a line is of; in tables without it the first does."""


def _kind(table: Table, heading: str) -> str:
    headings = [str(each) for each in table.frame.columns]
    name = NAME if NAME in headings else headings[0]
    texts = [text for text in table.frame[heading].astype(str) if text]
    number = heading in table.of or (bool(texts) and all(_is_number(text) for text in texts))
    return " ".join(["number"] * number + ["name"] * (heading == name))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _columns_of_methods(table: Table) -> dict[str, str]:
    """The methods of columns, where each is of one and they are of different ones."""
    found = {}
    for heading, rows in table.of.items():
        labels = {row.cell.config.method.label for row in rows if row is not None}
        if len(labels) != 1:
            return {}
        found[str(heading)] = labels.pop()
    return found if len(set(found.values())) > 1 else {}


def _shown(table: Table, index: int) -> Row | None:
    rows = (rows[index] for rows in table.of.values())
    return next((row for row in rows if row is not None), None)


def _cell(table: Table, heading: str, index: int, text: str, reference: dict[Key, Printed]) -> Cell:
    rows = table.of.get(heading)
    row = None if rows is None else rows[index]
    if rows is not None:
        text = grouped(text)
    if row is None or not text:
        return Cell(text, _paper(table, heading, index, reference))
    if table.ties is not None and table.ties.iloc[index][heading]:
        text += f" {TIED}"
    below = [_interval(table, heading, row), _paper(table, heading, index, reference)]
    best = bool(table.best.iloc[index][heading])
    against = table.beside.get(heading)
    compared = None if against is None else against[index]
    runs = _runs([row] if compared is None else [compared, row])
    return Cell(text, "; ".join(part for part in below if part), best, runs)


def _runs(rows: Sequence[Row]) -> str:
    return ",".join(run["run_id"] for row in rows for run in row.shown)


def _interval(table: Table, heading: str, row: Row) -> str:
    """The 95 % interval of a score."""
    if heading not in table.numbers or heading == PARAMS:
        return ""
    by_label = {dataset.label: dataset.name for dataset in row.cell.config.eval.datasets}
    name = by_label.get(heading.removesuffix(LIMITED))
    answers = row.answers(row.datasets if name is None else [name], corrected=heading == CORRECTED)
    return "" if answers is None else mean(answers).told


def _paper(table: Table, heading: str, index: int, reference: dict[Key, Printed]) -> str:
    """The paper's number and the difference of ours to it."""
    numbers = table.numbers.get(heading)
    number = None if numbers is None else numbers[index]
    if number is None or number.key not in reference:
        return ""
    printed = reference[number.key].value
    if number.value is None:
        return f"paper {printed}"
    return f"paper {printed} ({number.value - Decimal(printed):+})"


def _counts(row: Row | None) -> list[Cell]:
    """How many questions and seeds a line is of."""
    if row is None or not row.shown:
        return [Cell(""), Cell("")]
    questions = sum(score["n"] for score in row.shown[0]["scores"].values())
    runs = _runs([row])
    return [Cell(f"{questions:,}", runs=runs), Cell(str(len(row.shown)), runs=runs)]


def _facets(row: Row | None, of_methods: dict[str, str]) -> dict[str, str]:
    if row is None:
        return {}
    config = row.cell.config
    facets = {
        "model": config.model.label,
        "method": config.method.label,
        "rank": "" if config.method.rank is None else str(config.method.rank),
        "task": config.task.label,
    }
    if of_methods:
        del facets["method"]
    return facets


def choices(views: Sequence[View]) -> dict[str, list[str]]:
    """What there is to filter by, for each facet that has more than one value."""
    found: dict[str, dict[str, None]] = {facet: {} for facet in FACETS}
    for table in views:
        for column in table.columns:
            found["method"] |= {column.method: None} if column.method else {}
        for line in table.lines:
            for facet, value in line.facets.items():
                found[facet] |= {value: None} if value else {}
    ranks = sorted(found["rank"], key=int)
    values = {facet: list(by_value) for facet, by_value in found.items()} | {"rank": ranks}
    return {facet: names for facet, names in values.items() if len(names) > 1}
