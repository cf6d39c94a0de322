"""Questions a second beside OpenCompass's own Hugging Face wrapper, on the same questions.

    python benchmarks/evaluation.py --model models/smollm2-135m --suite gsm8k --limit 24 \\
        --stock 4 8 16 --ours 32

Both answer the same prompts, as OpenCompass renders them, in one process, in turns; each at
several batch sizes, of which its best counts, and of several repeats the fastest. Outputs are
compared as texts. Where they differ, the gap is printed that the two best logits have at the first
token that does: nearly a tie, since padding changes the order of sums. A gap of 1e-3 or more, or a
loss that differs by as much, makes the exit status 1. `--again N` has ours answer once more, in
reverse order and N rows at a time, and compares that too. The CPU ratio is of processor time, which
other work on the machine disturbs less; with OMP_NUM_THREADS=1 it is of work done. The floor is the
time that the products with the weights would take at the speed of a large product, for the tokens
that had to be read and made.

The stock wrapper calls a tokenizer method that transformers 5 no longer has; it is given back here.
"""

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from osora_bench.evaluation import checks, evaluate, suites, tasks
from osora_bench.evaluation.batched_model import _shared
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.evaluation.token_trees import grow
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.planning.config import EvalConfig

TIE = 1e-3
"""Between the two best logits, or two losses: what the order of sums may account for."""

LETTERS = "ABCD"
WORDS = (
    "the of and a to in is that for it as was with be by on not he this are or his from at which "
    "but have an had they you were their one all we can her has there been if more when will would "
    "who so no cell law market energy treaty axis enzyme court price planet theory nerve verdict"
)
"""What made-up questions are made of."""


class Asked(Exception):
    """A recorder has what it wanted."""


class Recorder(InMemoryModel):
    """Keeps what OpenCompass asks, and answers nothing."""

    def generate(self, inputs: list[Any], max_out_len: int, **_: Any) -> list[str]:  # type: ignore[override]
        self.asked = ("generate", inputs, max_out_len)
        raise Asked

    def look_ahead(self, dry_run: Callable[[], None]) -> None:
        self.texts: list[list[Any]] = []  # of each label
        dry_run()
        self.asked = ("ppl", [text for label in self.texts for text in label], 0)
        raise Asked

    def get_ppl(self, inputs: list[Any], mask_length: list[int] | None = None) -> Any:
        self.texts.append(inputs)
        return np.zeros(len(inputs))


def questions(suite: dict[str, Any], model: Any, tokenizer: Any, runs: Path) -> dict[str, Any]:
    """(kind, prompts, most new tokens) of each set of a suite; by perplexity, label by label."""
    configs = suites.prepare(suite, runs)
    found = {}
    for name, config in configs.items():
        recorder = Recorder(model, tokenizer, chat=True, label=name)
        recorder.dialogues = not suites.by_perplexity(config)
        with (
            contextlib.suppress(Asked),
            tasks.output_to(runs / "log"),
            evaluate._work(runs / name) as work,
        ):
            evaluate._run(recorder, config, suite.max_out_len, work)
        found[name] = recorder.asked
    return found


class Remembering(InMemoryModel):
    """Ours, which remembers the tokens that a text was made of."""

    tokens: dict[str, list[int]]

    def _text(self, tokens: list[int], stops: Sequence[str]) -> str:
        text = super()._text(tokens, stops)
        self.tokens[text] = tokens
        return text


@dataclass
class Task:
    """What one set asks: prompts as OpenCompass renders them, and at most how many new tokens."""

    name: str
    kind: str  # "generate" or "ppl"
    prompts: list[Any]
    most: int
    at_once: int  # prompts that OpenCompass asks for together: by perplexity, those of one label

    def stock(self, model: Any, size: int) -> list[Any]:
        """Answers of OpenCompass's wrapper, `size` prompts at a time."""
        answers: list[Any] = []
        for begin in range(0, len(self.prompts), self.at_once):
            label = self.prompts[begin : begin + self.at_once]
            for batch in (label[i : i + size] for i in range(0, len(label), size)):
                with torch.inference_mode():
                    made = model.generate(batch, self.most) if self.chat else model.get_ppl(batch)
                answers += list(made)
        return answers

    def ours(self, model: InMemoryModel) -> list[Any]:
        """Answers of ours."""
        if self.chat:
            return model.generate(self.prompts, self.most)
        return list(model.get_ppl(self.prompts))

    @property
    def chat(self) -> bool:
        """Whether answers are generated: perplexities are of plain text."""
        return self.kind == "generate"


@dataclass
class Took:
    """What a call returned, and its seconds: on the clock, and of the processor."""

    result: Any
    clock: float
    processor: float


def timed(call: Callable[[], Any]) -> Took:
    """Call and measure."""
    clock, processor = time.perf_counter(), time.process_time()
    result = call()
    return Took(result, time.perf_counter() - clock, time.process_time() - processor)


def gap(model: Remembering, prompt: Any, ours: str, theirs: str) -> float:
    """Between the two best logits at the first token of ours that leads away from the other."""
    tokens, ids = model.tokens[ours], model._encode(prompt)

    def agrees(count: int) -> bool:
        return theirs.startswith(InMemoryModel._text(model, tokens[:count], ()))

    same = max(count for count in range(len(tokens) + 1) if agrees(count))
    same = min(same, len(tokens) - 1)  # the other goes on where ours ended
    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([ids + tokens[:same]])).logits[0, -1]
    best = logits.topk(2).values
    return float(best[0] - best[1])


def floor(model: InMemoryModel, task: Task, outputs: list[Any]) -> float:
    """Seconds that the weights' products must take: prompts read once, their prefix once in all; of
    texts, whatever several begin with, and the output layer."""
    encoded = [model._encode(prompt, followed=task.chat) for prompt in task.prompts]
    weights = sum(p.numel() for n, p in model.model.named_parameters() if "embed" not in n)
    if task.chat:
        shared = _shared(encoded)
        tokens = shared + sum(len(ids) - shared for ids in encoded)
        made = (model.tokenizer(o, add_special_tokens=False)["input_ids"] for o in outputs)
        tokens += sum(map(len, made))
    else:
        tokens = sum(map(len, grow(encoded, worth=1 << 60)))
        weights += model.model.get_output_embeddings().weight.numel()
    x, w = torch.randn(512, 2048), torch.randn(2048, 2048)
    seconds = min(timed(lambda: x @ w).processor for _ in range(20))
    return float(weights * tokens * seconds / (512 * 2048 * 2048))


def made_up(count: int) -> list[str]:
    """Texts of questions as MMLU asks them, label by label: five worked examples, which all share,
    a question of some length with four options, and the letter of one."""
    words, choose = WORDS.split(), random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(choose.choices(words, k=choose.randint(low, high)))

    def question() -> str:
        options = "".join(f"{letter}. {text(2, 8)}\n" for letter in LETTERS)
        return f"{text(40, 90)}?\n{options}Answer:"

    examples = "".join(f"{question()} {choose.choice(LETTERS)}\n\n" for _ in range(5))
    questions = [question() for _ in range(count)]
    return [f"{examples}{q} {letter}" for letter in LETTERS for q in questions]


def fastest(before: Took | None, now: Took) -> Took:
    """The faster of two repeats, on the clock and by processor apart."""
    if before is None:
        return now
    clock, processor = min(before.clock, now.clock), min(before.processor, now.processor)
    return Took(now.result, clock, processor)


def compare(task: Task, args: argparse.Namespace, model: Any, tokenizer: Any) -> list[float]:
    """Both at each of their batch sizes, and one line of the table; by how much answers differ."""
    stock_type = HuggingFacewithChatTemplate if task.chat else HuggingFaceBaseModel
    settings = {"torch_dtype": torch.float32, "device_map": "cpu"}
    stock = stock_type(path=args.model, model_kwargs=settings)

    known: dict[str, list[int]] = {}

    def mine(size: int) -> Remembering:
        settings = {"chat": task.chat, "label": task.name, "batch_size": size}
        made = Remembering(model, tokenizer, **settings)
        made.tokens = known
        return made

    theirs: dict[int, Took] = {}
    ours: dict[int, Took] = {}
    for _ in range(args.repeat):
        for size in args.stock:
            theirs[size] = fastest(theirs.get(size), timed(partial(task.stock, stock, size)))
        for size in args.ours:
            ours[size] = fastest(ours.get(size), timed(partial(task.ours, mine(size))))
    # in batches the stock wrapper's perplexities take in the token after the padding
    reference = None if task.chat else task.stock(stock, 1)
    a, b = (min(made, key=lambda s: made[s].clock) for made in (theirs, ours))
    least = [min(t.processor for t in made.values()) for made in (theirs, ours)]
    answers = ours[b].result
    gaps, turned = differing(task, mine(1), answers, reference or theirs[a].result), None
    if args.again is not None:
        reverse = replace(task, prompts=task.prompts[::-1]).ours(mine(args.again))[::-1]
        turned = differing(task, mine(1), answers, reverse)
    cells = [
        task.name,
        str(len(task.prompts)),
        f"{theirs[a].clock:.1f} ({a})",
        f"{ours[b].clock:.1f} ({b})",
        f"{theirs[a].clock / ours[b].clock:.2f}",
        f"{least[0] / least[1]:.2f}",
        f"{floor(mine(1), task, answers):.1f}",
        told(task, gaps),
        "" if turned is None else told(task, turned),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    return [*gaps, *(turned or [])]


def differing(task: Task, model: Remembering, ours: list[Any], other: list[Any]) -> list[float]:
    """Of answers that differ, the gap between the two best logits where they begin to; of
    perplexities, by how much each differs."""
    if not task.chat:
        return [abs(x - y) for x, y in zip(ours, other, strict=True)]
    which = [i for i in range(len(ours)) if ours[i] != other[i]]
    return [gap(model, task.prompts[i], ours[i], other[i]) for i in which]


def told(task: Task, gaps: list[float]) -> str:
    """`2: 3.1e-05 8.0e-04`, the answers that differ and each one's gap."""
    if not task.chat:
        return f"loss by {max(gaps):.1e}"
    return f"{len(gaps)}" + (f": {' '.join(f'{one:.1e}' for one in gaps)}" if gaps else "")


def suite_of(args: argparse.Namespace) -> EvalConfig:
    """The suite's section of a configuration, limited to what was asked for."""
    with composer():
        cfg = resolve(compose([f"eval={args.suite}", "task=toy", "trainer=toy"], "suite"), "suite")
    chosen = [d for d in cfg.eval.datasets if not args.sets or d.name in args.sets]
    limited = [replace(d, limit=min(args.limit, d.questions)) for d in chosen]
    return replace(cfg.eval, datasets=limited)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--suite", required=True, help="name of a file in conf/eval")
    parser.add_argument("--sets", nargs="+", help="only these sets of the suite")
    parser.add_argument("--limit", type=int, default=24, help="questions of each set")
    parser.add_argument("--most", type=int, help="most new tokens, if not the suite's")
    parser.add_argument("--stock", type=int, nargs="+", default=[8], help="batch sizes")
    parser.add_argument("--ours", type=int, nargs="+", default=[128], help="batch sizes")
    parser.add_argument("--repeat", type=int, default=1, help="times that everything is measured")
    parser.add_argument("--made-up", type=int, default=0, help="questions like MMLU's, made up")
    parser.add_argument("--again", type=int, help="rows of another pass in reverse order")
    args = parser.parse_args()
    PreTrainedTokenizerBase.batch_encode_plus = lambda self, texts, **k: self(texts, **k)
    suite, runs = suite_of(args), Path("runs/benchmark")
    checks.check_suite(suite, runs, "with another current folder")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    print(f"{args.model}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(
        "| set | questions | stock, s (batch) | ours, s (batch) | ratio | CPU ratio | floor, s "
        "| differ | in reverse |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    asked = questions(suite, model, tokenizer, runs)
    sizes = {d.name: len(suite.asked(d)) for d in suite.datasets}
    asking = [
        Task(name, kind, prompts, args.most or most, sizes[name])
        for name, (kind, prompts, most) in asked.items()
    ]
    if args.made_up:
        asking.append(Task("made up like MMLU", "ppl", made_up(args.made_up), 0, args.made_up))
    gaps = [gap for task in asking for gap in compare(task, args, model, tokenizer)]
    wide = [one for one in gaps if one >= TIE]
    if wide:
        print(f"{len(wide)} differ by {TIE} or more: {' '.join(f'{one:.1e}' for one in wide)}")
    return 1 if wide else 0


if __name__ == "__main__":
    sys.exit(main())
