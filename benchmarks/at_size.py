"""Whole cells at the paper's size on a CPU: what will not fit or takes too long is found here.

    make at-size
    python benchmarks/at_size.py --model qwen2-7b
    python benchmarks/at_size.py --layers 2     # a model of the same widths, in a minute

A model of a real one's shape gets random weights (7B: 14.5 GB). Each method of the paper then runs
one cell on it: one step of two rows, four questions. Printed are seconds and peak memory of every
stage, beside what `plan` expects. What is done stays done: the model, the decompositions and the
cells with their measurements lie below `runs/at-size` until that folder is removed.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from osora_bench.common.allowance import OURS
from osora_bench.common.errors import UserError, tell
from osora_bench.common.exits import MISTAKE, OK, exit_status_of
from osora_bench.common.files import write_whole
from osora_bench.common.interruption import Interrupted
from osora_bench.common.progress import say
from osora_bench.models.made_up import write_models
from osora_bench.planning import estimate
from osora_bench.planning.cell import Cell, State, cell_of
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.records import record
from osora_bench.sweep.run import run_missing

METHODS = {"lora": 16, "vera": 256, "osora": 512, "pissa": 16, "dora": 16}
"""Ranks by method. OSoRA makes the decompositions, PiSSA takes them from the store."""
CELL = ["task=toy", "trainer=paper", "eval=toy", "device=cpu", "model.revision=null",
        "trainer.max_steps=1", "trainer.batch_size=2", "trainer.micro_batch_size=2",
        "eval.datasets.0.limit=2", "eval.datasets.1.limit=2",
        "eval.datasets.0.max_out_len=8", "eval.datasets.1.max_out_len=8"]  # fmt: skip
STAGES = ("checks", "load", "checksums", "decompositions", "start", "training", "evaluation",
          "saved adapter", "rest")  # fmt: skip
STORE = 3e9
"""Bytes on disk beside the weights: decompositions of a 7B model at r = 512, adapters, room."""
INTERVAL = 0.05
"""Seconds between two looks at the memory."""


class Stages:
    """Seconds, on the clock and of processor time, and peak memory (bytes) of this process by
    stage. A stage within another one counts by itself; what is in none is the `rest`.

    `rss` counts the pages of the files that are mapped, `own` leaves them out: the kernel takes
    them back when memory is short.
    """

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.over = threading.Event()
        self.clear()
        threading.Thread(target=self._look, daemon=True).start()

    def clear(self) -> None:
        """Begin anew, in no stage."""
        self.seconds: Counter[str] = Counter()
        self.cpu: Counter[str] = Counter()
        self.rss: Counter[str] = Counter()
        self.own: Counter[str] = Counter()
        self._stack, self._since = ["rest"], (time.perf_counter(), time.process_time())

    def _look(self) -> None:
        while not self.over.wait(INTERVAL):
            stage, memory = self._stack[-1], self.process.memory_info()
            self.rss[stage] = max(self.rss[stage], memory.rss)
            self.own[stage] = max(self.own[stage], memory.rss - memory.shared)

    def _charge(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.seconds[self._stack[-1]] += now[0] - self._since[0]
        self.cpu[self._stack[-1]] += now[1] - self._since[1]
        self._since = now

    @contextmanager
    def inside(self, stage: str) -> Iterator[None]:
        self._charge()
        self._stack.append(stage)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def staged(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The function, as the stage."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.inside(stage):
                return function(*args, **kwargs)

        return call

    def taken(self) -> dict[str, dict[str, float]]:
        """By stage: both kinds of seconds, and gigabytes (1e9) with mapped files and without."""
        self._charge()
        return {
            stage: {
                "seconds": round(self.seconds[stage], 2),
                "cpu": round(self.cpu[stage], 2),
                "rss": round(self.rss[stage] / 1e9, 2),
                "own": round(self.own[stage] / 1e9, 2),
            }
            for stage in STAGES
            if stage in self.seconds
        }


@contextmanager
def watched() -> Iterator[Stages]:
    """The stages of a cell, in the functions that they are."""
    from osora_bench.evaluation import evaluate
    from osora_bench.models import adapters, base
    from osora_bench.osora import store
    from osora_bench.pipeline import preflight, session
    from osora_bench.training import train

    functions: list[tuple[Any, str, str]] = [
        (preflight, "check_cells", "checks"),
        (base, "_read", "load"),
        (base, "checksums", "checksums"),
        (adapters, "with_fresh_adapter", "start"),
        (store, "top_triplets", "decompositions"),
        (train, "train", "training"),
        (evaluate, "evaluate", "evaluation"),
        (session.Session, "_check_saved", "saved adapter"),
    ]
    stages = Stages()
    with ExitStack() as patches:
        patches.callback(stages.over.set)
        for owner, name, stage in functions:
            own = stages.staged(getattr(owner, name), stage)
            patches.enter_context(mock.patch.object(owner, name, own))
        yield stages


def planned(model: str, layers: int | None, methods: Sequence[str], runs: Path) -> list[Cell]:
    """The cells, one a method; before the model is there only what they will take is known."""
    overrides = [f"model={model}", *CELL, f"runs={runs}", f"ledger={runs}/ledger",
                 f"model.path={runs}/model"]  # fmt: skip
    if layers is not None:
        overrides.append(f"model.architecture.num_hidden_layers={layers}")
    cells = []
    with composer():
        for method in methods:
            chosen = [*overrides, f"method={method}", f"method.rank={METHODS[method]}"]
            cells.append(cell_of(resolve(compose(chosen, method), method), chosen))
    return cells


def check_room(cells: Sequence[Cell], memory: float, disk: float) -> None:
    """Raise UserError if the machine lacks memory or disk (bytes that are free) for the cells."""
    todo = [cell for cell in cells if cell.state != State.DONE]
    costs = [cost for cell in todo if (cost := estimate.estimate_of(cell, {})) is not None]
    most = max((cost.gigabytes for cost in costs), default=0.0)
    model = cells[0].config.model
    weights = 0.0 if Path(model.path).is_dir() else weight_bytes(model)
    needed = (STORE + weights) / 1e9 if todo else 0.0
    problems = []
    if most * 1e9 > memory:
        problems.append(f"needs {most:.1f} GB of memory, {memory / 1e9:.1f} GB are free")
    if needed * 1e9 > disk:
        problems.append(f"needs {needed:.1f} GB of disk, {disk / 1e9:.1f} GB are free")
    if problems:
        raise UserError(f"{model.name} at size: " + "; ".join(problems))


def weight_bytes(model: Any) -> float:
    """Of a model whose architecture stands in its file."""
    return estimate.BYTES[model.dtype] * estimate.parameters(model.architecture)


def make(model: Any, folder: Path) -> None:
    """Write the random model, in a process of its own: its memory is none of the cells'."""
    start = time.perf_counter()
    architecture = {**model.architecture, "dtype": model.dtype}
    say(f"making {folder}: {weight_bytes(model) / 1e9:.1f} GB of random weights ...")
    worker = multiprocessing.get_context("spawn").Process(
        target=write_models, args=({folder: architecture},), kwargs={"whole": True}
    )
    worker.start()
    worker.join()
    if worker.exitcode != 0:
        raise UserError(f"{folder} could not be made: exit status {worker.exitcode}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    say(f"made in {time.perf_counter() - start:.0f} s, {peak:.1f} GB")


def run(cells: Sequence[Cell], folder: Path) -> int:
    """Run what has no record, and keep what its stages took beside it; the exit status."""
    if all(cell.state == State.DONE for cell in cells):
        return OK
    from osora_bench.pipeline.attempt import session

    session()  # the libraries belong to no cell
    with watched() as stages:
        for cell in (cell for cell in cells if cell.state != State.DONE):
            stages.clear()
            status = run_missing([cell])
            if status != OK:
                return status
            write_whole(folder / f"{cell.run_id}.json", json.dumps(stages.taken(), indent=1))
    return OK


def table(cells: Sequence[Cell], folder: Path) -> str:
    """Seconds and peak memory by stage and method, beside what `plan` expects, in Markdown."""
    labels = [f"{cell.config.method.label} r={cell.config.method.rank}" for cell in cells]
    took = [_taken(folder / f"{cell.run_id}.json") for cell in cells]
    counts = [record.read_record(cell.record)["parameters"] for cell in cells]
    rows = {"seconds, GB": labels}
    for stage in STAGES:
        rows[stage] = [_pair(stages, [stage]) for stages in took]
    rows |= {
        "whole": [_pair(stages, STAGES) for stages in took],
        "of processor time, without mapped files": [_pair(s, STAGES, "cpu", "own") for s in took],
        "`plan` expects": [_expected(cell) for cell in cells],
        "trained numbers": [f"{count['trainable']:,}" for count in counts],
        "adapter, MB": [f"{count['adapter_bytes'] / 1e6:.2f}" for count in counts],
    }
    lines = [f"| {' | '.join([name, *row])} |" for name, row in rows.items()]
    return "\n".join([lines[0], "|:--|" + "--:|" * len(cells), *lines[1:]])


def _taken(file: Path) -> dict[str, dict[str, float]]:
    """What the stages of a cell took; nothing of one that was stopped after its record."""
    if not file.is_file():
        return {}
    taken: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))
    return taken


def _pair(
    stages: dict[str, dict[str, float]], names: Sequence[str], time: str = "seconds",
    memory: str = "rss",
) -> str:  # fmt: skip
    """Seconds of all the named stages and the most memory of one; blank without any of them."""
    taken = [stages[name] for name in names if name in stages]
    if not taken:
        return ""
    return f"{sum(t[time] for t in taken):.1f}, {max(t[memory] for t in taken):.1f}"


def _expected(cell: Cell) -> str:
    cost = estimate.estimate_of(cell, {})
    return "" if cost is None else f"{3600 * cost.hours:.0f}, {cost.gigabytes:.1f}"


def at_size(model: str, layers: int | None, methods: Sequence[str], runs: Path) -> int:
    """Make the model, run the cells, print the table of those that are done; the exit status."""
    cells = planned(model, layers, methods, runs)
    folder = Path(cells[0].config.model.path)
    runs.mkdir(parents=True, exist_ok=True)
    memory = min(psutil.virtual_memory().available, OURS.memory_left())
    if not folder.is_dir():
        check_room(cells, memory, shutil.disk_usage(runs).free)
        make(cells[0].config.model, folder)
    start = time.perf_counter()
    cells = planned(model, layers, methods, runs)
    say(f"planned, the weights' fingerprint taken, in {time.perf_counter() - start:.1f} s")
    check_room(cells, memory, shutil.disk_usage(runs).free)
    try:
        return run(cells, runs)
    finally:  # stopped on the way, what is done is shown
        if done := [cell for cell in cells if cell.state == State.DONE]:
            print(f"\n{table(done, runs)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mistral-7b-instruct-v0.3", help="a file of conf/model")
    parser.add_argument("--layers", type=int, help="of the model; all if it is not given")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="all by default"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/at-size"))
    args = parser.parse_args()
    name = args.model if args.layers is None else f"{args.model}-{args.layers}"
    try:
        return at_size(args.model, args.layers, args.methods, args.runs.absolute() / name)
    except UserError as error:
        tell(error)
        return MISTAKE
    except Interrupted as interrupted:
        say(interrupted.told)
        return exit_status_of(interrupted.number)


if __name__ == "__main__":
    sys.exit(main())
