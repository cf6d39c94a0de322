"""A sweep as SLURM jobs, submitted through Hydra's submitit launcher and watched to the end.

How SLURM or the launcher say that a job ended is not believed: a failed cell is COMPLETED there,
and without slurmdbd a killed one is never heard of again. A cell is settled by its record or its
failure; `squeue` only tells which cells still have a job. Each submission leaves a folder,

    runs/plans/<sweep>/slurm-<n>/    its jobs are called osora-<sweep>-<n>
        cells.json      run ids by array index, there before anything is submitted
        settings.json   the launcher's settings
        lock            held by the launching process
        launcher.log    its output
        <job>_...       submitit's files: what to run, log.out, log.err

so that any later start can tell which cells the jobs in the queue are.
"""

import contextlib
import fcntl
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osora_bench.common import claim, files
from osora_bench.common.errors import Refused, UserError
from osora_bench.common.progress import say
from osora_bench.planning.cell import Cell, State
from osora_bench.sweep import frozen_plan
from osora_bench.sweep.options import RETRIES, RunOptions
from osora_bench.sweep.slurm.profile import check_cluster, check_gpus, profile
from osora_bench.sweep.slurm.queue import (
    Job,
    Submission,
    array_limit,
    last_line,
    queue,
    queued,
    reason_of,
)
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
    had: dict[str, Job | None] = field(default_factory=dict)  # cells whose job must not vanish
    gone: dict[str, float] = field(default_factory=dict)  # since when a job is not in the queue
    former: dict[str, str] = field(default_factory=dict)  # jobs that had ended when one was added
    losses: Counter[str] = field(default_factory=Counter)
    pending: list[str] = field(default_factory=list)  # jobs that wait in the queue
    patience: float = ASK_EVERY  # seconds until the next try to submit, where the last one failed
    earliest: float = 0.0  # when that is
    refusal: str | None = None  # why no more jobs are submitted
    told: set[str] = field(default_factory=set)

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
        jobs = {i: job for i, job in queue(self.runs).items() if job.id != self.former.get(i)}
        self._reap(jobs)
        to_do = [cell for cell in self.watch.open if self._needs_job(cell, jobs.get(cell.run_id))]
        if to_do and self.refusal is None and time.monotonic() >= self.earliest:
            self._submit(to_do)
        mine = [jobs[cell.run_id] for cell in self.plan.cells if cell.run_id in jobs]
        self.pending = [job.id for job in mine if job.state == "PENDING"]
        active = any(job.active for job in mine if job.state != "PENDING")
        return bool(self.launching or active or (self.refusal and self.pending))

    def tell_once(self, line: str) -> None:
        """Say a line the first time."""
        if line not in self.told:
            say(line)
            self.told.add(line)

    def _reap(self, jobs: dict[str, Job]) -> None:
        """Notice launching processes that ended. When SLURM refuses jobs, no more are submitted
        (`refusal`): those in the queue go on."""
        unreached = False
        for name, (submission, process) in list(self.launching.items()):
            status = process.poll()
            if status is None:
                continue
            del self.launching[name]
            cells = submission.cells
            if status <= 0 or any(jobs[i].active for i in cells if i in jobs):
                # killed: those that it has not submitted will be missed
                self.patience = ASK_EVERY
                self.had |= {run_id: jobs.get(run_id) for run_id in cells}
            elif any(sign in submission.output for sign in UNREACHABLE):
                unreached = True
                said = last_line(submission.output)
                self.tell_once(f"sbatch does not reach the cluster, trying again: {said}")
            else:
                self.refusal = (
                    f"the jobs were not submitted: {last_line(submission.output)}\n"
                    f"(see {submission.folder / 'launcher.log'})"
                )
        if unreached:
            self.earliest = time.monotonic() + self.patience
            self.patience = min(LATEST, 2 * self.patience)

    def _needs_job(self, cell: Cell, job: Job | None) -> bool:
        """Whether to submit a cell now; a job that was lost is told here."""
        if self.plan.settled(cell):
            return False
        if job is not None and job.active:
            self.had[cell.run_id] = job
            self.gone.pop(cell.run_id, None)
            self._tell_waiting(cell, job)
            return False
        if cell.run_id in self._being_launched() or cell.state == State.RUNNING:
            self.gone.pop(cell.run_id, None)
            return False
        if cell.run_id not in self.had:
            return True
        since = self.gone.setdefault(cell.run_id, time.monotonic())
        if time.monotonic() - since >= GRACE:
            self._lost(cell, job or self.had[cell.run_id])
        return False

    def _tell_waiting(self, cell: Cell, job: Job) -> None:
        """Say of a job why it waits, if it may wait for ever; of several for one reason, once."""
        reason = job.reason
        passes = reason in PASSING or (reason.startswith(LIMITS) and "Limit" in reason)
        if job.state != "PENDING" or passes or reason in self.told:
            return
        self.told.add(reason)
        how = "is held" if "held" in reason.lower() else "waits, perhaps for ever"
        say(f"{cell.label}: job {job.id} {how}: {reason}")

    def _being_launched(self) -> set[str]:
        return {run_id for one, _ in self.launching.values() for run_id in one.cells}

    def _lost(self, cell: Cell, job: Job | None) -> None:
        """A job has left the queue, and its cell has neither a record nor a failure."""
        del self.had[cell.run_id], self.gone[cell.run_id]
        if self.plan.settled(cell):
            return
        self.losses[cell.run_id] += 1
        times = self.losses[cell.run_id]
        what = "its job was never seen" if job is None else f"its job {job.id} {_how(job)}"
        see = f"  (see {job.log})" if job is not None and job.log.exists() else ""
        say(f"{cell.label}: {what}{see}")
        final = job is not None and job.state in ("CANCELLED", "OUT_OF_MEMORY")
        if final or times > self.retries:
            if job is not None and job.state == "OUT_OF_MEMORY":
                then = Submission(job.log.parent).settings or self.settings
                now = then["mem_gb"]
                what = f"out of memory: hydra.launcher.mem_gb (now {now}) makes it larger; {what}"
            cell.fail(what + ("" if times == 1 else f", {times} times in all") + see)

    def _submit(self, cells: Sequence[Cell]) -> None:
        """Submit cells, but for those that another start has submitted meanwhile."""
        with _alone(self.plan.path.parent / "slurm.lock"):
            jobs = queue(self.runs)
            taken = {i for i, job in jobs.items() if job.active}
            for place in self.runs.glob("plans/*/slurm-*"):
                if (place / "cells.json").exists() and (one := Submission(place)).launching:
                    taken |= set(one.cells)
            free = [cell.run_id for cell in cells if cell.run_id not in taken]
            self.former |= {i: jobs[i].id for i in free if i in jobs}
            size = array_limit()
            chunks = [free[i : i + size] for i in range(0, len(free), size)]
            if len(chunks) > 1 and len(chunks) > (most := self.settings["array_parallelism"]):
                say(
                    f"WARNING: up to {len(chunks)} jobs at once, more than array_parallelism="
                    f"{most}: this cluster's arrays hold {size} cells, and each runs one at least"
                )
            for chunk in chunks:
                self._launch(chunk, len(chunks))

    def _launch(self, run_ids: list[str], arrays: int) -> None:
        number = len(list(self.folder.glob("slurm-*"))) + 1
        submission = Submission(self.folder / f"slurm-{number}")
        submission.folder.mkdir(parents=True)
        files.write(submission.folder / "settings.json", json.dumps(self.settings))
        files.write(submission.folder / "cells.json", json.dumps(run_ids))
        overrides = [
            *self.launcher,
            f"plan={json.dumps(str(self.plan.path))}",
            f"allow_changed={str(self.allow_changed).lower()}",
            f"hydra.sweep.dir={json.dumps(str(submission.folder))}",
            f"hydra.launcher.submitit_folder={json.dumps(str(submission.folder))}",
            f"hydra.launcher.name={submission.name}",
            # the limit is one of the sweep, not of each of its arrays
            f"hydra.launcher.array_parallelism={self._parallel(arrays)}",
            "cell=" + ",".join(json.dumps(run_id) for run_id in run_ids),
        ]
        command = [
            sys.executable,
            "-m",
            "osora_bench.sweep.slurm.submit_process",
            str(submission.folder),
        ]
        with (
            (submission.folder / claim.LOCK).open("w") as lock,
            (submission.folder / "launcher.log").open("wb") as log,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)  # the process's, once this copy is closed
            process = subprocess.Popen(
                [*command, str(len(run_ids)), *overrides],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock.fileno(),),
                start_new_session=True,
            )
        self.launching[submission.name] = (submission, process)
        say(f"submitting {len(run_ids)} as {submission.name}; logs: {submission.folder}")

    def _parallel(self, arrays: int) -> int:
        return max(1, int(self.settings["array_parallelism"]) // arrays)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Between looking at the queue and submitting, no other start does either."""
    with place.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _how(job: Job) -> str:
    told = {
        "CANCELLED": "was cancelled",
        "OUT_OF_MEMORY": "was killed: out of memory",
        "PENDING": "left the queue before it started (cancelled?)",
    }
    if job.state in told:
        return told[job.state]
    ended = "" if job.active else f" ({job.state})"
    return f"ended without a record{ended}"


def run_on_slurm(cells: Sequence[Cell], options: RunOptions) -> None:
    """Run what is missing as SLURM jobs; return when every cell is settled and no job runs.

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
    watch = Watch(frozen_plan.freeze(cells))
    sweep = Sweep(watch, [*options.launcher], settings, options.allow_changed, options.retries)
    attached = queued(watch.open)
    for cell in (c for c in watch.open if c.run_id in attached):
        say(f"{cell.label}: has a job already, {attached[cell.run_id].id}; waiting for it")
    for line in _other_settings(attached.values(), settings):
        say(f"WARNING: {line}")
    try:
        _follow(sweep)
    except KeyboardInterrupt:
        say("the jobs go on, and the next start waits for them; `squeue --me`, `scancel` stop them")
        raise
    watch.look()
    if sweep.refusal is not None and watch.open:
        raise (Refused if len(watch.open) < len(cells) else UserError)(sweep.refusal)
    if sweep.pending:
        say(f"these jobs wait in the queue and have nothing to do: {' '.join(sweep.pending)}")


def _other_settings(jobs: Iterable[Job], settings: dict[str, Any]) -> list[str]:
    """What is to be said of jobs that wait with other settings than this start asks for."""
    waiting = {job.log.parent: job.array_id for job in jobs if job.state == "PENDING"}
    told = []
    for folder, number in waiting.items():
        then = Submission(folder).settings
        differ = [
            f"hydra.launcher.{key}={json.dumps(then.get(key))}, not {json.dumps(settings.get(key))}"
            for key in then | settings
            if then.get(key) != settings.get(key)
        ]
        if then and differ:
            told.append(
                f"{Submission(folder).name} waits as it was submitted, with {'; '.join(differ)}. "
                f"For these: end this start, `scancel --state=PENDING {number}`, start again"
            )
    return told


def _follow(sweep: Sweep) -> None:
    """Watch a sweep to its end."""
    left, asked = True, float("-inf")
    while True:
        sweep.watch.look()
        if not sweep.watch.open or time.monotonic() - asked >= ASK_EVERY:
            try:
                left = sweep.step()
            except subprocess.SubprocessError as error:  # its daemon restarts, or the network
                left = bool(sweep.watch.open)
                sweep.tell_once(f"squeue does not answer, waiting: {reason_of(error)}")
            asked = time.monotonic()
        if not left and (not sweep.watch.open or sweep.refusal is not None):
            return
        if not sweep.watch.open:
            sweep.tell_once("every cell is settled; waiting for the last jobs to end")
        time.sleep(LOOK_EVERY)
