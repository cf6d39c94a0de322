"""What the harness adds to a cell beyond model load, the adapter's start, training and evaluation.

    make smollm2
    python -m benchmarks.overhead model=toy

Cells of two steps and two questions a set run in one process, as a sweep runs them. What is taken
off a cell's time are the calls of other libraries: transformers' `from_pretrained`, PEFT's
`get_peft_model` with a method's start, `Trainer.train`, and OpenCompass's two tasks. The training
rows become tokens once a process; they are taken off, too.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, need_smollm2, quartiles, run, seconds
from osora_bench.pipeline.attempt import attempt, session
from osora_bench.planning.cell import cell_of
from osora_bench.planning.compose import compose, composer, resolve

QUICK = ["trainer.max_steps=2", "trainer.batch_size=1", "trainer.micro_batch_size=1",
         "eval.datasets.0.limit=2", "eval.datasets.1.limit=2", "eval.max_out_len=2"]  # fmt: skip
CELLS = ["method=lora", "method=lora seed=1", "method=osora", "method=vera", "method=pissa",
         "method=none"]  # fmt: skip
MOST_SECONDS = 2.0


class Stopwatch:
    """Processor seconds spent in watched functions; a call within another is the outer one's."""

    def __init__(self) -> None:
        self.total = 0.0
        self.inside = False

    def watch(self, owner: Any, name: str) -> None:
        """Replace a function by one whose time counts."""
        original: Callable[..., Any] = getattr(owner, name)
        setattr(owner, name, lambda *args, **how: self.time(original, *args, **how))

    def time(self, call: Callable[..., Any], *args: Any, **how: Any) -> Any:
        """Call and count."""
        if self.inside:
            return call(*args, **how)
        found: list[Any] = []
        self.inside = True
        try:
            self.total += seconds(lambda: found.append(call(*args, **how)))
        finally:
            self.inside = False
        return found[0]


def watch(others: Stopwatch) -> None:
    """Watch what is not the harness's."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

    from osora_bench.evaluation import evaluate
    from osora_bench.models import adapters
    from osora_bench.training import data

    for auto in (AutoModelForCausalLM, AutoTokenizer):
        others.watch(auto, "from_pretrained")
    others.watch(peft, "get_peft_model")
    start = adapters.start
    adapters.start = lambda method: lambda model: others.time(start(method), model)
    others.watch(Trainer, "train")
    others.watch(evaluate, "_run")
    others.watch(data, "tokenise")


def rows(*, model: str = "smollm2-135m") -> Iterator[Row]:
    """`model`: a file of conf/model."""
    need_smollm2()
    own, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        places = [f"model={model}", "task=toy", "device=cpu", f"runs={folder}",
                  f"ledger={folder}/ledger"]  # fmt: skip
        told = [[*places, *QUICK, *chosen.split()] for chosen in CELLS]
        with composer():
            cells = [cell_of(resolve(compose(one, "cell"), "cell"), one) for one in told]
        Path(folder).mkdir(exist_ok=True)
        session().prepare(cells)
        others = Stopwatch()
        watch(others)
        for cell in cells:
            others.total = 0.0
            spent = seconds(lambda c=cell: attempt(c))
            if cell.state != "done":
                raise RuntimeError(f"{cell.label}: {cell.error}")
            own.append(spent - others.total)
            ratios.append(spent / others.total)
    yield Row(
        f"overhead, {model}, cells of two steps: all of a cell / what the libraries take",
        quartiles(ratios), 1.0, f"≤ {MOST_SECONDS:.0f} s",
        f"{quartiles(own)[1]:.2f} s of the harness, at most {max(own):.2f}",
        max(own) > MOST_SECONDS,
    )  # fmt: skip


if __name__ == "__main__":
    run(rows)
