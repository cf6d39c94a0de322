"""Live curves, on request. A record never depends on them, nor does a cell wait for them.

The tracker's library runs in a process of its own (tracker_process.py), which is told what happens
over a pipe that never blocks: one that raises, hangs, dies or does not keep up costs its curves
and one warning. What it still has to do when a cell is over it does beside the next one.
"""

import atexit
import contextlib
import fcntl
import importlib.util
import json
import netrc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from osora_bench.common.errors import UserError
from osora_bench.common.files import last_line
from osora_bench.common.progress import say
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import TrackerConfig

FINISH = 5.0
"""Seconds that a process waits at its end for trackers, to tell of those that fail; what is not
done then goes on by itself."""
FINISH_JOB = 30.0
"""The same in a SLURM job, whose end is theirs."""
PIPE = 1 << 20
"""Bytes that a tracker may be behind: about 8,000 steps."""


class Tracker:
    """Where the curves of one cell go; without a process, nowhere."""

    def __init__(self, label: str, log: Path, process: "subprocess.Popen[bytes] | None") -> None:
        self.label = label
        self.file = log
        self.process = process

    def log(self, values: dict[str, float]) -> None:
        """Tell of one step."""
        self._send({"log": values})

    def end(self, summary: dict[str, Any], failed: bool) -> None:
        """Tell how the cell ended; the process goes on by itself from here."""
        self._send({"end": {"summary": summary, "failed": failed}})
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            _finishing.append(self)

    def wait(self, deadline: float) -> bool:
        """Wait for the process that ends; whether it did."""
        assert self.process is not None
        try:
            status = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        if status != 0:
            self._warn(_said_last(self.file))
        return True

    def give_up(self, reason: str) -> None:
        """Kill the process, and say so."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._warn(reason)
        self.process = None

    def _send(self, message: dict[str, Any]) -> None:
        if self.process is None:
            return
        assert self.process.stdin is not None
        line = json.dumps(message).encode() + b"\n"
        try:
            count = os.write(self.process.stdin.fileno(), line)
        except BlockingIOError:
            self.give_up("does not keep up")
        except BrokenPipeError:
            self.give_up(_said_last(self.file))
        else:
            if count < len(line):
                self.give_up("does not keep up")

    def _warn(self, reason: str) -> None:
        say(
            f"WARNING: {self.label}: its tracker {reason}  (see {self.file}); "
            "the cell does not mind"
        )


_finishing: list[Tracker] = []
"""Trackers whose cells are over."""


@contextmanager
def tracking(cell: Cell, config: dict[str, Any]) -> Iterator[Tracker]:
    """A cell's tracker, if its configuration names one; at the end it is told of a failure.

    Args:
        config: what the tracker is to say of the cell's configuration.
    """
    _finishing[:] = [earlier for earlier in _finishing if not earlier.wait(0.0)]
    tracker = _started(cell, config)
    try:
        yield tracker
    except BaseException:
        tracker.end({}, failed=True)
        raise


def _started(cell: Cell, config: dict[str, Any]) -> Tracker:
    log = cell.paths.folder / "tracker.log"
    kind = cell.config.tracker.report_to
    if kind == "none":
        return Tracker(cell.label, log, None)
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "osora_bench.pipeline.tracker_process"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,  # a Ctrl-C or a terminal that closes is not its end
            )
    except OSError as error:
        say(f"WARNING: {cell.label}: its tracker does not start ({error}); the cell does not mind")
        return Tracker(cell.label, log, None)
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    with contextlib.suppress(PermissionError):  # this user has many pipes: then it is a small one
        fcntl.fcntl(process.stdin.fileno(), fcntl.F_SETPIPE_SZ, PIPE)
    tracker = Tracker(cell.label, log, process)
    tracker._send({"tracker": kind, "init": SETTINGS[kind](cell, config)})
    return tracker


def _tensorboard(cell: Cell, config: dict[str, Any]) -> dict[str, Any]:
    """Where the event files go: TensorBoard shows the folders below one as runs."""
    group = cell.config.tracker.group or "cells"
    folder = cell.paths.runs.absolute() / "tensorboard" / group / cell.run_id
    return {"folder": str(folder), "name": cell.label, "id": cell.run_id, "config": config}


def _mlflow(cell: Cell, config: dict[str, Any]) -> dict[str, Any]:
    """The server that the environment names, or a file below the runs folder."""
    own = f"sqlite:///{cell.paths.runs.absolute() / 'mlflow.db'}"
    section = cell.config.tracker
    return {
        "uri": os.environ.get("MLFLOW_TRACKING_URI") or own,
        "project": section.project or "osora_bench",
        "group": section.group,
        "name": cell.label,
        "id": cell.run_id,
        "config": config,
    }


def _wandb(cell: Cell, config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of wandb.init. A cell that is started again goes on in the run of its first start,
    where the server knows it."""
    section = cell.config.tracker
    return {
        "project": section.project,
        "group": section.group,
        "mode": mode(section.mode),
        "id": cell.run_id,
        "resume": "allow",
        "name": cell.label,
        "dir": str(cell.paths.folder.absolute()),
        "config": {**config, "run_id": cell.run_id},
    }


def mode(choice: str) -> str:
    """wandb's mode: what is asked for, or with `auto` what WANDB_MODE says, or else online where
    the user is logged in."""
    if choice != "auto":
        return choice
    return os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")


def logged_in() -> bool:
    """Whether there is a key for the server (WANDB_BASE_URL): in WANDB_API_KEY or in netrc, where
    `wandb login` writes it. Nobody is asked over the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc_name = os.environ.get("NETRC")
    places = [Path(netrc_name)] if netrc_name else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for place in (p.expanduser() for p in places):
        try:
            login = netrc.netrc(place).authenticators(server())
        except FileNotFoundError:
            continue
        except (netrc.NetrcParseError, OSError) as error:
            say(f"WARNING: {place} cannot be read, so wandb counts as not logged in: {error}")
            continue
        if login is not None:
            return True
    return False


def server() -> str:
    """The host that wandb sends to."""
    return urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc


SETTINGS: dict[str, Callable[[Cell, dict[str, Any]], dict[str, Any]]] = {
    "wandb": _wandb,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}
"""By tracker, what its run starts with."""


def check_tracker(section: TrackerConfig) -> None:
    """Raise UserError if a tracker section cannot work on this machine."""
    name = section.report_to
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"tracker={name}: the package {name} is not installed: pip install {name}")
    if name not in ("none", "wandb") and section.mode != "auto":
        raise UserError(f"tracker.mode={section.mode} is wandb's: it has no effect on {name}")
    if section.report_to == "wandb" and section.mode == "online" and not logged_in():
        raise UserError(
            f"tracker.mode=online: not logged in to {server()}: set WANDB_API_KEY, run "
            "`wandb login`, or use tracker.mode=auto or offline"
        )


def _said_last(log: Path) -> str:
    with contextlib.suppress(OSError):
        return last_line(log) or "it said nothing"
    return "its output cannot be read"


@atexit.register
def _wait_for_all() -> None:
    in_slurm_job = "SLURM_JOB_ID" in os.environ
    patience = FINISH_JOB if in_slurm_job else FINISH
    deadline = time.monotonic() + patience
    for tracker in _finishing:
        if tracker.wait(deadline):
            continue
        if in_slurm_job:
            tracker.give_up(f"was not done {patience:.0f} s after the end")
        else:
            say(
                f"{tracker.label}: its tracker is not done yet and goes on by itself  "
                f"(see {tracker.file})"
            )
