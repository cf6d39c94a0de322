"""What `osora-bench plan` shows: every cell, its state, what it will take, what it can tell."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from osora_bench.cli import smoke
from osora_bench.cli.options import CELLS_HELP, HOW_HELP, experiment_option, run_options
from osora_bench.cli.run import check_whole
from osora_bench.common.process import without_collecting
from osora_bench.pipeline.messages import counted, warnings, where
from osora_bench.planning import declared, estimate
from osora_bench.planning.cell import Cell, State
from osora_bench.planning.experiments import load_experiment
from osora_bench.planning.grid import Expansion, merged, validation_loss
from osora_bench.records import record
from osora_bench.sweep.slurm import queue

HELP = {
    "plan": f"""\
usage: osora-bench plan experiment=NAME [--json] [KEY=VALUE ...]

The cells of an experiment: run ids, states, expected hours and memory.

  experiment=A,B       of several experiments, what they share once
  --json               for machines
{CELLS_HELP}
How a `run` would run them is checked, and changes nothing here:

{HOW_HELP}"""
}


@dataclass(frozen=True)
class PlanLine:
    """One cell of a plan."""

    cell: Cell
    state: str
    cost: estimate.Estimate | None
    job: queue.Job | None
    why: str  # of a state that needs a word more
    apart: str = ""  # what tells it from others of the same label

    @property
    def run_id(self) -> str | None:
        return None if self.state == State.WAITING else self.cell.run_id

    @property
    def label(self) -> str:
        return f"{self.cell.label}{self.apart}"

    @property
    def suite(self) -> str:
        return str(self.cell.config.eval.name)

    def text(self, label: int, suite: int) -> str:
        """The line for people, with room for the longest label and suite."""
        return (
            f"{self.run_id or '-' * 12}  {self.state:8s} {self.label:{label}s} "
            f"{self.suite:{suite}s}  {self.cost or ''}{self.why}"
        )

    def plain(self) -> dict[str, Any]:
        """The line as plain values."""
        cost = self.cost
        return {
            "run_id": self.run_id,
            "state": self.state,
            "label": self.cell.label,
            "suite": self.suite,
            "overrides": self.cell.overrides,
            "holder": self.cell.holder if self.state == State.RUNNING else None,
            "error": self.cell.error if self.state == State.FAILED else None,
            "job": None if self.job is None else self.job.id,
            "hours": None if cost is None else cost.hours,
            "gigabytes": None if cost is None else cost.gigabytes,
            "measured": None if cost is None else cost.measured,
        }


def lines(expansion: Expansion) -> list[PlanLine]:
    """A line for each cell, those that wait last; damaged records are named on standard error."""
    damaged: list[str] = []
    ledgers = {cell.ledger for cell in expansion.cells}
    with without_collecting():
        costs = estimate.measured(r for place in ledgers for r in record.read_each(place, damaged))
    for line in damaged:
        print(f"damaged record, left alone: {line}", file=sys.stderr)
    jobs = queue.queued(expansion.cells)
    plan = []
    for cell in expansion.cells:
        state, job = queue.state_of(cell, jobs), jobs.get(cell.run_id)
        plan.append(
            PlanLine(cell, state, estimate.estimate_of(cell, costs), job, _why(cell, state, job))
        )
    for waiting in expansion.waiting:
        cost = estimate.estimate_of(waiting.cell, costs)
        plan.append(PlanLine(waiting.cell, State.WAITING, cost, None, f"  {waiting.why}"))
    return _told_apart(plan)


def _told_apart(plan: Sequence[PlanLine]) -> list[PlanLine]:
    """Lines of one label and suite with the settings that not all of them have."""
    alike: dict[tuple[str, str], list[PlanLine]] = {}
    for line in plan:
        alike.setdefault((line.label, line.suite), []).append(line)
    apart = []
    for line in plan:
        others = [set(other.cell.overrides) for other in alike[line.label, line.suite]]
        own = [o for o in line.cell.overrides if not all(o in given for given in others)]
        told = [o for o in own if declared.counts(o.partition("=")[0].lstrip("+~"))]
        apart.append(replace(line, apart="".join(f" {override}" for override in told)))
    return apart


def _why(cell: Cell, state: str, job: queue.Job | None) -> str:
    explanations: dict[str, Callable[[], str]] = {
        State.RUNNING: lambda: where(cell),
        State.QUEUED: lambda: f"  {job}",
        State.FAILED: lambda: f"  {cell.error}",
        State.DONE: lambda: (
            "  diverged" if cell.is_trial and validation_loss(cell) == math.inf else _chosen(cell)
        ),
        State.DAMAGED: lambda: f"  {cell.record}",
    }
    return explanations.get(state, str)()


def _chosen(cell: Cell) -> str:
    """Of a trial that was chosen: what is at the end of its values."""
    ends = [f"  chosen, {key} at the end of what was tried" for key in cell.edges]
    ends += [f"  (next, but refused: {why})" for why in cell.refused]
    return "".join([*ends, *(f"  chosen, the last there is: {why}" for why in cell.ended)])


def text(plan: Sequence[PlanLine]) -> list[str]:
    """The lines of a plan for people, with what must be known of them before and after."""
    cells = [line.cell for line in plan]
    told = [
        *warnings(cells),
        *estimate.over_memory(
            (line.cell, line.cost) for line in plan if line.state not in (State.DONE, State.DAMAGED)
        ),
    ]
    output = [f"WARNING: {line}" for line in told]
    widths = max(len(line.label) for line in plan), max(len(line.suite) for line in plan)
    output += [line.text(*widths) for line in plan]
    output += _precision(cells)
    states = counted(line.state for line in plan)
    hours = hours_left(plan)
    duration = f"; about {estimate.duration(hours)} one after another" if hours is not None else ""
    return [*output, f"{len(plan)} cells: {states}{duration}"]


def hours_left(plan: Sequence[PlanLine]) -> float | None:
    """What is left to do; a training that several suites are asked of counts once. None: nothing
    is left of which it is known."""
    todo = [
        (line, line.cost)
        for line in plan
        if line.state not in (State.DONE, State.DAMAGED) and line.cost is not None
    ]
    if not todo:
        return None
    training_ids = {line.cell.training_id for line in plan if line.state == State.DONE}
    total = 0.0
    for line, cost in todo:
        total += cost.hours
        if line.cell.config.trains:
            training = line.cell.training_id
            total -= cost.training if training in training_ids else 0.0
            training_ids.add(training)
    return total


def _precision(cells: Sequence[Cell]) -> list[str]:
    """How far Avg. of one run may be off by chance, for each suite of several questions."""
    suites = {cell.config.eval.name: cell.config.eval for cell in cells}
    return [
        f"{name}: {count} questions a run, standard error of Avg. at most {error:.1f} points"
        for name, suite in suites.items()
        for count, error in [estimate.precision(suite)]
        if count
    ]


def plan_verb(arguments: Sequence[str]) -> int:
    """Print every cell with its run id, state, and what it is expected to take."""
    names, rest = experiment_option(arguments)
    # how it would be run changes nothing but is checked: the line of a `run` is that of its plan
    _, overrides = run_options([a for a in rest if a != "--json"])
    experiments = [load_experiment(name) for name in names.split(",")]
    parts = [smoke.planned(experiment, overrides) for experiment in experiments]
    for experiment, part in zip(experiments, parts, strict=True):
        check_whole(experiment, overrides, part)
    found = merged(parts)
    plan = lines(found)
    if "--json" in rest:
        print(json.dumps([line.plain() for line in plan], indent=1))
    else:
        print("\n".join([*text(plan), *found.notes]))
    return 0
