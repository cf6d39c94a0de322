"""One submission of cells: the folder that tells any later start which cells its jobs are, and the
process that hands them to SLURM.

    runs/plans/<sweep>/slurm-<n>/    its jobs are called osora-<sweep>-<n>
        cells.json      run ids by array index, there before anything is submitted
        settings.json   the launcher's settings
        lock            held by the launching process
        launcher.log    its output
        <job>_...       submitit's files: what to run, log.out, log.err
"""

import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osora_bench.common import claim
from osora_bench.common.errors import UserError
from osora_bench.common.files import write_whole

CELLS, SETTINGS, LOG = "cells.json", "settings.json", "launcher.log"
PATTERN = re.compile(r"\\|%[0-9]*[%AabJjNnstux]|\$\{")
"""What SLURM and its launcher do not take as it stands in the name of a folder for jobs: SLURM's
escape, SLURM's and submitit's parts of file names, Hydra's interpolation, which is resolved twice
there."""


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
        run_ids: list[str] = json.loads((self.folder / CELLS).read_text(encoding="utf-8"))
        return run_ids

    @property
    def settings(self) -> dict[str, Any]:
        """The launcher's settings that its jobs were submitted with; none where an older version
        submitted them."""
        place = self.folder / SETTINGS
        settings: dict[str, Any] = json.loads(place.read_text("utf-8")) if place.exists() else {}
        return settings

    @property
    def launching(self) -> bool:
        """Whether its launching process lives."""
        return claim.holder(self.folder) is not None

    @property
    def output(self) -> str:
        """What its launching process said."""
        return (self.folder / LOG).read_text(encoding="utf-8", errors="replace").strip()

    @property
    def complete(self) -> bool:
        """Whether its cells are known; a start that is killed may leave a bare folder."""
        return (self.folder / CELLS).exists()

    def launch(self, overrides: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Start the process that submits its cells, and lives on without this one."""
        command = [
            *(sys.executable, "-m", "osora_bench.sweep.slurm.submit_process"),
            *(str(self.folder), str(len(self.cells)), *overrides),
        ]
        with (self.folder / claim.LOCK).open("w") as lock, (self.folder / LOG).open("wb") as log:
            claim.lock(lock, fcntl.LOCK_EX)  # the process's, once this copy is closed
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock.fileno(),),
                start_new_session=True,
            )


def check_place(runs: Path) -> None:
    """Refuse a runs folder below which no job could write its log."""
    place = runs.absolute()
    if pattern := PATTERN.search(str(place)):
        raise UserError(
            f"runs={place}: SLURM and its launcher do not take {pattern[0]} in the name of a "
            "folder as it stands, so that jobs would not find their files: take another folder"
        )


def prepared(folder: Path, run_ids: Sequence[str], settings: dict[str, Any]) -> Submission:
    """A new submission below a sweep's folder, with what later starts read of it."""
    number = len(list(folder.glob("slurm-*"))) + 1
    submission = Submission(folder / f"slurm-{number}")
    submission.folder.mkdir(parents=True)
    write_whole(submission.folder / SETTINGS, json.dumps(settings))
    write_whole(submission.folder / CELLS, json.dumps(run_ids))
    return submission
