"""What a plan still misses -> records, in this process; a cell that fails stops no other."""

import gc
import json
import os
import shutil
import traceback
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from osora_bench import preflight
from osora_bench.plan import Cell, revision, trains
from osora_bench.progress import say

if TYPE_CHECKING:
    from osora_bench.session import Session

# Read when torch is first imported: how long a waiting thread spins before it sleeps. GNU OpenMP's
# own 300,000 make the toy 28 times slower when another process wants a core (60 steps of training:
# 158 s, not 5.7); never spinning makes it twice as slow when none does. This: 5 s, and 17 s.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

OK, FAILED, MISTAKE = 0, 1, 2
"""Exit statuses: every cell has its record; a cell failed; the call itself is wrong."""


@cache
def session() -> "Session":
    """The process's one session. Its libraries are loaded here, after all cheap checks."""
    say("loading torch, transformers and OpenCompass ...")
    from osora_bench.session import Session

    gc.freeze()  # a million objects of the libraries, which each cell's collections would walk
    return Session()


def run_missing(cells: Sequence[Cell], hint: str | None = None) -> int:
    """Run every cell that has no record yet in this process; return the exit status.

    Raises:
        UserError: something that can be known beforehand; then nothing was started.
    """
    states = {cell.run_id: cell.state for cell in cells}
    missing = [cell for cell in cells if states[cell.run_id] in ("missing", "failed")]
    damaged = [cell for cell in cells if states[cell.run_id] == "damaged"]
    done = len(cells) - len(missing) - len(damaged)
    say(f"{len(cells)} cells: {done} done, {len(missing)} to run")
    for cell in damaged:
        say(damage(cell))
    failed = _run_all(missing, hint) if missing else []
    for cell in failed:
        say(f"failed: {cell.label}  (see {cell.paths.failure})")
    say(f"records: {', '.join(sorted({str(cell.ledger) for cell in cells}))}")
    return FAILED if failed or damaged else OK


def warnings(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know of cells before their numbers, each once."""
    found: dict[str, None] = {}
    for cell in cells:
        model, task = cell.config["model"], cell.config["task"]
        if revision(cell.config) == "UNPINNED":
            line = f"model {model['name']} is UNPINNED: {model['path']} may change under its name"
            found[line] = None
        if trains(cell.config) and task["warning"] is not None:
            found[f"task {task['name']}: {task['warning']}"] = None
    return list(found)


def damage(cell: Cell) -> str:
    """What to do about a record that cannot be read."""
    return f"{cell.record} is damaged and left alone: move it away to run {cell.label} again"


def _run_all(cells: Sequence[Cell], hint: str | None) -> list[Cell]:
    preflight.check(cells, hint)
    for line in warnings(cells):
        say(f"WARNING: {line}")
    session().prepare(cells)
    return [
        cell
        for number, cell in enumerate(cells, start=1)
        if not attempt(cell, f"[{number}/{len(cells)}] ")
    ]


def attempt(cell: Cell, counter: str = "") -> bool:
    """Run one cell; whether it has its record now. A failure is written beside the run."""
    try:
        made = session().run(cell)
    except Exception as error:
        report = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        cell.paths.folder.mkdir(parents=True, exist_ok=True)
        cell.paths.failure.write_text(json.dumps(report, indent=1), encoding="utf-8")
        say(f"{counter}{cell.label}: FAILED, {report['error']}  (see {cell.paths.failure})")
        return False
    shutil.rmtree(cell.paths.trainer, ignore_errors=True)
    say(f"{counter}{summary(cell, made)}")
    return True


def summary(cell: Cell, made: dict[str, Any]) -> str:
    """One line of a finished cell: scores, last loss, seconds."""
    scores = "  ".join(f"{name} {s['accuracy']:.2f}" for name, s in made["scores"].items())
    loss = f"  loss {made['training']['loss'][-1][1]:.3f}" if made["training"] else ""
    seconds = made["measured"]["seconds"]
    return (
        f"{cell.label}: {scores}{loss}  "
        f"(train {seconds['train']:.1f} s, evaluate {seconds['evaluate']:.1f} s)"
    )
