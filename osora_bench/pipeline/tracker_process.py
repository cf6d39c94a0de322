"""One cell's run on a tracker, beside the cell: Weights & Biases, TensorBoard or MLflow.

python -m osora_bench.pipeline.tracker_process

It reads what tracker.py tells on its standard input, a JSON object a line: `init` with the name of
the `tracker` and what it starts with, `log` with the values of a step, `end` with a summary. Its
last line says why its exit status is not 0.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

ANSWER = 60.0
"""Seconds that the server has to answer at the start; after them the run is kept offline."""
UPLOAD = 20.0
"""Seconds for what is not uploaded yet when the cell is over."""
ORPHANED = ANSWER + UPLOAD + 10.0
"""Seconds that this process may live on when the cell's process is over: it may still wait for the
server, and then keeps the run offline."""


def main() -> int:
    """Follow a cell to its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they mean the cell, whose end is seen on the pipe
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        problem = _follow(json.loads(line) for line in sys.stdin)
    except Exception as error:
        print(_one_line(error))
        return 1
    if problem is not None:
        print(problem)
        return 1
    return 0


def _follow(messages: Iterator[dict[str, Any]]) -> str | None:
    """Hand on what the cell tells; why it is not on the server, if it was to be."""
    first = next(messages)
    run, problem = _start(first["tracker"], first["init"])
    end: dict[str, Any] = {"summary": {}, "failed": True}  # the cell was killed
    for message in messages:
        if "end" in message:
            end = message["end"]
        else:
            run.log(message["log"])
    run.end(end["summary"], end["failed"])
    return problem


class Run(Protocol):
    """What follows a cell."""

    def log(self, values: dict[str, float]) -> None:
        """The values of a step."""

    def end(self, summary: dict[str, Any], failed: bool) -> None:
        """The numbers of the whole cell, and whether it failed."""


def _start(tracker: str, arguments: dict[str, Any]) -> tuple[Run, str | None]:
    """The run; why it is not on the server, if it was to be."""
    if tracker == "tensorboard":
        from osora_bench.pipeline.on_tensorboard import TensorBoardRun

        return TensorBoardRun(arguments), None
    if tracker == "mlflow":
        from osora_bench.pipeline.on_mlflow import MlflowRun

        return MlflowRun(arguments), None
    run, problem = _wandb(arguments)
    return WandbRun(run), problem


class WandbRun:
    """A run on Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self.run = run
        run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, float]) -> None:
        """The values of a step."""
        self.run.log(values)

    def end(self, summary: dict[str, Any], failed: bool) -> None:
        """The numbers of the whole cell, and whether it failed."""
        self.run.summary.update(summary)
        self.run.finish(exit_code=int(failed))


def _wandb(arguments: dict[str, Any]) -> tuple[Any, str | None]:
    """wandb's run; kept offline where the server cannot be reached, and then why."""
    import wandb

    settings = {
        "silent": True,
        "console": "off",
        "disable_code": True,
        "x_stats_pid": os.getppid(),  # the cell's process is the one to measure
        "init_timeout": ANSWER,
        "finish_timeout": UPLOAD,
        "finish_timeout_raises": True,
    }
    try:
        return wandb.init(**arguments, settings=wandb.Settings(**settings)), None
    except wandb.errors.CommError as error:
        if arguments["mode"] != "online":
            raise
        reason = _one_line(error)
    wandb.teardown()  # the id is taken there
    arguments = {**arguments, "mode": "offline"}
    run = wandb.init(**arguments, settings=wandb.Settings(**settings))
    folder = Path(run.dir).parent
    return run, f"does not reach its server ({reason}); `wandb sync {folder}` uploads the run later"


def _one_line(error: Exception) -> str:
    return f"ended: {type(error).__name__}: {error}".replace("\n", " ")


def _end_with(parent: int) -> None:
    """Kill this process, and what wandb started, some time after the cell's."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(ORPHANED)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
