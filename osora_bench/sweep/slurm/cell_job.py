"""What a start knows of the job of one cell."""

import time
from dataclasses import dataclass

from osora_bench.sweep.slurm.queue import Job


@dataclass
class CellJob:
    """The job of one cell, as one start has seen it.

    Attributes:
        expected: whether there was one that must not vanish.
        seen: that one as it was seen last; None if it never was.
        gone_since: since when it is not in the queue (`time.monotonic`); None while it is.
        ended_before: the id of one that had ended when this one was submitted, of which squeue
            tells for minutes.
        losses: how many were lost.
    """

    expected: bool = False
    seen: Job | None = None
    gone_since: float | None = None
    ended_before: str | None = None
    losses: int = 0

    def expect(self, job: Job | None) -> None:
        """From now on there is a job, perhaps one that was not seen yet."""
        self.expected, self.seen = True, job

    def back(self) -> None:
        """It is not gone, or somebody runs the cell."""
        self.gone_since = None

    def gone_for(self) -> float:
        """Seconds since it was first missed, which may be now."""
        now = time.monotonic()
        if self.gone_since is None:
            self.gone_since = now
        return now - self.gone_since

    def forget(self) -> None:
        """It will not come back: the next one is another."""
        self.expected, self.seen, self.gone_since = False, None, None


def how_it_ended(job: Job | None) -> str:
    """What to say of a job that came to nothing: its cell has neither a record nor a failure."""
    if job is None:
        return "its job was never seen"
    if job.held_by_slurm:
        return f"its job {job.id} was held by SLURM ({job.reason})"
    endings = {
        "CANCELLED": "was cancelled",
        "OUT_OF_MEMORY": "was killed: out of memory",
        "PENDING": "left the queue before it started (cancelled?)",
    }
    state = "" if job.active else f" ({job.state})"
    return f"its job {job.id} " + endings.get(job.state, f"ended without a record{state}")
