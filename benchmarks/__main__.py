"""Run the benchmarks, each in a process of its own, and print one Markdown table.

make bench                                # all, and BENCHMARKS.md holds the table
make bench ROWS=training,perplexity       # some; BENCHMARKS.md stays
make bench DEVICE=cuda                    # on a GPU: other rows, at the size of 7B models
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.rows import HEADING, ROOT, Row, measured
from osora_bench.common.errors import UserError, unknown
from osora_bench.records.code_state import code

PAGE = ROOT / "BENCHMARKS.md"
MODULES = {
    "cpu": ("training", "step", "start", "decomposition", "perplexity", "generation", "sweep",
            "overhead", "planning", "params"),
    "cuda": ("cuda.training", "cuda.step", "cuda.decomposition", "cuda.answering", "cuda.cells",
             "cuda.fsdp", "cuda.vllm"),
}  # fmt: skip
"""The benchmarks of each device, in the table's order. Each is a module here."""
BY_THE_CLOCK = ("params",)
"""They have the machine to themselves; of the others, which measure processor time on one thread,
two run side by side where there are two processors."""


def chosen(device: str, names: str) -> list[str]:
    """The modules that a list of names separated by commas stands for; all if it is empty.

    Raises:
        UserError: no such benchmark.
    """
    by_name = {module.rpartition(".")[2]: module for module in MODULES[device]}
    wanted = [name for name in names.replace(",", " ").split() if name] or list(by_name)
    for name in wanted:
        if name not in by_name:
            raise UserError(unknown("benchmark", name, by_name))
    return [by_name[name] for name in wanted]


def check_device(device: str) -> None:
    """Raise UserError if there is no such device here."""
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError("DEVICE=cuda, but torch sees no CUDA device here: leave DEVICE out")


def machine(device: str) -> str:
    """What measured, without its name."""
    if device == "cuda":
        import torch

        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {models[0] if models else 'unknown processor'}"


def outcome(module: str) -> tuple[list[Row], str | None, bool]:
    """A benchmark's rows, why some are left out, and whether it ended well."""
    try:
        rows, left_out, cost = measured(module)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return [], f"failed: {str(error).splitlines()[-1]}", False
    print(f"{module.rpartition('.')[2]}: {cost.clock:.0f} s", file=sys.stderr)
    return rows, left_out, True


def outcomes(
    modules: Sequence[str], workers: int
) -> Iterator[tuple[str, tuple[list[Row], str | None, bool]]]:
    """What became of each benchmark: in the order given, those by the clock last."""
    beside = [module for module in modules if module not in BY_THE_CLOCK]
    with ThreadPoolExecutor(workers) as pool:
        yield from zip(beside, pool.map(outcome, beside), strict=True)
    for module in modules:
        if module in BY_THE_CLOCK:
            yield module, outcome(module)


def measure(modules: Sequence[str], workers: int = 1) -> tuple[list[str], bool]:
    """The table's lines, printed as they come, and whether all benchmarks ended well."""
    lines, missed, well = [HEADING], list[Row](), True
    print(HEADING, flush=True)
    for module, (rows, left_out, ended) in outcomes(modules, workers):
        name, well = module.rpartition(".")[2], well and ended
        told = [*map(str, rows), *([f"| {name} | | | | {left_out} |"] if left_out else [])]
        print(*told, sep="\n", flush=True)
        lines += told
        missed += [row for row in rows if row.missed]
    names = "; ".join(f"{row.name} ({row.goal})" for row in missed)
    lines += ["", f"Goals missed: {names or 'none'}."]
    print(*lines[-2:], sep="\n")
    return lines, well


def write(device: str, lines: Sequence[str], begun: float, load: float) -> None:
    """Put the table between its marks in BENCHMARKS.md, with what measured it."""
    import torch

    state = code()
    commit = str(state["commit"])[:10] + (" with uncommitted changes" if state["dirty"] else "")
    minutes = (time.time() - begun) / 60
    told = [
        f"{machine(device)}; torch {torch.__version__}; commit {commit};",
        f"{minutes:.0f} minutes, {load:.1f} other processes wanted to run when it began.",
    ]
    text = PAGE.read_text(encoding="utf-8")
    before, mark, rest = text.partition(f"<!-- bench {device} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    body = "\n".join([*lines, "", *told])
    PAGE.write_text(f"{before}{mark}{body}\n{end}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=sorted(MODULES))
    parser.add_argument("--rows", default="", help="some of them, separated by commas")
    args = parser.parse_args()
    begun, load = time.time(), os.getloadavg()[0]
    try:
        check_device(args.device)
        modules = chosen(args.device, args.rows)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    workers = 2 if args.device == "cpu" and len(os.sched_getaffinity(0)) > 1 else 1
    lines, well = measure(modules, workers)
    if not args.rows:
        write(args.device, lines, begun, load)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
