"""The report: what experiments ask, what came out, and every record behind it, in one page."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import Experiment
from osora_bench.records.record import Ledger, read_ledger
from osora_bench.records.schema import Record
from osora_bench.reporting import figures, tabulate
from osora_bench.reporting.charts import style
from osora_bench.reporting.html import findings, page, plots, records, tables
from osora_bench.reporting.reference import load_reference
from osora_bench.reporting.rows import rows as rows_of
from osora_bench.reporting.table import TUNED

SCRIPTS = ("grid.js", "filters.js", "records.js", "charts.js", "watch.js", "start.js")


@dataclass(frozen=True)
class Progress:
    """How far an experiment that runs has come: cells by state, what is left in words, and a line
    for each that runs, waits or failed."""

    states: dict[str, int]
    left: str
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """One experiment of a report, with its cells; `progress` where it is told how it runs,
    `options` with which the report was asked for and its cells are run."""

    experiment: Experiment
    cells: Sequence[Cell]
    progress: Progress | None = None
    options: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """One experiment as the page shows it."""

    name: str
    title: str
    question: str
    answer: str
    runs: str
    coverage: str
    hint: str
    progress: Progress | None
    places: list[plots.Place]
    tables: list[tables.View]
    choices: dict[str, list[str]]


def read_ledgers(folders: Sequence[Path]) -> Ledger:
    """The records of several ledgers, and the damaged ones without their folders."""
    found: dict[str, Record] = {}
    damaged: list[str] = []
    for folder in folders:
        ledger = read_ledger(folder)
        found |= ledger.records
        damaged += [line.replace(f"{folder}/", "") for line in ledger.damaged]
    return Ledger(found, damaged)


def report(parts: Sequence[Part], ledger: Ledger, *, refresh: int | None = None) -> str:
    """The page of some experiments and of all records of a ledger: a pure function of both.

    Args:
        refresh: seconds after which the page of what still runs reads itself anew.
    """
    found = ledger.records
    methods = figures.methods_of([cell for part in parts for cell in part.cells])
    sections = [_section(part, found, methods) for part in parts]
    cells: dict[str, list[tuple[str, Cell]]] = {}
    for part in parts:
        for cell in part.cells:
            cells.setdefault(cell.run_id, []).append((part.experiment.name, cell))
    data = records.packed(found.values(), cells)
    older = sum(entry["numerics"] is None for entry in data["records"].values())
    strangers = sum(run_id not in cells for run_id in found)
    specs = [
        [[_untitled(plot.spec) for plot in place.plots] for place in section.places]
        for section in sections
    ]
    return page.render(
        "report.html",
        SCRIPTS,
        {**data, "charts": specs, "themes": [style.theme(style.LIGHT), style.theme(style.DARK)]},
        sections=sections,
        count=len(found),
        damaged=ledger.damaged,
        older=older,
        strangers=strangers,
        refresh=refresh,
        licences=page.static("licences.txt"),
    )


def _untitled(spec: style.Spec) -> style.Spec:
    """A chart whose title the page says above it."""
    return {key: value for key, value in spec.items() if key != "title"}


def _section(part: Part, found: dict[str, Record], methods: Sequence[str]) -> Section:
    """One experiment.

    Args:
        methods: of the whole page, each of which looks alike in all its charts.
    """
    experiment = part.experiment
    rows = rows_of(part.cells, found)
    built = tabulate.tables_of(experiment, rows)
    views = [tables.view(table, _reference(experiment, table.name)) for table in built]
    main = findings.main_rows(experiment, rows)
    done = sum(cell.run_id in found for cell in part.cells)
    return Section(
        name=experiment.name,
        title=experiment.title,
        question=findings.question(experiment, main),
        answer=findings.answer(experiment, main),
        runs=",".join(run["run_id"] for row in main for run in row.shown),
        coverage=f"{done:,} of {len(part.cells):,} cells have a record"
        if experiment.trains
        else f"{len(part.cells):,} cells, none of which is run",
        hint="" if done == len(part.cells) else _how_to_run(part),
        progress=part.progress,
        places=plots.dressed_for(plots.places(experiment, part.cells, rows), methods),
        tables=views,
        choices=tables.choices(views),
    )


def _how_to_run(part: Part) -> str:
    if not part.experiment.trains:
        return ""
    return shlex.join(["osora-bench", "run", f"experiment={part.experiment.name}", *part.options])


def _reference(experiment: Experiment, table: str) -> dict[Any, Any]:
    spec = experiment.tables[table.removesuffix(TUNED)]
    return {} if spec.reference is None else load_reference(spec.reference)
