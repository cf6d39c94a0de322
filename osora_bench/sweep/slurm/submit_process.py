"""The process that submits cells to SLURM: a Hydra multirun of job_process.py. sweep.py starts it.

python -m osora_bench.sweep.slurm.submit_process FOLDER COUNT OVERRIDE ...

It leaves when its jobs are submitted. Hydra's launcher would stay until it knows how each of them
ended, and without slurmdbd it never hears of one that was killed.
"""

import os
import sys
import threading
import time
from pathlib import Path

from osora_bench.planning.compose import find_own_conf
from osora_bench.sweep.slurm import job_process

LOOK_EVERY = 0.2


def submit(folder: Path, count: int, overrides: list[str]) -> None:
    """Submit `count` cells that Hydra overrides describe; submitit's files are in `folder`."""
    threading.Thread(target=_leave_when_submitted, args=(folder, count), daemon=True).start()
    sys.argv = [sys.argv[0], "--multirun", *overrides]
    find_own_conf()
    job_process.main()


def _leave_when_submitted(folder: Path, count: int) -> None:
    """Wait for submitit's last act of a submission: the id of its job in each pickle's name."""
    while len(list(folder.glob("*_submitted.pkl"))) < count:
        time.sleep(LOOK_EVERY)
    os._exit(0)


if __name__ == "__main__":
    submit(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
