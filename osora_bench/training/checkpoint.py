"""Checkpoints of a training run: whole or not at all, and the newest whole one to go on from."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from osora_bench.common.files import sync, write_whole
from osora_bench.common.interruption import Interruption
from osora_bench.common.progress import say
from osora_bench.planning.config import Config

SEAL = "complete.json"
"""Checksums of a checkpoint's files, written last: without it, it is not one."""
STATE = "state.pt"
"""File of a checkpoint with what training has changed in the model, where one process trains it."""
SHARDS = "shards"
"""Folder with the trained weights and the optimiser, a file of each process, where several do."""
KEPT = 2
WORTH_SAVING = 60.0
"""Seconds of training that are rather done again than written down at its end."""


def every(cfg: Config) -> float | None:
    """How long a cell trains between two checkpoints; None: without any."""
    minutes = cfg.trainer.checkpoint_minutes
    return None if minutes is None else 60 * minutes


class Checkpoints(TrainerCallback):
    """Lets the Trainer save every so many seconds, at the end, and when a signal came.

    Args:
        folder: the Trainer's output folder.
        every: seconds between two checkpoints; None: only on a signal.
    """

    def __init__(self, folder: Path, every: float | None, interruption: Interruption) -> None:
        self.folder = folder
        self.every = every
        self.interruption = interruption
        self.last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        elapsed = time.monotonic() - self.last
        ended = state.global_step >= state.max_steps and elapsed > WORTH_SAVING
        due = self.every is not None and (elapsed >= self.every or ended)
        if due or self.interruption.number is not None:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._seal(self.folder / f"checkpoint-{state.global_step}")
        self.last = time.monotonic()
        self.interruption.safe_point()

    def _seal(self, folder: Path) -> None:
        seal(folder)


def seal(folder: Path) -> None:
    """Make a written checkpoint count: its files on disk, their checksums beside them."""
    sums = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL):
        with path.open("rb") as file:
            sync(file.fileno())
            sums[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    write_whole(folder / SEAL, json.dumps(sums))


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint; what is newer and not whole is removed, and said."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.rpartition("-")[2]))
    for checkpoint in checkpoints:
        if _whole(checkpoint):
            return checkpoint
        say(f"{checkpoint}: no whole checkpoint, removed")
        shutil.rmtree(checkpoint)
    return None


def _whole(folder: Path) -> bool:
    try:
        sums: dict[str, str] = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        if not {STATE, SHARDS} & {Path(name).parts[0] for name in sums}:
            return False  # of before, with what PEFT saves: not always enough to go on from
        for name, expected in sums.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return False
    except (OSError, ValueError):
        return False
    return True
