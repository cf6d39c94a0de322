"""What the harness adds to a cell beyond model load, the adapter's start, training and evaluation.

    make smollm2
    python benchmarks/overhead.py --model smollm2-135m

Cells of two steps and two questions a set run in one process, as a sweep runs them. What is taken
off a cell's time are the calls of other libraries: transformers' `from_pretrained`, PEFT's
`get_peft_model` with a method's start, `Trainer.train`, and OpenCompass's two tasks. The training
rows become tokens once a process; they are shown apart.
"""

import argparse
import gc
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osora_bench.pipeline.attempt import attempt, session
from osora_bench.planning.cell import Cell, cell_of
from osora_bench.planning.compose import compose, composer, resolve

QUICK = ["trainer.max_steps=2", "trainer.batch_size=1", "trainer.micro_batch_size=1",
         "eval.datasets.0.limit=2", "eval.datasets.1.limit=2", "eval.max_out_len=2"]  # fmt: skip
CELLS = ["method=lora", "method=lora seed=1", "method=osora", "method=vera", "method=pissa",
         "method=none"]  # fmt: skip
MOST_SECONDS = 2.0
TOKENS = "rows as tokens"


class Stopwatch:
    """Seconds spent in named functions, on the clock and of processor time; a call within another
    named one belongs to the outer one."""

    def __init__(self) -> None:
        self.wall: Counter[str] = Counter()
        self.cpu: Counter[str] = Counter()
        self.inside = False

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Replace a function by one that counts its time as `label`'s."""
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            return self.time(label, original, *args, **kwargs)

        setattr(owner, name, timed)

    def time(self, label: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call and count."""
        if self.inside:
            return call(*args, **kwargs)
        self.inside = True
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return call(*args, **kwargs)
        finally:
            self.inside = False
            self.wall[label] += time.perf_counter() - wall
            self.cpu[label] += time.process_time() - cpu


def watch(others: Stopwatch, own: Stopwatch) -> None:
    """Watch what is not the harness's, and apart from it the harness's own larger parts."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

    from osora_bench.evaluation import evaluate
    from osora_bench.models import adapter_config, base
    from osora_bench.pipeline import session
    from osora_bench.records import record
    from osora_bench.training import data

    for auto in (AutoModelForCausalLM, AutoTokenizer):
        others.watch(auto, "from_pretrained", "load")
    others.watch(peft, "get_peft_model", "adapter")
    start = adapter_config.start
    adapter_config.start = lambda method: lambda model: others.time("adapter", start(method), model)
    others.watch(Trainer, "train", "training")
    others.watch(evaluate, "_run", "evaluation")
    others.watch(data, "tokenise", TOKENS)
    own.watch(base, "checksums", "checksums of all weights")
    own.watch(gc, "collect", "collecting garbage")
    own.watch(record, "write_record", "writing the record")
    own.watch(Trainer, "__init__", "building the Trainer")
    own.watch(peft.PeftModel, "save_pretrained", "saving the adapter")
    own.watch(session, "fingerprints", "fingerprints")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy", help="a file of conf/model")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    places = [f"model={args.model}", "task=toy", "device=cpu", f"runs={folder}",
              f"ledger={folder}/ledger"]  # fmt: skip
    try:
        cells = []
        with composer():
            for chosen in CELLS:
                overrides = [*places, *QUICK, *chosen.split()]
                cells.append(cell_of(resolve(compose(overrides, chosen), chosen), overrides))
        measure(cells, args.model)
    finally:
        shutil.rmtree(folder)


def measure(cells: list[Cell], model: str) -> None:
    """Run the cells and print a line for each."""
    session().prepare(cells)
    others, own = Stopwatch(), Stopwatch()
    watch(others, own)
    lines, worst, worst_cpu = [], 0.0, 0.0
    for cell in cells:
        others.wall.clear(), others.cpu.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        assert attempt(cell) == "done", cell.error
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rest, rest_cpu = wall - others.wall.total(), cpu - others.cpu.total()
        worst, worst_cpu = max(worst, rest), max(worst_cpu, rest_cpu)
        parts = [others.wall[k] for k in ("load", "adapter", "training", "evaluation", TOKENS)]
        numbers = " | ".join(f"{seconds:.2f}" for seconds in (wall, *parts, rest, rest_cpu))
        lines.append(f"| {cell.label} | {numbers} |")
    print(f"\n| {model} | all | load | adapter | training | evaluation | {TOKENS} | harness: clock "
          "| processor |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    print("\n".join(lines))
    print(f"\nharness, a cell: at most {worst:.2f} s on the clock, {worst_cpu:.2f} s of processor "
          f"time (asked: {MOST_SECONDS:.0f} s); on average of it")  # fmt: skip
    for label, seconds in own.wall.most_common():
        print(f"    {seconds / len(cells):.2f} | {own.cpu[label] / len(cells):.2f}  {label}")


if __name__ == "__main__":
    main()
