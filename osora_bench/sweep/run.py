"""What a plan still misses -> records, in this process; a cell that fails stops no other."""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from osora_bench.common.errors import Refused, UserError
from osora_bench.common.exits import FAILED
from osora_bench.common.progress import say
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import DeviceLost, attempt, session
from osora_bench.pipeline.messages import counted, damage, verdict, warnings, where
from osora_bench.planning import estimate
from osora_bench.planning.cell import Cell, State
from osora_bench.planning.experiments import Experiment
from osora_bench.planning.grid import Expansion, expansion
from osora_bench.sweep.options import AUTO, RunOptions
from osora_bench.sweep.slurm.sweep import run_on_slurm
from osora_bench.sweep.workers import room, run_in_workers

BEYOND = (
    "what has a record stays; a value beyond those given is tried where the best is at their end: "
    "extend: 0 in its block leaves them as they are"
)
LOOK_EVERY = 2.0
"""Seconds between two looks at cells that run elsewhere."""


def run_experiment(
    experiment: Experiment,
    overrides: Sequence[str] = (),
    options: RunOptions | None = None,
    first: Expansion | None = None,
) -> int:
    """Run all of an experiment that has no record yet; return the exit status.

    Cells that wait for the choice of their settings are run when it can be made.

    Args:
        first: its cells as they are now, if they are known already.

    Raises:
        UserError: something that can be known beforehand; then nothing was started.
    """
    plan = start = expansion(experiment, overrides) if first is None else first
    tried: set[str] = set()
    while True:
        waiting = [entry.cell for entry in plan.waiting]
        if waiting:
            say(f"{len(waiting)} cells wait for the choice of their settings")
        try:
            status = run_missing(
                plan.cells, options, hint=experiment.hint, waiting=waiting, leave=tried
            )
        except DeviceLost as lost:
            say(f"{lost}; start again for the cells that are left")
            return FAILED
        except UserError as error:
            raise error if plan is start else UserError(f"{error}\n{BEYOND}") from error
        if not waiting:
            return status
        tried |= {cell.run_id for cell in plan.cells if cell.state == State.FAILED}
        run_ids, plan = {cell.run_id for cell in plan.cells}, expansion(experiment, overrides)
        if plan.waiting and {cell.run_id for cell in plan.cells} <= run_ids:
            for entry in plan.waiting:
                say(f"{State.WAITING}: {entry.cell.label}: {entry.why}")
            states = [*(cell.state for cell in plan.cells), *(State.WAITING for _ in plan.waiting)]
            say(f"{len(states)} cells: {counted(states)}")
            return FAILED


def run_missing(
    cells: Sequence[Cell],
    options: RunOptions | None = None,
    *,
    hint: str | None = None,
    waiting: Sequence[Cell] = (),
    leave: Collection[str] = (),
) -> int:
    """Run every cell that has no record yet; return the exit status.

    Args:
        hint: told where they cannot run on this machine.
        waiting: cells that come later, to be checked with these.
        leave: run ids of cells that have failed in this start already.

    Raises:
        UserError: something that can be known beforehand; then nothing was started.
        Refused: found out on the way, and told after the verdict.
        DeviceLost: no cell can run in this process any more; so, too, after the verdict.
    """
    options = options or RunOptions()
    states = {cell.run_id: cell.state for cell in cells}
    excluded = {
        *leave,
        *(run_id for run_id, state in states.items() if state in (State.DONE, State.DAMAGED)),
    }
    todo = [cell for cell in cells if cell.run_id not in excluded]
    missing = [cell for cell in todo if states[cell.run_id] in (State.MISSING, State.FAILED)]
    for cell in (c for c in cells if states[c.run_id] == State.DAMAGED):
        say(damage(cell))
    if not todo:
        return verdict(cells)
    say(f"{len(cells)} cells: {counted(states.values())}")
    if missing:
        preflight.check_cells([*missing, *waiting], hint, here=not options.launcher)
        # jobs have the memory that they ask for, not this process's
        here = [] if options.launcher else [(c, estimate.estimate_of(c, {})) for c in missing]
        for line in [*warnings(missing), *estimate.over_memory(here)]:
            say(f"WARNING: {line}")
    try:
        run_by(todo, options)
    except (Refused, DeviceLost):
        verdict(cells)
        raise
    return verdict(cells)


def run_by(cells: Sequence[Cell], options: RunOptions) -> None:
    """Run cells in this process, in several, or as jobs."""
    if options.workers == AUTO:
        options = replace(options, workers=room(cells))
    if options.launcher:
        run_on_slurm(cells, options)
    elif options.workers > 1:
        run_in_workers(cells, options)
    else:
        run_here(cells)


def run_here(cells: Sequence[Cell]) -> None:
    """Run what is missing in this process, and wait for what runs elsewhere: if that ends without
    a record, it is run here. Every cell is tried at most once.

    Raises:
        DeviceLost: no cell can run in this process any more.
    """
    tried_ids: set[str] = set()
    announced_ids: set[str] = set()
    while True:
        states = {c.run_id: c.state for c in cells if c.run_id not in tried_ids}
        ready = [c for c in cells if states.get(c.run_id) in (State.MISSING, State.FAILED)]
        if ready:
            session().prepare(ready)
        for number, cell in enumerate(ready, start=1):
            if attempt(cell, f"[{number}/{len(ready)}] ") != State.RUNNING:
                tried_ids.add(cell.run_id)
        waiting = [c for c in cells if states.get(c.run_id) == State.RUNNING]
        if not ready and not waiting:
            return
        for cell in (c for c in waiting if c.run_id not in announced_ids):
            say(f"{cell.label}: runs already{where(cell)}; waiting for it")
            announced_ids.add(cell.run_id)
        if waiting and not ready:
            time.sleep(LOOK_EVERY)
