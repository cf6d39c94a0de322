"""What a plan still misses -> records, in this process; a cell that fails stops no other."""

import gc
import os
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from osora_bench.common import interruption
from osora_bench.common.claim import claimed
from osora_bench.common.errors import Refused, UserError
from osora_bench.common.exits import FAILED, OK
from osora_bench.common.progress import say
from osora_bench.pipeline import preflight
from osora_bench.planning.cell import STATES, WAITING, Cell, check_content
from osora_bench.planning.config import chosen, trains
from osora_bench.planning.experiments import load_experiment
from osora_bench.planning.grid import expansion
from osora_bench.planning.identity import revision
from osora_bench.records import code_state

if TYPE_CHECKING:
    from osora_bench.pipeline.session import Session

# Read when torch is first imported: how long a waiting thread spins before it sleeps. GNU OpenMP's
# own 300,000 make the toy 28 times slower when another process wants a core (60 steps of training:
# 158 s, not 5.7); never spinning makes it twice as slow when none does. This: 5 s, and 17 s.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

LOOK_EVERY = 2.0
"""Seconds between two looks at cells that run elsewhere."""
FULL = 1 << 20
"""Bytes: what cannot be written on a disk that has fewer left fails for want of space."""
RETRIES = 1
"""How often a cell is started again whose process or job was killed, if nothing else is said."""


class DeviceLost(BaseException):
    """A cell failed and left the process's GPU unusable: what follows needs a new process."""


@cache
def session() -> "Session":
    """The process's one session. Its libraries are loaded here, after all cheap checks."""
    say("loading torch, transformers and OpenCompass ...")
    from osora_bench.pipeline.session import Session

    if not code_state.same(code_state.code(), code_state.look()):
        raise UserError("the code was changed while it was loaded: start again")
    gc.freeze()  # a million objects of the libraries, which each cell's collections would walk
    return Session()


def run_experiment(name: str, overrides: Sequence[str] = (), **settings: Any) -> int:
    """Run all of an experiment that has no record yet; return the exit status.

    Cells that wait for the choice of their learning rate are run when it can be made.

    Args:
        settings: as of `run_missing`.

    Raises:
        UserError: something that can be known beforehand; then nothing was started.
    """
    now = expansion(name, overrides)
    _check_shown(name, now.everything)
    tried: set[str] = set()
    while True:
        waiting = [w.cell for w in now.waiting]
        if waiting:
            say(f"{len(waiting)} cells wait for the choice of their learning rate")
        try:
            status = run_missing(now.cells, waiting=waiting, leave=tried, **settings)
        except DeviceLost as lost:
            say(f"{lost}; start again for the cells that are left")
            return FAILED
        if not waiting:
            return status
        tried |= {cell.run_id for cell in now.cells if cell.state == "failed"}
        known, now = {cell.run_id for cell in now.cells}, expansion(name, overrides)
        if now.waiting and {cell.run_id for cell in now.cells} <= known:
            for one in now.waiting:
                say(f"{WAITING}: {one.cell.label}: {one.why}")
            states = [*(cell.state for cell in now.cells), *(WAITING for _ in now.waiting)]
            say(f"{len(states)} cells: {counted(states)}")
            return FAILED


def _check_shown(name: str, cells: Sequence[Cell]) -> None:
    """Raise UserError if the experiment's tables or figures could not be made in the end."""
    experiment = load_experiment(name)
    from osora_bench.reporting import tabulate

    tabulate.check(experiment, cells)
    if experiment.figures:
        from osora_bench.reporting import figures

        figures.check(experiment)


def run_missing(
    cells: Sequence[Cell],
    hint: str | None = None,
    *,
    waiting: Sequence[Cell] = (),
    leave: Collection[str] = (),
    launcher: Sequence[str] = (),
    **how: Any,
) -> int:
    """Run every cell that has no record yet; return the exit status.

    Args:
        waiting: cells that come later, to be checked with these.
        leave: run ids of cells that have failed in this start already.
        launcher, how: as of `run_by`.

    Raises:
        UserError: something that can be known beforehand; then nothing was started.
        Refused: found out on the way, and told after the verdict.
        DeviceLost: no cell can run in this process any more; so, too, after the verdict.
    """
    states = {cell.run_id: cell.state for cell in cells}
    left = {*leave, *(run_id for run_id, state in states.items() if state in ("done", "damaged"))}
    todo = [cell for cell in cells if cell.run_id not in left]
    missing = [cell for cell in todo if states[cell.run_id] in ("missing", "failed")]
    for cell in (c for c in cells if states[c.run_id] == "damaged"):
        say(damage(cell))
    if not todo:
        return verdict(cells)
    say(f"{len(cells)} cells: {counted(states.values())}")
    if missing:
        preflight.check([*missing, *waiting], hint, here=not launcher)
        for line in warnings(missing):
            say(f"WARNING: {line}")
    try:
        run_by(todo, launcher=launcher, **how)
    except (Refused, DeviceLost):
        verdict(cells)
        raise
    return verdict(cells)


def run_by(
    cells: Sequence[Cell],
    *,
    workers: int = 1,
    allow_changed: bool = False,
    launcher: Sequence[str] = (),
    retries: int = RETRIES,
) -> None:
    """Run cells in this process, in several, or as jobs.

    Args:
        workers: processes to run them in; 1 is this process.
        allow_changed: whether workers may run other code than the sweep was started with.
        launcher: Hydra overrides of a SLURM launcher, to run them as its jobs.
        retries: how often a cell is started again whose process or job was killed.
    """
    if launcher:
        from osora_bench.sweep.slurm.sweep import run_on_slurm

        run_on_slurm(cells, launcher, allow_changed, retries)
    elif workers > 1:
        from osora_bench.sweep.workers import run_in_workers

        run_in_workers(cells, workers, allow_changed, retries)
    else:
        run_here(cells)


def run_here(cells: Sequence[Cell]) -> None:
    """Run what is missing in this process, and wait for what runs elsewhere: if that ends without
    a record, it is run here. Every cell is tried at most once.

    Raises:
        DeviceLost: no cell can run in this process any more.
    """
    tried: set[str] = set()
    told: set[str] = set()
    while True:
        states = {c.run_id: c.state for c in cells if c.run_id not in tried}
        ready = [c for c in cells if states.get(c.run_id) in ("missing", "failed")]
        if ready:
            session().prepare(ready)
        for number, cell in enumerate(ready, start=1):
            if attempt(cell, f"[{number}/{len(ready)}] ") != "running":
                tried.add(cell.run_id)
        waiting = [c for c in cells if states.get(c.run_id) == "running"]
        if not ready and not waiting:
            return
        for cell in (c for c in waiting if c.run_id not in told):
            say(f"{cell.label}: runs already{where(cell)}; waiting for it")
            told.add(cell.run_id)
        if waiting and not ready:
            time.sleep(LOOK_EVERY)


def where(cell: Cell) -> str:
    """On which host, in which process, since when a cell runs."""
    holder = cell.holder or {}
    if not holder:
        return ""
    job = f", job {holder['job']}" if holder["job"] else ""
    return f" on {holder['host']} (pid {holder['pid']}{job}) since {holder['since']}"


def verdict(cells: Sequence[Cell]) -> int:
    """Say what became of every cell, by state; the exit status: OK only if all have their
    record."""
    states = {cell.run_id: cell.state for cell in cells}
    for cell in sorted(cells, key=lambda c: STATES.index(states[c.run_id])):
        state = states[cell.run_id]
        if state == "failed":
            say(f"failed: {cell.label}: {cell.error}  (see {cell.paths.failure})")
        elif state == "damaged":
            say(f"damaged: {damage(cell)}")
        elif state != "done":
            say(f"{state}: {cell.label}{where(cell) if state == 'running' else ''}")
    say(f"{len(cells)} cells: {counted(states.values())}")
    say(f"records: {', '.join(sorted({str(cell.ledger) for cell in cells}))}")
    return OK if set(states.values()) <= {"done"} else FAILED


def counted(states: Iterable[str]) -> str:
    """`3 done, 1 failed`."""
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


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


def attempt(cell: Cell, counter: str = "") -> str:
    """Run one cell, unless another process does; its state afterwards.

    A failure is written beside the run.

    Raises:
        Interrupted: the process was asked to end; what was done is kept.
        DeviceLost: no cell can run in this process any more.
    """
    try:
        with claimed(cell.paths.folder) as free:
            if not free or cell.record.exists():
                return cell.state
            state = _run(cell, counter)
    except OSError as error:  # nothing can be written in its folder, a failure neither
        say(f"{counter}{cell.label}: FAILED, {error}")
        state = "failed"
    interruption.current().settle()
    return state


def _run(cell: Cell, counter: str) -> str:
    try:
        check_content(cell)
        session().prepare([cell])
        with interruption.current():
            made = session().run(cell)
    except Exception as error:
        line = explained(error, cell)
        first = line.partition("\n")[0]
        say(f"{counter}{cell.label}: FAILED, {first}  (see {cell.paths.failure})")
        cell.fail(line, traceback.format_exc())
        if "CUDA error" in str(error):
            raise DeviceLost(f"the GPU must be opened anew after this: {first}") from error
        return "failed"
    shutil.rmtree(cell.paths.trainer, ignore_errors=True)
    say(f"{counter}{summary(cell, made)}")
    return "done"


def explained(error: Exception, cell: Cell) -> str:
    """An error for people; its first line says what to do where that is known."""
    line = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    if "timed-out too many times" in str(error):  # submitit's
        return (
            "the time limit was reached more often than hydra.launcher.max_num_timeout allows; a "
            f"larger one, or hydra.launcher.timeout_min, lets it go on from its checkpoint\n{line}"
        )
    if shutil.disk_usage(cell.paths.runs).free < FULL:
        return f"the disk of {cell.paths.runs} is full\n{line}"
    if not _out_of_memory(error):
        return line
    return f"out of memory: {less_memory(cell)} make it smaller\n{line}"


def less_memory(cell: Cell) -> str:
    """The settings by which a cell takes less memory."""
    micro = cell.config["trainer"]["micro_batch_size"]
    return (
        f"trainer.micro_batch_size (now {micro}), trainer.gradient_checkpointing=true or "
        "eval.batch_size"
    )


def _out_of_memory(error: Exception) -> bool:
    kinds = ("OutOfMemoryError", "MemoryError")
    told = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return type(error).__name__ in kinds or any(text in str(error) for text in told)


def summary(cell: Cell, made: dict[str, Any]) -> str:
    """One line of a finished cell: scores, last loss, seconds."""
    if made["training"] and "diverged" in made["training"]:
        return f"{cell.label}: diverged, {made['training']['diverged']}"
    names = [dataset["name"] for dataset in chosen(cell.config["eval"])]  # a record sorts them
    scores = "  ".join(f"{name} {made['scores'][name]['accuracy']:.2f}" for name in names)
    loss = f"  loss {made['training']['loss'][-1][1]:.3f}" if made["training"] else ""
    seconds = made["measured"]["seconds"]
    return (
        f"{cell.label}: {scores}{loss}  "
        f"(train {seconds['train']:.1f} s, evaluate {seconds['evaluate']:.1f} s)"
    )
