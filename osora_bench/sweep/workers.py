"""A sweep in several processes of this machine, which outlive the one that started them."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from osora_bench.common import claim
from osora_bench.common.allowance import OURS
from osora_bench.common.errors import Refused, UserError
from osora_bench.common.exits import INTERRUPTED, LOST, MISTAKE
from osora_bench.common.files import last_line
from osora_bench.common.progress import say
from osora_bench.pipeline.messages import less_memory, where
from osora_bench.planning.cell import Cell, State
from osora_bench.planning.estimate import estimate_of
from osora_bench.sweep import frozen_plan
from osora_bench.sweep.options import RETRIES, RunOptions
from osora_bench.sweep.watch import Watch

LOOK_EVERY = 0.5
BARREN = 3
"""Workers in a row that may end with nothing done, before no more are started."""
LOSSES = 2
"""Cells in a row that may lose their slot's GPU before others are preferred to it."""


class Locks(contextlib.ExitStack):
    """Locked files, which closing lets go."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: list[int] = []

    def take(self, place: Path) -> None:
        """Lock one more file, or raise BlockingIOError."""
        file = self.enter_context(place.open("w"))
        claim.lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.handles.append(file.fileno())


@dataclass
class Workers:
    """The worker processes of one sweep.

    A worker has a slot, one of `count`: a GPU, where there are any. Slots are locked, so that the
    workers of an earlier start, which may live, keep theirs.
    """

    watch: Watch
    count: int
    allow_changed: bool
    devices: list[str]
    retries: int = RETRIES
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)  # of a cell's processes, by run id
    told: bool = False
    refusal: str | None = None  # why no more workers are started
    lost: Counter[int] = field(default_factory=Counter)  # by slot, since its last other end
    barren: int = 0
    left: int = 0  # cells that were open when `barren` was counted last

    @property
    def sweep(self) -> frozen_plan.Frozen:
        return self.watch.sweep

    @property
    def folder(self) -> Path:
        """Holds the workers' own output."""
        return self.sweep.path.with_suffix("")

    def log(self, slot: int) -> Path:
        return self.folder / f"worker-{slot}.log"

    def fill(self) -> None:
        """Start workers, as many as there are cells to run and room for."""
        if self.refusal is not None:
            return
        waiting = sum(self.sweep.waits(cell) for cell in self.watch.open)
        sound_slots = [slot for slot in range(self.count) if self.lost[slot] < LOSSES]
        # where cells have lost every GPU, it may as well be the cells
        free_slots = [slot for slot in sound_slots or range(self.count) if slot not in self.running]
        for slot in free_slots[:waiting]:
            lock = self._slot_lock(slot)
            if lock is not None:
                with lock:
                    self.running[slot] = self._start(slot, lock)
        if waiting and not self.running and not self.told:
            say(f"{waiting} cells wait for workers of an earlier start, which have every slot")
            self.told = True

    def _slot_lock(self, slot: int) -> "Locks | None":
        """The slot's locks, one for each of its GPUs; None if a worker holds one, as one of an
        earlier start may, whose slots may be of another size."""
        names = [f"cpu-{slot}"]
        if self.devices:
            names = [f"gpu-{name}".replace("/", "_") for name in self.devices[slot].split(",")]
        places = self.sweep.path.parent.parent / "workers"
        places.mkdir(parents=True, exist_ok=True)
        locks = Locks()
        try:
            for name in names:
                locks.take(places / f"{socket.gethostname()}-{name}")
        except BlockingIOError:
            locks.close()
            return None
        return locks

    def _start(self, slot: int, lock: "Locks") -> subprocess.Popen[bytes]:
        if not self.folder.exists():
            self.folder.mkdir()
            say(f"up to {self.count} workers; their output: {self.folder}")
        env = dict(os.environ)
        # another number of threads is another order of sums: a record names it
        env.setdefault("OMP_NUM_THREADS", str(max(1, OURS.processors() // self.count)))
        if self.devices:
            env["CUDA_VISIBLE_DEVICES"] = self.devices[slot]
        command = [sys.executable, "-m", "osora_bench.sweep.worker_process", str(self.sweep.path)]
        with self.log(slot).open("ab") as log:
            return subprocess.Popen(
                [*command, *(["--allow-changed"] if self.allow_changed else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                pass_fds=lock.handles,  # its own then: the kernel drops them when it ends
                start_new_session=True,  # a lost terminal or a Ctrl-C here is not theirs
            )

    def reap(self) -> None:
        """Notice workers that ended. When one refuses to run, or they end again and again with
        nothing done, no more are started (`refusal`): those that run go on."""
        for slot, process in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[slot]
            if status == MISTAKE:
                self.refusal = self._said(slot)
                continue
            self._count_lost(slot, status)
            if (cell := self._left_by(process.pid)) is not None:
                self.barren = 0
                self._died(cell, status, slot)
            elif status < INTERRUPTED:
                self._barren(slot)

    def _count_lost(self, slot: int, status: int) -> None:
        self.lost[slot] = self.lost[slot] + 1 if status == LOST else 0
        if self.lost[slot] == LOSSES:
            say(
                f"GPU {self.devices[slot] if self.devices else slot}: {LOSSES} cells in a row have "
                f"lost it; others get the cells, while there are any  (see {self.log(slot)})"
            )

    def _left_by(self, pid: int) -> Cell | None:
        """The cell that a process had when it ended; none if it ended between two."""
        for cell in self.watch.open:
            note = claim.note(cell.paths.folder)
            is_holder = (note.get("pid"), note.get("host")) == (pid, socket.gethostname())
            if is_holder and not self.sweep.settled(cell):
                return cell
        return None

    def _died(self, cell: Cell, status: int, slot: int) -> None:
        """A cell's process ended before the cell did: once more, if that was not so before."""
        if status > INTERRUPTED:
            name = signal.Signals(status - INTERRUPTED).name
            say(f"{cell.label}: its process was ended by {name}; it goes on from what is kept")
            return
        self.deaths[cell.run_id] += 1
        times = self.deaths[cell.run_id]
        ending = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        say(f"{cell.label}: its process {ending}  (see {self.log(slot)})")
        if times > self.retries:
            advice = f" (out of memory? fewer workers, {less_memory(cell)} take less)"
            hint = advice if status == -signal.SIGKILL else ""
            cell.fail(f"its process {ending}{hint}, {times} times in all  (see {self.log(slot)})")

    def _barren(self, slot: int) -> None:
        """A worker ended without a cell: none was left; or else something is wrong with it."""
        waiting = sum(self.sweep.waits(cell) for cell in self.watch.open)
        settled = len(self.watch.open) < self.left
        self.left = len(self.watch.open)
        self.barren = 0 if not waiting else 1 if settled else self.barren + 1
        if self.barren >= BARREN:
            self.refusal = (
                f"{BARREN} workers in a row ended with nothing done and {waiting} cells left: "
                f"{self._said(slot)}"
            )

    def _said(self, slot: int) -> str:
        """The last line of a worker's output, and where the rest is."""
        line = (last_line(self.log(slot)) or "no output").removeprefix("osora-bench: ")
        return f"{line}  (see {self.log(slot)})"


def run_in_workers(cells: Sequence[Cell], options: RunOptions) -> None:
    """Run what is missing in several processes; return when nothing is left or running.

    Raises:
        UserError: fewer GPUs than workers.
        Refused: code that changed under the sweep, or no worker that can do anything; what ran
            has ended.
    """
    slots, gpu_names, count = devices(cells), gpus(cells), options.workers
    if gpu_names and count > len(slots):
        largest = max(cell.config.processes for cell in cells)
        raise UserError(
            f"workers={count}: there are {len(gpu_names)} GPUs, and a cell takes "
            + ("one" if largest == 1 else f"trainer.processes={largest}")
        )
    watch = Watch(frozen_plan.freeze(cells))
    workers = Workers(watch, count, options.allow_changed, slots, options.retries)
    for cell in watch.open:
        if cell.state == State.RUNNING:
            say(f"{cell.label}: runs already{where(cell)}; waiting for it")
    try:
        while workers.running or (watch.open and workers.refusal is None):
            watch.look()
            workers.reap()
            workers.fill()
            time.sleep(LOOK_EVERY)
    except KeyboardInterrupt:
        pids = " ".join(str(p.pid) for p in workers.running.values())
        say(f"the workers go on, and the next start waits for them; `kill -INT {pids}` stops them")
        raise
    watch.look()
    if workers.refusal is not None and watch.open:
        raise Refused(workers.refusal)


def room(cells: Sequence[Cell]) -> int:
    """How many workers these cells have work, processors or GPUs, and memory for; at least 1."""
    if gpus(cells):
        return max(1, min(len(devices(cells)), len(cells)))
    most = OURS.processors()
    sizes = [cost.gigabytes for cell in cells if (cost := estimate_of(cell, {})) is not None]
    if sizes:
        free = min(OURS.memory_left(), psutil.virtual_memory().available) / 1e9
        most = min(most, int(free / max(sizes)))
    return max(1, min(most, len(cells)))


def devices(cells: Sequence[Cell]) -> list[str]:
    """The GPUs of each worker that there are GPUs for: as many as its largest cell trains on."""
    names, largest = gpus(cells), max(cell.config.processes for cell in cells)
    return [",".join(names[i : i + largest]) for i in range(0, len(names) - largest + 1, largest)]


def gpus(cells: Sequence[Cell]) -> list[str]:
    """The GPUs that cells may use here, by the names that CUDA_VISIBLE_DEVICES takes; none if all
    of them are to run on the CPU."""
    if all(cell.config.device == "cpu" for cell in cells):
        return []
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else [*map(str, range(count))]
    if all(name.startswith("MIG-") for name in names):  # CUDA shows a process one of these
        return names
    return names[:count]
