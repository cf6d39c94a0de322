"""Plan 10,000 cells against a ledger of 10,000 records, beside Hydra composing every cell.

    python -m benchmarks.planning

The grid is 4 models x 5 methods x 5 ranks x 10 learning rates x 10 seeds, an experiment file in a
temporary folder. The ledger has the records of all but one seed, and as many of a seed that is not
planned. `osora-bench plan` and `tables` run in a fresh process each, as a user starts them. Hydra's
own composition is timed on random cells, which must be equal to ours. The limit is what no planner
can leave out: each distinct choice composed, the records read, parsed and checked, identities
hashed.
"""

import hashlib
import itertools
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import yaml

from benchmarks.rows import Cost, Row, cost_of, quartiles, run, seconds
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
    return cost_of([sys.executable, "-c", MAIN, *arguments], output)


def least(ledger: Path, cells: list[Cell]) -> float:
    """Processor seconds of what has to be done, however it is done."""
    choices = list(itertools.product(MODELS, METHODS))

    def check() -> None:
        for place in ledger.glob("*.json"):
            body = json.loads(place.read_bytes())
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

    return sum(seconds(work) for work in (check, identify, compose))


def by_hydra(cells: list[Cell], chance: random.Random) -> list[float]:
    """Seconds that Hydra takes to compose a cell from its overrides, of a random sample.

    Raises:
        RuntimeError: one is not equal to ours.
    """
    found = []
    with composer():
        for cell in chance.sample(cells, min(SAMPLE, len(cells))):
            made: list[Any] = []
            found.append(
                seconds(lambda c=cell, m=made: m.append(hydra.compose("config", [*c.overrides])))
            )
            own = resolve(made[0], "Hydra")
            if own != cell.config or identity.run_id(own) != cell.run_id:
                raise RuntimeError(f"{cell.label}: Hydra composes another cell")
    return found


def rows(*, seeds: int = 10) -> Iterator[Row]:
    """1,000 cells a seed."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data")
        os.environ[paths.DATA] = f"{folder}/data"
        paths.EXPERIMENTS = folder
        write_experiment(folder, "grid", range(seeds))
        write_experiment(folder, "ran", range(1, seeds + 1))
        places = [f"ledger={folder}/ledger", f"runs={folder}/runs"]
        for cell in grid.expansion(load_experiment("ran"), places).cells:
            record.write_record(made_up(cell, chance), folder / "ledger")
        yield from measure(folder, places, chance)


def measure(folder: Path, places: list[str], chance: random.Random) -> Iterator[Row]:
    """The rows of `plan` and `tables`."""
    listed, shown = folder / "plan.txt", folder / "tables.txt"
    planning = timed([str(folder), "plan", "experiment=grid", *places], listed)
    tables = timed([str(folder), "tables", "experiment=grid", *places], shown)
    lines = listed.read_text(encoding="utf-8").splitlines()
    # warnings stand before the cells' lines, what all of them take and are worth after
    planned = [line.split()[0] for line in lines if re.match(r"[0-9a-f]{12} ", line)]
    cells = grid.expansion(load_experiment("grid"), places).cells
    if [cell.run_id for cell in cells] != planned:
        raise RuntimeError("the command planned other cells")
    each = quartiles(by_hydra(cells, chance))
    own = planning.processor
    low, middle, high = (one * len(cells) / own for one in each)
    yield Row(
        f"planning, {len(cells)} cells, as many records: Hydra composing each cell / `plan`",
        (low, middle, high),
        each[1] * len(cells) / least(folder / "ledger", cells),
        f"≤ {MOST_SECONDS} s, 1 GB",
        f"{each[1] * len(cells):.0f} / {own:.1f} s, {planning.memory / 1e6:.0f} MB; `tables` "
        f"{tables.processor:.1f} s, {tables.memory / 1e6:.0f} MB",
        own > MOST_SECONDS or planning.memory > MOST_MEMORY,
    )


if __name__ == "__main__":
    run(rows)
