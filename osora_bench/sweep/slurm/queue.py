"""What SLURM says of jobs."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from osora_bench.common import claim
from osora_bench.common.errors import UserError
from osora_bench.planning.cell import Cell, State

LARGEST = 1000
"""Most cells of one submission, whatever the cluster allows: they are one command line."""
ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY"),
    *("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED"),
}
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
    def array_id(self) -> int:
        """SLURM's array job id, higher the later it was submitted."""
        return int(self.id.partition("_")[0])


@dataclass(frozen=True)
class Submission:
    """One folder of submitted cells."""

    folder: Path

    @property
    def name(self) -> str:
        """What its jobs are called."""
        return f"osora-{self.folder.parent.name}-{self.folder.name.removeprefix('slurm-')}"

    @property
    def cells(self) -> list[str]:
        """Run ids by array index."""
        found: list[str] = json.loads((self.folder / "cells.json").read_text(encoding="utf-8"))
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """The launcher's settings that its jobs were submitted with; none where an older version
        submitted them."""
        place = self.folder / "settings.json"
        found: dict[str, Any] = json.loads(place.read_text("utf-8")) if place.exists() else {}
        return found

    @property
    def launching(self) -> bool:
        """Whether its launching process lives."""
        return claim.holder(self.folder) is not None

    @property
    def output(self) -> str:
        """What its launching process said."""
        return (self.folder / "launcher.log").read_text(encoding="utf-8", errors="replace").strip()


def queue(runs: Path) -> dict[str, Job]:
    """The user's jobs that run cells of a runs folder, by run id; of several that have ended, the
    last.

    Raises:
        subprocess.SubprocessError: squeue does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--me", "--states=all", "--format=%j|%K|%i|%T|%r"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    jobs: dict[str, Job] = {}
    cells: dict[Path, list[str]] = {}
    rows = [line.split("|", 4) for line in listed.stdout.splitlines()]
    # what waited of an array when it was cancelled is one row without an index: cells that have a
    # row of their own first
    rows.sort(key=lambda row: not row[1].isdigit())
    for name, index, number, state, reason in rows:
        ours = NAME.fullmatch(name)
        if ours is None:
            continue
        submission = Submission(runs / "plans" / ours[1] / f"slurm-{ours[2]}")
        if not (submission.folder / "cells.json").exists():
            continue  # of another folder
        if submission.folder not in cells:
            cells[submission.folder] = submission.cells
        members = cells[submission.folder]
        job = Job(number, state, reason, submission.folder / f"{number}_0_log.err")
        for run_id in [members[int(index)]] if index.isdigit() else members:
            if _counts(job, jobs.get(run_id)):
                jobs[run_id] = job
    return jobs


def _counts(job: Job, other: Job | None) -> bool:
    """Whether a cell's job counts more than another: the active one, or else the later one."""
    if other is None or job.active:
        return True
    return not other.active and job.array_id > other.array_id


def queued(cells: Sequence[Cell]) -> dict[str, Job]:
    """Which cells have a job in the queue, by run id; quick where nothing was ever submitted."""
    found: dict[str, Job] = {}
    for runs in {cell.paths.runs for cell in cells}:
        if shutil.which("squeue") and any(runs.glob("plans/*/slurm-*")):
            try:
                found |= {run_id: job for run_id, job in queue(runs).items() if job.active}
            except subprocess.SubprocessError as error:
                line = f"WARNING: squeue does not answer, so jobs are not seen: {reason_of(error)}"
                print(line, file=sys.stderr)
    return found


def state(cell: Cell, jobs: dict[str, Job]) -> str:
    """A cell's state; `queued` where all that there is of it is a job in the queue."""
    known = cell.state
    return State.QUEUED if known in (State.MISSING, State.FAILED) and cell.run_id in jobs else known


@cache
def array_limit() -> int:
    """How many tasks an array of this cluster may have."""
    shown = subprocess.run(
        ["scontrol", "show", "config"], capture_output=True, text=True, check=False
    )
    for line in shown.stdout.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return max(1, min(int(value), LARGEST))  # 0: there are no arrays
    raise UserError(f"SLURM does not answer: scontrol show config: {shown.stderr.strip()}")


def last_line(text: str) -> str:
    return (text.splitlines() or ["no output"])[-1].strip()


def reason_of(error: subprocess.SubprocessError) -> str:
    return last_line(str(getattr(error, "stderr", None) or error))
