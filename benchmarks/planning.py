"""Plan 10,000 cells against a ledger of 10,000 records, and hold the cells against Hydra's own.

    python benchmarks/planning.py

The grid is 4 models x 5 methods x 5 ranks x 10 learning rates x 10 seeds, an experiment
file in a temporary folder. The ledger has the records of all but one seed, and as many of a seed
that is not planned. `osora-bench plan` and `tables` run in a fresh process each, as a user starts
them; the floor beside them is what no planner can leave out.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml

from osora_bench.benchdata.made_up import write_data
from osora_bench.common import paths
from osora_bench.planning import grid, identity
from osora_bench.planning.cell import Cell
from osora_bench.planning.compose import composer, resolve
from osora_bench.planning.config import plain
from osora_bench.planning.experiments import load_experiment
from osora_bench.records import record

MODELS = ["toy", "qwen2-7b", "mistral-7b-instruct-v0.3", "llama3-8b-instruct"]
METHODS = ["lora", "dora", "pissa", "vera", "osora"]
RANKS = [4, 8, 16, 32, 64]
RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2]
SUITE = "commonsense"  # the longest configuration: eight sets
SAMPLE = 100
MOST_SECONDS, MOST_MEMORY = 30, 1e9

# what the command does, with the experiments of a temporary folder
MAIN = """\
import pathlib, sys
from osora_bench.cli.main import main
from osora_bench.common import paths
paths.EXPERIMENTS = pathlib.Path(sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Cost:
    """Of one process: seconds on the clock, seconds of processor time, bytes at the peak."""

    wall: float
    cpu: float
    memory: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} | {self.cpu:.1f} | {self.memory / 1e6:.0f}"


def write_experiment(folder: Path, name: str, seeds: range) -> None:
    """An experiment file of the grid over `seeds`."""
    blocks = [
        {
            "model": MODELS, "method": METHODS, "rank": RANKS,
            "set": {"trainer.learning_rate": rate},
        }
        for rate in RATES
    ]  # fmt: skip
    columns = ["model", "method", "rank", "learning_rate", "params", "datasets", "average"]
    told = {
        "title": name,
        "seed": [*seeds],
        "set": {"task": SUITE, "eval": SUITE},
        "blocks": blocks,
        "tables": {"all": {"layout": "methods", "title": "All", "columns": columns}},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")


def made_up(cell: Cell, chance: random.Random) -> dict[str, Any]:
    """A record as a cell of this size leaves one."""
    places = ("ledger", "runs", "device", "tracker")
    scores = {}
    for dataset in cell.config.eval.datasets:
        n = dataset.questions
        right = [chance.random() < 0.5 for _ in range(n)]
        k = sum(right)
        scores[dataset.name] = {
            "k": k, "n": n, "questions": n, "accuracy": 100 * k / n, "right": record.pack(right),
            "unread": 0, "too_long": 0, "corrected": None,
        }  # fmt: skip
    seconds = {"load": 0.0, "train": 100.0, "evaluate": 200.0, "total": 300.0}
    return {
        "run_id": cell.run_id,
        "config": {k: v for k, v in plain(cell.config).items() if k not in places},
        "provenance": {
            "code": {"commit": "0" * 40, "dirty": False, "diff": None},
            "versions": {f"package-{i}": "1.0.0" for i in range(10)},
            "hardware": {"device": "made up", "threads": 1},
            "revision": identity.revision(cell.config),
            "fingerprints": identity.fingerprints(cell.config),
        },
        "parameters": {"trainable": 1000, "adapter_bytes": 4000},
        "training": {
            "steps": 50, "rows": 9741, "truncated_rows": 0, "tokens": 10**6,
            "loss": [[step, chance.random()] for step in range(50)],
        },
        "scores": scores,
        "measured": {"seconds": seconds, "starts": 1, "peak_memory_mb": 1000, "finished": ""},
    }  # fmt: skip


def timed(arguments: list[str], output: Path) -> Cost:
    """Run the command in a process of its own; its output goes to a file."""
    started = time.perf_counter()
    with output.open("w") as stream:
        child = subprocess.Popen([sys.executable, "-c", MAIN, *arguments], stdout=stream)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{arguments}: exit status {child.returncode}")
    wall = time.perf_counter() - started
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024.0)


def floor(ledger: Path, cells: list[Cell]) -> list[tuple[str, float]]:
    """Processor seconds of what has to be done, however it is done."""
    texts: list[bytes] = []

    def read() -> None:
        texts.extend(place.read_bytes() for place in ledger.glob("*.json"))

    def check() -> None:
        for text in texts:
            body = json.loads(text)
            hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def identify() -> None:
        identities = [identity.identity(cell.config) for cell in cells[:100]]
        for number in range(len(cells)):
            told = json.dumps(identities[number % 100], sort_keys=True, separators=(",", ":"))
            hashlib.sha256(told.encode()).hexdigest()

    def compose() -> None:
        with composer():
            for model, method in choices:
                hydra.compose("config", [f"model={model}", f"method={method}", f"task={SUITE}"])

    choices = list(itertools.product(MODELS, METHODS))
    costs = []
    for name, work in (
        (f"read {len(cells)} files", read),
        ("parse them and take their checksums", check),
        (f"hash {len(cells)} identities", identify),
        (f"compose {len(choices)} choices of files", compose),
    ):
        started = time.process_time()
        work()
        costs.append((name, time.process_time() - started))
    return costs


def compare(cells: list[Cell], planned: list[str], chance: random.Random) -> None:
    """Compose a random sample as Hydra does it, from nothing but the overrides."""
    assert [cell.run_id for cell in cells] == planned, "the command planned other cells"
    chosen = chance.sample(cells, min(SAMPLE, len(cells)))
    equal, started = 0, time.process_time()
    with composer():
        for cell in chosen:
            own = resolve(hydra.compose("config", overrides=[*cell.overrides]), "Hydra")
            equal += own == cell.config and identity.run_id(own) == cell.run_id
    each = (time.process_time() - started) / len(chosen)
    print(
        f"\n{equal} of {len(chosen)} random cells, configuration and run id, equal to Hydra's own "
        f"composition ({1000 * each:.0f} ms of processor time each)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="1,000 cells each")
    args = parser.parse_args()
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data")
        os.environ[paths.DATA] = f"{folder}/data"
        paths.EXPERIMENTS = folder
        write_experiment(folder, "grid", range(args.seeds))
        write_experiment(folder, "ran", range(1, args.seeds + 1))
        places = [f"ledger={folder}/ledger", f"runs={folder}/runs"]
        for cell in grid.expansion(load_experiment("ran"), places).cells:
            record.write_record(made_up(cell, chance), folder / "ledger")
        run(folder, places, chance)


def run(folder: Path, places: list[str], chance: random.Random) -> None:
    """Measure and print."""
    listed, shown = folder / "plan.txt", folder / "tables.txt"
    planning = timed([str(folder), "plan", "experiment=grid", *places], listed)
    tables = timed([str(folder), "tables", "experiment=grid", *places], shown)
    others = timed([str(folder), "tables", "experiment=grid", "others=true", *places], shown)
    lines = listed.read_text(encoding="utf-8").splitlines()
    # warnings stand before the cells' lines, what all of them take and are worth after
    planned = [line.split()[0] for line in lines if re.match(r"[0-9a-f]{12} ", line)]
    cells = grid.expansion(load_experiment("grid"), places).cells
    sizes = [place.stat().st_size for place in (folder / "ledger").glob("*.json")]
    print(f"{lines[-1]}; {len(sizes)} records, {sum(sizes) / 1e6:.0f} MB\n")
    print("| | seconds | of processor time | memory, MB |\n|---|---|---|---|")
    print(f"| asked of `plan` | {MOST_SECONDS} | | {MOST_MEMORY / 1e6:.0f} |")
    print(f"| `plan` | {planning} |\n| `tables` | {tables} |\n| `tables others=true` | {others} |")
    for name, seconds in floor(folder / "ledger", cells):
        print(f"| floor: {name} | | {seconds:.1f} | |")
    compare(cells, planned, chance)


if __name__ == "__main__":
    main()
