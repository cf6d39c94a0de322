"""A sweep in several processes of this machine, which outlive the one that started them."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from osora_bench import claim, frozen
from osora_bench.errors import UserError
from osora_bench.plan import Cell, processes
from osora_bench.progress import say
from osora_bench.watch import Watch

LOOK_EVERY = 0.5
RETRIES = 1
"""How often a cell is started again whose process was killed."""


@dataclass
class Workers:
    """The worker processes of one sweep."""

    sweep: frozen.Frozen
    count: int
    allow_changed: bool
    devices: list[str]
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    killed: Counter[str] = field(default_factory=Counter)

    @property
    def log(self) -> Path:
        """Folder of the workers' own output."""
        return self.sweep.path.with_suffix("")

    def fill(self) -> None:
        """Start workers, as many as there are cells to run and room for."""
        waiting = [
            c for c in self.sweep.cells if not self.sweep.settled(c) and c.state != "running"
        ]
        free = [slot for slot in range(self.count) if slot not in self.running]
        for slot in free[: len(waiting)]:
            self.running[slot] = self._start(slot)

    def _start(self, slot: int) -> subprocess.Popen[bytes]:
        self.log.mkdir(exist_ok=True)
        env = dict(os.environ)
        cores = os.cpu_count() or 1
        # another number of threads is another order of sums: a record names it
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores // self.count)))
        if self.devices:
            env["CUDA_VISIBLE_DEVICES"] = self.devices[slot]
        command = [sys.executable, "-m", "osora_bench.worker", str(self.sweep.path)]
        with (self.log / f"worker-{slot}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, *(["--allow-changed"] if self.allow_changed else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,  # a lost terminal or a Ctrl-C here is not theirs
            )

    def reap(self) -> None:
        """Notice workers that ended; a cell that killed its process too often has failed."""
        for slot, process in list(self.running.items()):
            status = process.poll()
            if status is None:
                continue
            del self.running[slot]
            if status < 0:
                self._killed(process.pid, -status)
            elif status == 2:
                raise UserError((self.log / f"worker-{slot}.log").read_text("utf-8").strip())

    def _killed(self, pid: int, number: int) -> None:
        for cell in self.sweep.cells:
            if claim.note(cell.paths.folder).get("pid") != pid or self.sweep.settled(cell):
                continue
            self.killed[cell.run_id] += 1
            times = self.killed[cell.run_id]
            say(f"{cell.label}: its process was killed by signal {number}")
            if times > RETRIES:
                cell.fail(
                    f"its process was killed {times} times, at last by signal {number}"
                    + (" (out of memory?)" if number == 9 else "")
                )


def run_in_workers(cells: Sequence[Cell], count: int, allow_changed: bool = False) -> None:
    """Run what is missing in `count` processes; return when nothing is left or running.

    Raises:
        UserError: fewer GPUs than workers, or code that changed under the sweep.
    """
    slots = devices(cells)
    if gpus() and count > len(slots):
        each = max(processes(cell.config) for cell in cells)
        raise UserError(
            f"workers={count}: there are {len(gpus())} GPUs, and a cell takes "
            + ("one" if each == 1 else f"trainer.processes={each}")
        )
    workers = Workers(frozen.freeze(cells), count, allow_changed, slots)
    watch = Watch(workers.sweep)
    say(f"{count} workers; their output: {workers.log}")
    try:
        while True:
            workers.reap()
            workers.fill()
            watch.look()
            if not workers.running and watch.all_settled():
                return
            time.sleep(LOOK_EVERY)
    except KeyboardInterrupt:
        pids = " ".join(str(p.pid) for p in workers.running.values())
        say(f"the workers go on, and the next start waits for them; `kill {pids}` stops them")
        raise


def devices(cells: Sequence[Cell]) -> list[str]:
    """The GPUs of each worker that there are GPUs for: as many as its largest cell trains on."""
    names, each = gpus(), max(processes(cell.config) for cell in cells)
    return [",".join(names[i : i + each]) for i in range(0, len(names) - each + 1, each)]


def gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, _ in enumerate(listed.stdout.splitlines())]
