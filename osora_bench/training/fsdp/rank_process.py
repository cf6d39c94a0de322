"""One of the processes that share a training. launch.py starts it, says what it reads and leaves.

python -m osora_bench.training.fsdp.rank_process
"""

import json
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osora_bench.common.errors import UserError
from osora_bench.common.interruption import Interrupted
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import Config
from osora_bench.records import code_state


class Ear:
    """Hears on standard input which signal the cell's process has had, and that it is gone."""

    def __init__(self) -> None:
        # unbuffered: what reads on at the end of the process holds no lock that its end would need
        self.lines = open(0, "rb", buffering=0)  # noqa: SIM115 (for as long as it lives)
        self.number: int | None = None

    def work(self) -> dict[str, Any]:
        """The first line; later ones are listened to from then on."""
        work: dict[str, Any] = json.loads(self.lines.readline())
        threading.Thread(target=self._listen, daemon=True).start()
        return work

    def _listen(self) -> None:
        while line := self.lines.readline():
            self.number = int(line)
        os._exit(1)


def run(work: dict[str, Any], signal_number: Callable[[], int | None]) -> None:
    """Join the others and train a part of the model.

    Raises:
        Interrupted: asked to stop; what was done is kept.
        UserError: the code is not what the cell's process runs.
    """
    if not code_state.same(work["code"], code_state.look_since(work["code"])):
        raise UserError("the code has changed since the cell's process was started; start it anew")
    # torch and transformers: the line above and the signals need not wait for them
    from osora_bench.training.fsdp.part import join_and_train

    join_and_train(_cell(work), Path(work["folder"]), signal_number)


def _cell(work: dict[str, Any]) -> Cell:
    """The cell, without its live tracker, which is the cell's process's."""
    config = Config.of(work["config"])
    config.tracker.report_to = "none"
    return Cell(work["run_id"], config, ())


def _leave(error: Exception, folder: Path) -> None:
    """Write down what ended this process, for the cell's to raise."""
    report = (time.time(), error, traceback.format_exc())
    try:
        pickle.loads(pickled := pickle.dumps(report))
    except Exception:  # a class that cannot be made from its arguments, for one
        substitute = RuntimeError(f"{type(error).__name__}: {error}")
        pickled = pickle.dumps((report[0], substitute, report[2]))
    file = folder / f"error-{os.environ['RANK']}.pickle"
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(pickled)
    temporary.replace(file)


def main() -> int:
    """Do the work that standard input says."""
    ear = Ear()
    work = ear.work()
    try:
        run(work, lambda: ear.number)
    except Interrupted:
        return 0  # all of them at this step, and what was done is on disk
    except Exception as error:
        _leave(error, Path(work["folder"]))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
