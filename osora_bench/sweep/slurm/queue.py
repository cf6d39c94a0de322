"""What SLURM says of jobs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from osora_bench.common.errors import UserError
from osora_bench.common.files import last_line_of
from osora_bench.planning.cell import Cell, State
from osora_bench.sweep.slurm.submission import Submission

LARGEST = 1000
"""Most cells of one submission, whatever the cluster allows: they are one command line."""
ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY"),
    *("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED"),
}
HELD_BY_SLURM = {"launch failed requeued held", "jobholdmaxrequeue"}
"""Reasons, in small letters, of jobs that no person holds: SLURM could not start them, or has
requeued them too often."""
NAME = re.compile(r"osora-([0-9a-f]+)-([0-9]+)")
"""What a job is called: its sweep, and which submission of it."""


@dataclass(frozen=True)
class Job:
    """A job of a cell as squeue shows it, also minutes after its end; `log` may not exist."""

    id: str
    state: str
    reason: str
    log: Path

    def __str__(self) -> str:
        return f"job {self.id} ({self.state.lower()}, {self.reason})"

    @property
    def active(self) -> bool:
        return self.state not in ENDED

    @property
    def held_by_slurm(self) -> bool:
        """Whether SLURM of itself holds it, or held it when it was cancelled."""
        held = self.state in ("PENDING", "CANCELLED")
        return held and self.reason.lower().replace("_", " ") in HELD_BY_SLURM

    @property
    def array_id(self) -> int:
        """SLURM's array job id, higher the later it was submitted."""
        return int(self.id.partition("_")[0])


def jobs_in_queue(runs: Path) -> dict[str, Job]:
    """The user's jobs that run cells of a runs folder, by run id; of several that have ended, the
    last.

    Raises:
        subprocess.SubprocessError: squeue does not answer.
    """
    jobs: dict[str, Job] = {}
    cells: dict[Path, list[str]] = {}
    for name, index, number, state, reason in _listed():
        parts = NAME.fullmatch(name)
        if parts is None:
            continue
        submission = Submission(runs / "plans" / parts[1] / f"slurm-{parts[2]}")
        if not submission.complete:
            continue  # of another folder
        if submission.folder not in cells:
            cells[submission.folder] = submission.cells
        members = cells[submission.folder]
        job = Job(number, state, reason, submission.folder / f"{number}_0_log.err")
        for run_id in [members[int(index)]] if index.isdigit() else members:
            if _counts(job, jobs.get(run_id)):
                jobs[run_id] = job
    return jobs


def _listed() -> list[list[str]]:
    """The user's jobs that are called as ours are: name, array index, id, state, reason."""
    # --me is not known to every squeue
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--states=all"]
    result = subprocess.run(
        [*command, "--format=%j|%K|%i|%T|%r"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    lines = [line.split("|", 4) for line in result.stdout.splitlines()]
    # what else squeue prints, as a banner of the site, is not a job
    jobs = [line for line in lines if len(line) == 5 and NAME.fullmatch(line[0])]
    # what waited of an array when it was cancelled is one line without an index: cells that have a
    # line of their own first
    return sorted(jobs, key=lambda job: not job[1].isdigit())


def _counts(job: Job, other: Job | None) -> bool:
    """Whether a cell's job counts more than another: the active one, or else the later one."""
    if other is None or job.active:
        return True
    return not other.active and job.array_id > other.array_id


def cancel(job: Job) -> str | None:
    """Take a job that waits out of the queue; why it could not be done, if so."""
    command = ["scancel", "--state=PENDING", job.id]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    except subprocess.SubprocessError as error:
        return reason_of(error)
    return None


def queued(cells: Sequence[Cell]) -> dict[str, Job]:
    """Which cells have a job in the queue, by run id; quick where nothing was ever submitted."""
    active: dict[str, Job] = {}
    for runs in {cell.paths.runs for cell in cells}:
        if shutil.which("squeue") and any(runs.glob("plans/*/slurm-*")):
            try:
                active |= {run_id: job for run_id, job in jobs_in_queue(runs).items() if job.active}
            except subprocess.SubprocessError as error:
                line = f"WARNING: squeue does not answer, so jobs are not seen: {reason_of(error)}"
                print(line, file=sys.stderr)
    return active


def state_of(cell: Cell, jobs: dict[str, Job]) -> str:
    """A cell's state; `queued` where all that there is of it is a job in the queue."""
    state = cell.state
    return State.QUEUED if state in (State.MISSING, State.FAILED) and cell.run_id in jobs else state


def check_squeue() -> None:
    """Raise UserError if jobs cannot be asked for."""
    try:
        _listed()
    except subprocess.SubprocessError as error:
        raise UserError(f"SLURM does not answer: squeue: {reason_of(error)}") from error


@cache
def array_limit() -> int:
    """How many tasks an array of this cluster may have."""
    result = subprocess.run(
        ["scontrol", "show", "config"], capture_output=True, text=True, check=False
    )
    for line in result.stdout.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return max(1, min(int(value), LARGEST))  # 0: there are no arrays
    raise UserError(f"SLURM does not answer: scontrol show config: {result.stderr.strip()}")


def reason_of(error: subprocess.SubprocessError) -> str:
    return last_line_of(str(getattr(error, "stderr", None) or error))
