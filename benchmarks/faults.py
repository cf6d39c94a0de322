"""Kill a sweep again and again, and count what is lost.

    python benchmarks/faults.py --kills 50

A sweep of 14 toy cells runs in two workers. At random moments the process that started it, a
worker, or both are killed with SIGKILL; now and then a byte of a checkpoint is turned, a record is
cut short, or no process may write a file above a few kilobytes (as on a full disk). The sweep is
started again until every cell is done. Then every record is held against that of a sweep that was
left alone.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from osora_bench import record
from osora_bench.plan import Cell, expand

EXPERIMENT = "table3-toy"
SETTINGS = ["trainer.max_steps=40", "trainer.checkpoint_minutes=0.01",
            "eval.datasets.0.limit=20", "eval.datasets.1.limit=20"]  # fmt: skip


def numbers(cell: Cell) -> dict[str, object]:
    """A record without what may differ between two runs of a cell."""
    body = record.read(cell.record)
    return {k: v for k, v in body.items() if k not in ("measured", "sha256")}


class Sweep:
    """The sweep under attack."""

    def __init__(self, place: Path) -> None:
        self.overrides = [f"ledger={place}/ledger", f"runs={place}/runs", *SETTINGS]
        self.cells = expand(EXPERIMENT, self.overrides)
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self, limit: int | None = None) -> None:
        """Start it, or attach; `limit` is the largest file that its processes may write."""
        main = "import sys; from osora_bench.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", main, "run", f"experiment={EXPERIMENT}"]
        before = f"ulimit -f {limit}; " if limit is not None else ""
        with Path(os.devnull).open("wb") as nowhere:
            self.process = subprocess.Popen(
                ["bash", "-c", f'{before}exec "$@"', "-", *command, "workers=2", *self.overrides],
                stdout=nowhere, stderr=nowhere,
            )  # fmt: skip
        self.starts += 1

    def running(self) -> list[int]:
        """The processes that hold a cell."""
        return [h["pid"] for c in self.cells if (h := c.holder) is not None and "pid" in h]

    @property
    def done(self) -> bool:
        return all(cell.state == "done" for cell in self.cells)


def strike(sweep: Sweep, chance: random.Random, told: Counter[str]) -> None:
    """One fault."""
    workers = sweep.running()
    kind = chance.choice(["worker", "worker", "starter", "both", "checkpoint", "record"])
    if kind in ("starter", "both") and sweep.process is not None:
        sweep.process.kill()
        sweep.process.wait()
        told["starter killed"] += 1
    if kind in ("worker", "both") and workers:
        os.kill(chance.choice(workers), signal.SIGKILL)
        told["worker killed"] += 1
    if kind == "checkpoint":
        saved = [p for c in sweep.cells for p in c.paths.trainer.glob("checkpoint-*/optimizer.pt")]
        if saved and workers:
            turn_a_byte(chance.choice(saved), chance)
            os.kill(chance.choice(workers), signal.SIGKILL)
            told["checkpoint damaged, worker killed"] += 1
    if kind == "record":
        kept = [c.record for c in sweep.cells if c.state == "done"]
        if kept:
            victim = chance.choice(kept)
            victim.write_bytes(victim.read_bytes()[: -chance.randint(1, 500)])
            told["record cut short"] += 1


def turn_a_byte(path: Path, chance: random.Random) -> None:
    try:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1
        path.write_bytes(content)
    except FileNotFoundError:  # its cell was done just now
        pass


def mend(sweep: Sweep, told: Counter[str]) -> None:
    """What the program asks of a person: move a damaged record away."""
    for cell in sweep.cells:
        if cell.state == "damaged":
            cell.record.rename(cell.record.with_suffix(".damaged"))
            told["record moved away by hand"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    chance, told = random.Random(args.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        alone, sweep = Sweep(Path(folder, "alone")), Sweep(Path(folder, "attacked"))
        alone.start()
        assert alone.process is not None
        alone.process.wait()
        assert alone.done, "the undisturbed sweep failed"
        started = time.monotonic()
        kills = 0
        while not (sweep.done and kills >= args.kills):
            mend(sweep, told)
            if sweep.process is None or sweep.process.poll() is not None:
                if sweep.done and kills < args.kills:  # more to strike at: the oldest again
                    oldest = min(sweep.cells, key=lambda c: c.record.stat().st_mtime)
                    oldest.record.unlink()
                limit = chance.choice([None, None, None, 4, 40])
                told["started with a full disk"] += limit is not None
                sweep.start(limit)
            time.sleep(chance.uniform(0.5, 8))
            if kills < args.kills:
                strike(sweep, chance, told)
            kills = sum(count for kind, count in told.items() if "killed" in kind)
        report(sweep, alone, told, time.monotonic() - started)


def report(sweep: Sweep, alone: Sweep, told: Counter[str], seconds: float) -> None:
    """The table, and whether anything was lost."""
    print("| fault | times |\n|---|---|")
    for kind, count in sorted(told.items()):
        print(f"| {kind} | {count} |")
    whole = [numbers(c) for c in alone.cells]
    same = sum(a == b for a, b in zip(whole, map(numbers, sweep.cells), strict=True))
    ledger = sweep.cells[0].ledger
    records = list(ledger.glob("*.json"))
    print(f"\n{len(sweep.cells)} cells, {sweep.starts} starts, {seconds / 60:.0f} min: "
          f"{len(records)} records, {same} equal to the undisturbed sweep's")  # fmt: skip


if __name__ == "__main__":
    main()
