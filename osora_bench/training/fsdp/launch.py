"""One training by several processes of this machine, which share the model's weights.

The cell's own process starts them, holds no model meanwhile, and evaluates what they have made. It
hands each (rank_process.py) its work on standard input. A line that follows is the number of a
signal, for all to stop at one step; its end says that the cell's process is gone, and theirs with
it. What they leave is in a folder:

    training.json        from rank 0: what a record says of the training; none if they were stopped
    logs.jsonl           from rank 0: the entries of its log, for a live tracker
    error-<rank>.pickle  what ended a process, when, and its traceback
    meeting              where they find each other
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from osora_bench.common.interruption import SIGNALS, Interruption
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import plain
from osora_bench.records import code_state
from osora_bench.records.schema import TrainingCosts
from osora_bench.training import checkpoint
from osora_bench.training.train import Training

TRAINING, LOGS, MEETING = "training.json", "logs.jsonl", "meeting"
COMMAND = (sys.executable, "-m", "osora_bench.training.fsdp.rank_process")
LOOK_EVERY = 0.1
Process = subprocess.Popen[bytes]


Log = Callable[[dict[str, float]], None]


def train_in_parts(
    cell: Cell, interruption: Interruption, log: Log
) -> tuple[Training, int, TrainingCosts]:
    """Train a cell's adapter and write it down, from the newest checkpoint of as many processes on.

    Args:
        log: told of each step, for a live tracker.

    Returns:
        What a record says of the training, how many numbers were trained, and what it cost.

    Raises:
        Interrupted: a signal came; what was done is kept.
        Exception: what ended one of the processes, the first of them if there were several.
    """
    while True:
        # what is not whole is removed before all of them look
        checkpoint.newest(cell.paths.shards(cell.config.processes))
        with tempfile.TemporaryDirectory(prefix="osora-") as folder:
            record = _once(cell, interruption, log, Path(folder))
        if record is not None:
            return Training.of(record["training"]), record["trainable"], record["costs"]
        interruption.safe_point()  # where this returns, they go on from what they have saved


def _once(cell: Cell, interruption: Interruption, log: Log, folder: Path) -> dict[str, Any] | None:
    """Start the processes and wait for them; None if they were stopped."""
    processes: list[Process] = []
    try:
        with (folder / LOGS).open("w+", encoding="utf-8") as logs:
            relay = _Relay(logs, log)
            for index in range(cell.config.processes):
                processes.append(_started(cell, index, folder))
            while _run(processes):
                if interruption.number is not None:  # said at every look: it is heard once
                    _say(processes[0], str(interruption.number))
                relay.look()
                time.sleep(LOOK_EVERY)
            relay.look()
        statuses = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    if any(statuses):
        raise _failure(statuses, folder)
    record = folder / TRAINING
    return json.loads(record.read_text(encoding="utf-8")) if record.exists() else None


def _run(processes: list[Process]) -> bool:
    """Whether to wait on: some run, and none has failed, for which the others would wait."""
    statuses = [process.poll() for process in processes]
    return None in statuses and not any(statuses)


def _started(cell: Cell, index: int, folder: Path) -> Process:
    count = cell.config.processes
    variables = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    threads = max(1, torch.get_num_threads() // count)
    env = {
        **os.environ,
        **{k: str(v) for k, v in variables.items()},
        "OMP_NUM_THREADS": str(threads),
    }
    # rank 0 speaks for all
    log = None if index == 0 else _log(cell).open("ab")
    # a terminal and SLURM send signals to every process; only this one is to hear them
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=env,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        if log is not None:
            log.close()
    work = {"run_id": cell.run_id, "config": plain(cell.config), "folder": str(folder)}
    _say(process, json.dumps({**work, "code": code_state.code()}))
    return process


def _log(cell: Cell) -> Path:
    """Of the ranks that do not speak."""
    cell.paths.trainer.mkdir(parents=True, exist_ok=True)
    return cell.paths.trainer / "ranks.log"


def _say(process: Process, line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended, which is seen at the next look
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()


def _failure(statuses: list[int | None], folder: Path) -> Exception:
    """Why a process failed; those that only missed it then failed later."""
    for index, status in enumerate(statuses):
        if status is not None and status < 0:
            hint = " (out of memory?)" if -status == signal.SIGKILL else ""
            return ChildProcessError(
                f"process {index} of {len(statuses)} was killed by signal {-status}{hint}"
            )
    reports = [pickle.loads(file.read_bytes()) for file in folder.glob("error-*.pickle")]
    if not reports:
        return ChildProcessError(f"processes ended with statuses {statuses} and said nothing")
    _, error, trace = min(reports, key=lambda report: report[0])
    error.add_note(trace)
    assert isinstance(error, Exception)
    return error


@dataclass
class _Relay:
    """Hands what rank 0 logs to the cell's live tracker."""

    logs: TextIO
    log: Log
    partial_line: str = ""

    def look(self) -> None:
        *lines, self.partial_line = (self.partial_line + self.logs.read()).split("\n")
        for line in lines:
            self.log(json.loads(line))
