"""A row of the table: a ratio to a peer, measured in one run, beside its limit and its goal.

A benchmark is a module with a function `rows`; `run(rows)` at its end makes it a command:

    python -m benchmarks.training precision=float32 pairs=5

The settings are the function's arguments. Ratios are of processor time on one thread, which other
work on the machine disturbs less than the clock.
"""

import ast
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEADING = (
    "| What | Ratio (quartiles) | Limit | Goal | Absolute |\n|:--|--:|--:|--:|:--|"
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what is divided by what; a blank `ratio` stands where there is no peer.
        ratio: first quartile, median and third quartile; of one measurement they are the same.
        limit: the ratio if nothing but what cannot be left out were done.
        goal: for the median, or for what it says.
        absolute: the measurements themselves, with their units.
        missed: whether the goal is.
    """

    name: str
    ratio: tuple[float, float, float] | None
    limit: float | None
    goal: str
    absolute: str
    missed: bool = False

    def __str__(self) -> str:
        ratio, limit = "", "" if self.limit is None else f"{self.limit:.2f}"
        if self.ratio is not None:
            low, middle, high = self.ratio
            ratio = f"{middle:.2f}" + (f" ({low:.2f} to {high:.2f})" if low < high else "")
        goal = f"**{self.goal}, missed**" if self.missed else self.goal
        return f"| {self.name} | {ratio} | {limit} | {goal} | {self.absolute} |"


def row(
    name: str,
    ratios: Sequence[float],
    limit: float | None,
    absolute: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """A row whose goal, if it has one, is for the median ratio."""
    ratio = quartiles(ratios)
    if at_least is not None:
        return Row(name, ratio, limit, f"≥ {at_least}", absolute, ratio[1] < at_least)
    if at_most is not None:
        return Row(name, ratio, limit, f"≤ {at_most}", absolute, ratio[1] > at_most)
    return Row(name, ratio, limit, "", absolute)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


class LeftOut(Exception):
    """A benchmark that cannot run here; the message says what it lacks."""


def need(place: Path, how: str) -> None:
    """Leave the benchmark out where a file or folder is missing."""
    if not place.exists():
        raise LeftOut(f"{place.name} is missing: {how}")


def need_data(*folders: str) -> None:
    """Leave the benchmark out where benchmark sets are missing."""
    from osora_bench.common import paths

    for folder in folders:
        need(paths.data_root() / folder, "OSORA_DATA names the folder of the benchmark sets")


def need_smollm2() -> None:
    """Leave the benchmark out without the real model."""
    need(ROOT / "models" / "smollm2-135m", "make smollm2")


def seconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """Processor seconds of a call; of one on a GPU, seconds on the clock until that is done."""
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(
    a: Callable[[], float], b: Callable[[], float], pairs: int
) -> tuple[list[float], list[float]]:
    """What two measurements return, run A B B A, so that a drift of the machine cancels."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(pairs):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            found[which].append((a, b)[which]())
    return found


@dataclass(frozen=True)
class Cost:
    """Of a process and those that it waited for: seconds on the clock and of the processor, and
    bytes at the peak."""

    clock: float
    processor: float
    memory: float


def cost_of(
    command: Sequence[str], output: Path, *, folder: Path = ROOT, **environment: str
) -> Cost:
    """Run a command in a process of its own, in `folder`; what it prints goes to a file.

    Raises:
        RuntimeError: it fails; the end of what it printed is told.
    """
    start = time.perf_counter()
    with output.open("w") as stream:
        child = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        tail = output.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)}: exit status {child.returncode}\n{tail}")
    clock = time.perf_counter() - start
    return Cost(clock, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024.0)


def gflops(dtype: Any, *, size: int = 2048, rows: int = 512) -> float:
    """10^9 operations a second of one large product here."""
    import torch

    x, w = torch.randn(rows, size).to(dtype), torch.randn(size, size).to(dtype)
    least = min(seconds(lambda: x @ w) for _ in range(20))
    return 2 * rows * size * size / least / 1e9


def faster_precision() -> str:
    """In which this processor multiplies faster: bfloat16 is four times as fast as float32 on some,
    half as fast on others."""
    import torch

    return max(("float32", "bfloat16"), key=lambda name: gflops(getattr(torch, name)))


def run(rows: Callable[..., Iterable[Row]]) -> None:
    """A benchmark as a command: settings by name, its rows as Markdown on standard output, and as
    JSON in the file that BENCHMARK_ROWS names."""
    os.chdir(ROOT)
    settings = _settings(rows, sys.argv[1:])
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    found: list[Row] = []
    told: dict[str, Any] = {}
    print(HEADING)
    try:
        for one in rows(**settings):
            found.append(one)
            print(one, flush=True)
    except LeftOut as reason:
        told["left_out"] = str(reason)
        print(f"left out: {reason}")
    told["rows"] = [asdict(one) for one in found]
    if place := os.environ.get("BENCHMARK_ROWS"):
        Path(place).write_text(json.dumps(told), encoding="utf-8")


def _settings(rows: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    valid = inspect.signature(rows).parameters
    settings: dict[str, Any] = {}
    for argument in arguments:
        name, _, text = argument.partition("=")
        if name not in valid:
            names = ", ".join(f"{p.name}={p.default}" for p in valid.values())
            raise SystemExit(f"no setting {name!r}; valid, with their defaults: {names or 'none'}")
        try:
            settings[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            settings[name] = text
    return settings


def measured(module: str, **environment: str) -> tuple[list[Row], str | None, Cost]:
    """The rows of a benchmark that runs in a process of its own, why some are left out, its cost.

    Raises:
        RuntimeError: it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{module}"]
        environment |= {"OMP_NUM_THREADS": "1", "BENCHMARK_ROWS": str(place)}
        cost = cost_of(command, Path(folder) / "output", **environment)
        told = json.loads(place.read_text(encoding="utf-8"))
    rows = [Row(**{**one, "ratio": one["ratio"] and tuple(one["ratio"])}) for one in told["rows"]]
    return rows, told.get("left_out"), cost
