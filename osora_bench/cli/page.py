"""osora-bench report: what records say, as one HTML file that opens anywhere."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from osora_bench.cli import plan as plan_verb
from osora_bench.cli import smoke
from osora_bench.cli.options import CELLS_HELP, cells_options, count_option
from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.common.files import write_whole
from osora_bench.common.process import without_collecting
from osora_bench.pipeline.messages import counted
from osora_bench.planning import estimate
from osora_bench.planning.cell import State
from osora_bench.planning.experiments import load_experiment
from osora_bench.planning.grid import Expansion
from osora_bench.reporting.committed import recorded
from osora_bench.reporting.html.report import Part, Progress, read_ledgers, report

OPTIONS = ("experiment", "out", "every")
EVERY = 10
"""Seconds between two looks at a ledger."""
HELP = {
    "report": f"""\
usage: osora-bench report [experiment=A,B] [ledger=FOLDER] [--watch] [KEY=VALUE ...]

One HTML file with what experiments ask and what came out: tables, charts, and every record behind
a number. It needs no network and nothing beside it.

  experiment=A,B       these; by default all that have a record in the ledger (results/ledger)
  out=FILE             write it there; by default below runs/report
  --watch              write it anew as records come, until all cells of the experiments are done
  every=SECONDS        how often --watch looks; by default {EVERY}
{CELLS_HELP}""",
}


def report_verb(arguments: Sequence[str]) -> int:
    """Write the page, once or as records come."""
    watch, rest = "--watch" in arguments, [a for a in arguments if a != "--watch"]
    if flags := [a for a in rest if a.startswith("-")]:
        raise UserError(f"{unknown('option', flags[0], ['--watch'])}")
    options, overrides = cells_options(rest, OPTIONS)
    every = count_option(options.get("every", str(EVERY)), "every")
    names = [name for name in options.get("experiment", "").split(",") if name]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"experiment={options['experiment']}: {twice[0]} is named twice")
    if watch and not names:
        raise UserError("--watch follows the experiments that are named: experiment=A,B")
    if "every" in options and not watch:
        raise UserError(f"every={options['every']} is for --watch")
    while True:
        finished = _write(names, overrides, options.get("out"), every if watch else None)
        if finished or not watch:
            return 0
        time.sleep(every)


def _write(
    names: Sequence[str], overrides: Sequence[str], out: str | None, every: int | None
) -> bool:
    """Write the page if it would be another one; whether all cells of its experiments are done."""
    with without_collecting():
        if names:
            parts = list(_named(names, overrides))
            ledgers = sorted({cell.ledger for part in parts for cell in part.cells})
            found = read_ledgers(ledgers)
        else:
            ledgers = [_asked_ledger(overrides)]
            found = read_ledgers(ledgers)
            chosen = recorded(ledgers[0], found.records, overrides)
            parts = [Part(e, cells, options=overrides) for _, e, cells in chosen]
        finished = all(part.progress is None for part in parts)
        refresh = None if every is None or finished else every
        text = report(parts, found, refresh=refresh)
    place = Path(out) if out is not None else _place(names, parts)
    if not place.is_file() or place.read_text(encoding="utf-8") != text:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, text)
        print(f"{len(text.encode()) / 1e6:.1f} MB written to {place}")
    for ledger in (ledger for ledger in ledgers if not ledger.is_dir()):
        print(f"no ledger yet: {ledger}")
    return finished


def _place(names: Sequence[str], parts: Sequence[Part]) -> Path:
    runs = parts[0].cells[0].paths.runs if parts else Path("runs")
    return runs / "report" / f"{'-'.join(names) or 'all'}.html"


def _named(names: Sequence[str], overrides: Sequence[str]) -> Iterator[Part]:
    """The experiments that are named, with how far they are."""
    for name in names:
        experiment = load_experiment(name)
        cells = smoke.planned(experiment, overrides)
        progress = _progress(cells) if experiment.trains else None
        yield Part(experiment, cells.everything, progress, overrides)


def _progress(cells: Expansion) -> Progress | None:
    """How far an experiment is; None where all is done."""
    lines = plan_verb.lines(cells)
    unfinished = [line for line in lines if line.state != State.DONE]
    if not unfinished:
        return None
    hours = plan_verb.hours_left(lines)
    duration = "" if hours is None else f", about {estimate.duration(hours)} one after another"
    told = [
        f"{line.cell.label} ({line.suite}): {line.state}{line.why}"
        for line in unfinished
        if line.state != State.MISSING
    ]
    states = {
        state: sum(line.state == state for line in lines)
        for state in dict.fromkeys(line.state for line in lines)
    }
    return Progress(states, f"Left: {counted(line.state for line in unfinished)}{duration}.", told)


def _asked_ledger(overrides: Sequence[str]) -> Path:
    asked = [o.removeprefix("ledger=") for o in overrides if o.startswith("ledger=")]
    return Path(asked[-1]) if asked else paths.RESULTS / "ledger"
