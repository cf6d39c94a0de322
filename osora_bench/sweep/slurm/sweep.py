"""A sweep as SLURM jobs, submitted through Hydra's submitit launcher and watched to the end.

How SLURM or the launcher say that a job ended is not believed: a failed cell is COMPLETED there,
and without slurmdbd a killed one is never heard of again. A cell is settled by its record or its
failure; `squeue` only tells which cells still have a job.
"""

import contextlib
import fcntl
import json
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osora_bench.common import claim
from osora_bench.common.errors import Refused, UserError
from osora_bench.common.files import last_line_of
from osora_bench.common.progress import say
from osora_bench.planning.cell import Cell, State
from osora_bench.planning.compose import quoted
from osora_bench.sweep import frozen_plan
from osora_bench.sweep.options import RETRIES, RunOptions
from osora_bench.sweep.slurm.cell_job import CellJob, how_it_ended
from osora_bench.sweep.slurm.profile import check_cluster, check_gpus, profile
from osora_bench.sweep.slurm.queue import Job, array_limit, cancel, jobs_in_queue, queued, reason_of
from osora_bench.sweep.slurm.submission import Submission, check_place, prepared
from osora_bench.sweep.watch import Watch

LOOK_EVERY = 2.0
"""Seconds between two looks at the cells' files."""
ASK_EVERY = 15.0
"""Seconds between two calls of squeue, which everybody's jobs have to share."""
GRACE = 60.0
"""Seconds that a record may take to be seen here after its job has left the queue: as long as NFS
believes that a file is not there."""
LATEST = 600.0
"""Seconds at most between two tries to submit to a cluster that is not reached."""
PASSING = {
    *("None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Cleaning", "Prolog"),
    *("Dependency", "Licenses", "Reservation"),
}
LIMITS = ("QOS", "Assoc", "Max")
"""Why a job waits where time alone will help: these, and limits of what runs at once."""
FINAL = ("CANCELLED", "OUT_OF_MEMORY")
"""How a job ends that is not submitted again: a person's will, or what would happen again."""
UNREACHABLE = ("slurm controller", "timed out", "Connection refused")
"""What sbatch says where another try may help."""


@dataclass
class Sweep:
    """A sweep on SLURM, as seen by the process that watches it."""

    watch: Watch
    launcher: list[str]
    settings: dict[str, Any]
    allow_changed: bool = False
    retries: int = RETRIES
    launching: dict[str, tuple[Submission, "subprocess.Popen[bytes]"]] = field(default_factory=dict)
    cell_jobs: defaultdict[str, CellJob] = field(default_factory=lambda: defaultdict(CellJob))
    pending: list[Job] = field(default_factory=list)  # jobs that wait in the queue
    patience: float = ASK_EVERY  # seconds until the next try to submit, where the last one failed
    earliest: float = 0.0  # when that is
    refusal: str | None = None  # why no more jobs are submitted
    said: set[str] = field(default_factory=set)
    moved: float = field(default_factory=time.monotonic)  # when something was last seen to
    signs: object = None  # what was seen then

    @property
    def plan(self) -> frozen_plan.Frozen:
        return self.watch.sweep

    @property
    def folder(self) -> Path:
        """Holds this sweep's submissions."""
        return self.plan.path.with_suffix("")

    @property
    def runs(self) -> Path:
        return self.plan.path.parent.parent

    def step(self) -> bool:
        """Look once and do what is to be done; whether a cell's job runs or is being submitted, or,
        when no more jobs are submitted, one waits.

        Raises:
            subprocess.SubprocessError: squeue does not answer.
        """
        jobs = {
            run_id: job
            for run_id, job in jobs_in_queue(self.runs).items()
            if job.id != self.cell_jobs[run_id].ended_before
        }
        self._reap(jobs)
        to_do = [cell for cell in self.watch.open if self._needs_job(cell, jobs.get(cell.run_id))]
        if to_do and self.refusal is None and time.monotonic() >= self.earliest:
            self._submit(to_do)
        sweep_jobs = [jobs[cell.run_id] for cell in self.plan.cells if cell.run_id in jobs]
        self.pending = [job for job in sweep_jobs if job.state == "PENDING"]
        self._notice_moves(sweep_jobs)
        active = any(job.active for job in sweep_jobs if job.state != "PENDING")
        return bool(self.launching or active or (self.refusal and self.pending))

    def _notice_moves(self, jobs: Sequence[Job]) -> None:
        """Something moves if a cell runs, or was settled, or a job has another state than before;
        not if jobs are submitted in vain."""
        signs = {(job.id, job.state) for job in jobs}, [cell.run_id for cell in self.watch.open]
        if signs != self.signs or any(cell.state == State.RUNNING for cell in self.watch.open):
            self.signs, self.moved = signs, time.monotonic()

    def say_once(self, line: str) -> None:
        """Say a line the first time."""
        if line not in self.said:
            say(line)
            self.said.add(line)

    def _reap(self, jobs: dict[str, Job]) -> None:
        """Notice launching processes that ended. When SLURM refuses jobs, no more are submitted
        (`refusal`): those in the queue go on."""
        unreached = False
        for name, (submission, process) in list(self.launching.items()):
            status = process.poll()
            if status is not None:
                del self.launching[name]
                unreached |= not self._reached(submission, status, jobs)
        if unreached:
            self.earliest = time.monotonic() + self.patience
            self.patience = min(LATEST, 2 * self.patience)

    def _reached(self, submission: Submission, status: int, jobs: dict[str, Job]) -> bool:
        """Whether a launching process that ended reached the cluster, which may have refused."""
        run_ids, output = submission.cells, submission.output
        line = last_line_of(output) or "no output"
        if status <= 0 or any(jobs[i].active for i in run_ids if i in jobs):
            # killed: those that it has not submitted will be missed
            self.patience = ASK_EVERY
            for run_id in run_ids:
                self.cell_jobs[run_id].expect(jobs.get(run_id))
        elif any(sign in output for sign in UNREACHABLE):
            self.say_once(f"sbatch does not reach the cluster, trying again: {line}")
            return False
        else:
            self.refusal = (
                f"the jobs were not submitted: {line}\n(see {submission.folder / 'launcher.log'})"
            )
        return True

    def _needs_job(self, cell: Cell, job: Job | None) -> bool:
        """Whether to submit a cell now; a job that was lost is told here."""
        cell_job = self.cell_jobs[cell.run_id]
        if self.plan.settled(cell):
            return False
        if job is not None and job.active:
            cell_job.expect(job)
            cell_job.back()
            if job.held_by_slurm and self._withdrawn(cell, job):
                return not self.plan.settled(cell)
            self._say_why_it_waits(cell, job)
            return False
        if cell.run_id in self._being_launched() or cell.state == State.RUNNING:
            cell_job.back()
            return False
        if not cell_job.expected:
            return True
        if cell_job.gone_for() >= GRACE:
            self._lost(cell, job or cell_job.seen)
        return False

    def _withdrawn(self, cell: Cell, job: Job) -> bool:
        """Whether a job that SLURM holds could be cancelled; it counts as lost. Another one of it
        has another id, which a node may take that refuses this one."""
        if (problem := cancel(job)) is not None:
            self.say_once(f"{cell.label}: job {job.id} cannot be cancelled: {problem}")
            return False
        self.cell_jobs[cell.run_id].ended_before = job.id
        self._lost(cell, job)
        return True

    def _say_why_it_waits(self, cell: Cell, job: Job) -> None:
        """Say of a job why it waits, if it may wait for ever; of several for one reason, once."""
        reason = job.reason
        passes = reason in PASSING or (reason.startswith(LIMITS) and "Limit" in reason)
        if job.state != "PENDING" or passes or reason in self.said:
            return
        self.said.add(reason)
        condition = "is held" if "held" in reason.lower() else "waits, perhaps for ever"
        say(f"{cell.label}: job {job.id} {condition}: {reason}")

    def _being_launched(self) -> set[str]:
        return {run_id for submission, _ in self.launching.values() for run_id in submission.cells}

    def _lost(self, cell: Cell, job: Job | None) -> None:
        """A job came to nothing, and its cell has neither a record nor a failure."""
        cell_job = self.cell_jobs[cell.run_id]
        cell_job.forget()
        if self.plan.settled(cell):
            return
        cell_job.losses += 1
        ending = how_it_ended(job)
        hint = f"  (see {job.log})" if job is not None and job.log.exists() else ""
        say(f"{cell.label}: {ending}{hint}")
        final = job is not None and job.state in FINAL and not job.held_by_slurm
        if final or cell_job.losses > self.retries:
            if job is not None and job.state == "OUT_OF_MEMORY":
                memory = (Submission(job.log.parent).settings or self.settings)["mem_gb"]
                ending = (
                    f"out of memory: hydra.launcher.mem_gb (now {memory}) makes it larger; {ending}"
                )
            count = "" if cell_job.losses == 1 else f", {cell_job.losses} times in all"
            cell.fail(ending + count + hint)

    def _submit(self, cells: Sequence[Cell]) -> None:
        """Submit cells, but for those that another start has submitted meanwhile."""
        with _alone(self.plan.path.parent / "slurm.lock"):
            jobs = jobs_in_queue(self.runs)
            taken_ids = self._taken(jobs)
            free_ids = [cell.run_id for cell in cells if cell.run_id not in taken_ids]
            for run_id in (i for i in free_ids if i in jobs):
                self.cell_jobs[run_id].ended_before = jobs[run_id].id
            size = array_limit()
            chunks = [free_ids[i : i + size] for i in range(0, len(free_ids), size)]
            if len(chunks) > 1 and len(chunks) > (limit := self.settings["array_parallelism"]):
                say(
                    f"WARNING: up to {len(chunks)} jobs at once, more than array_parallelism="
                    f"{limit}: this cluster's arrays hold {size} cells, and each runs one at least"
                )
            for chunk in chunks:
                self._launch(chunk, len(chunks))

    def _taken(self, jobs: dict[str, Job]) -> set[str]:
        """Cells that have a job, or that a start submits at this moment."""
        run_ids = {run_id for run_id, job in jobs.items() if job.active}
        for submission in map(Submission, self.runs.glob("plans/*/slurm-*")):
            if submission.complete and submission.launching:
                run_ids |= set(submission.cells)
        return run_ids

    def _launch(self, run_ids: list[str], arrays: int) -> None:
        submission = prepared(self.folder, run_ids, self.settings)
        process = submission.launch(self._overrides(submission, run_ids, arrays))
        self.launching[submission.name] = (submission, process)
        say(f"submitting {len(run_ids)} as {submission.name}; logs: {submission.folder}")

    def _overrides(self, submission: Submission, run_ids: list[str], arrays: int) -> list[str]:
        """What the launching process tells Hydra."""
        return [
            *self.launcher,
            f"plan={quoted(str(self.plan.path))}",
            f"allow_changed={str(self.allow_changed).lower()}",
            f"hydra.sweep.dir={quoted(str(submission.folder))}",
            f"hydra.launcher.submitit_folder={quoted(str(submission.folder))}",
            f"hydra.launcher.name={submission.name}",
            # the limit is one of the sweep, not of each of its arrays
            f"hydra.launcher.array_parallelism={self._parallel(arrays)}",
            "cell=" + ",".join(map(quoted, run_ids)),
        ]

    def _parallel(self, arrays: int) -> int:
        return max(1, int(self.settings["array_parallelism"]) // arrays)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Between looking at the queue and submitting, no other start does either."""
    with place.open("w") as file:
        claim.lock(file, fcntl.LOCK_EX)
        yield


def run_on_slurm(cells: Sequence[Cell], options: RunOptions) -> None:
    """Run what is missing as SLURM jobs; return when every cell is settled and no job runs, or when
    nothing has moved for long.

    Cells that have a job from an earlier start are waited for, not submitted again. The jobs go on
    without this process.

    Raises:
        UserError: there is no SLURM here, or it refuses the jobs.
        Refused: it refuses some of them; the others have ended.
    """
    settings = profile(options.launcher)
    check_cluster(options.launcher[0])
    check_gpus(settings, cells)
    array_limit()
    check_place(cells[0].paths.runs)
    watch = Watch(frozen_plan.freeze(cells))
    sweep = Sweep(watch, [*options.launcher], settings, options.allow_changed, options.retries)
    _say_attached(watch, settings)
    try:
        _follow(sweep, options.wait)
    except KeyboardInterrupt:
        say("the jobs go on, and the next start waits for them; `squeue --me`, `scancel` stop them")
        raise
    watch.look()
    if sweep.refusal is not None and watch.open:
        raise (Refused if len(watch.open) < len(cells) else UserError)(sweep.refusal)
    if sweep.pending and not watch.open:
        numbers = " ".join(job.id for job in sweep.pending)
        say(f"these jobs wait in the queue and have nothing to do: {numbers}")


def _say_attached(watch: Watch, settings: dict[str, Any]) -> None:
    """Say which cells have a job from an earlier start."""
    attached = queued(watch.open)
    for cell in (c for c in watch.open if c.run_id in attached):
        say(f"{cell.label}: has a job already, {attached[cell.run_id].id}; waiting for it")
    for line in _other_settings(attached.values(), settings):
        say(f"WARNING: {line}")


def _other_settings(jobs: Iterable[Job], settings: dict[str, Any]) -> list[str]:
    """What is to be said of jobs that wait with other settings than this start asks for."""
    waiting = {job.log.parent: job.array_id for job in jobs if job.state == "PENDING"}
    lines = []
    for folder, number in waiting.items():
        submission = Submission(folder)
        then = submission.settings
        differences = [
            f"hydra.launcher.{key}={json.dumps(then.get(key))}, not {json.dumps(settings.get(key))}"
            for key in then | settings
            if then.get(key) != settings.get(key)
        ]
        if then and differences:
            lines.append(
                f"{submission.name} waits as it was submitted, with {'; '.join(differences)}. "
                f"For these: end this start, `scancel --state=PENDING {number}`, start again"
            )
    return lines


def _follow(sweep: Sweep, wait: float) -> None:
    """Watch a sweep to its end, or until nothing has moved for so many minutes."""
    unfinished, last_step = True, float("-inf")
    while True:
        sweep.watch.look()
        if not sweep.watch.open or time.monotonic() - last_step >= ASK_EVERY:
            unfinished, last_step = _left(sweep), time.monotonic()
        if not unfinished and (not sweep.watch.open or sweep.refusal is not None):
            return
        if time.monotonic() - sweep.moved >= 60 * wait:
            _say_given_up(sweep, wait)
            return
        if not sweep.watch.open:
            sweep.say_once("every cell is settled; waiting for the last jobs to end")
        time.sleep(LOOK_EVERY)


def _left(sweep: Sweep) -> bool:
    """Look once; whether there is something to wait for."""
    try:
        return sweep.step()
    except subprocess.SubprocessError as error:  # its daemon restarts, or the network
        sweep.say_once(f"squeue does not answer, waiting: {reason_of(error)}")
        return bool(sweep.watch.open)


def _say_given_up(sweep: Sweep, wait: float) -> None:
    say(
        f"nothing has moved for {wait:g} minutes (wait={wait:g}), so this start ends. What is in "
        "the queue stays there, and the next start waits for it"
    )
    for reason, count in Counter(job.reason for job in sweep.pending).items():
        say(f"in the queue: {count} pending, {reason}")
