"""How the cells of a sweep are run."""

from dataclasses import dataclass

RETRIES = 1
WAIT = 24 * 60
"""Minutes."""
AUTO = 0
"""Workers: one a GPU, or one a processor that there is memory for."""


@dataclass(frozen=True)
class RunOptions:
    """How cells are run: in this process, in several, or as jobs.

    `workers` are the processes to run them in; 1 is this process, AUTO as many as the machine has
    room for. `launcher` are Hydra overrides of
    a SLURM launcher, to run them as its jobs. `retries` is how often a cell is started again whose
    process or job was killed. `allow_changed` lets workers and jobs run other code than the sweep
    was started with. `wait` is after how many minutes jobs of which nothing moves are left to
    themselves.
    """

    workers: int = 1
    launcher: tuple[str, ...] = ()
    retries: int = RETRIES
    allow_changed: bool = False
    wait: float = WAIT
