"""Answers and perplexities beside those of OpenCompass's own Hugging Face wrapper, in one process.

Both are asked the same prompts, as OpenCompass renders them, in turns; the wrapper at several batch
sizes, of which its best counts. Outputs are compared as texts. Where they differ, the gap counts
that the two best logits have at the first token that does: nearly a tie, since padding changes the
order of sums. A gap of 1e-3 or more, or a loss that differs by as much, is an error. The limit is
the time that the products with the weights would take at the speed of a large product, for the
tokens that had to be read and made.

The wrapper calls a tokenizer method that transformers 5 no longer has; it is given back here.
"""

import contextlib
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.rows import Row, gflops, in_turns, row, seconds
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


def products(model: InMemoryModel, task: Task, outputs: list[Any]) -> float:
    """Operations of the weights' products: prompts read once, their prefix once in all; of texts,
    whatever several begin with, and the output layer."""
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
    return 2.0 * weights * tokens


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


class Sides:
    """The wrapper and ours around one model's weights."""

    def __init__(
        self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.device, self.dtype = device, dtype
        PreTrainedTokenizerBase.batch_encode_plus = lambda self, texts, **how: self(texts, **how)
        self.path = str(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        loaded = AutoModelForCausalLM.from_pretrained(self.path, dtype=dtype)
        self.model = loaded.to(device).eval()
        self.tokens: dict[str, list[int]] = {}

    def ours(self, task: Task, size: int) -> Remembering:
        """Ours, that answers `size` prompts at a time."""
        made = Remembering(
            self.model, self.tokenizer, chat=task.chat, label=task.name, batch_size=size
        )
        made.tokens = self.tokens
        return made

    def stock(self, chat: bool) -> Any:
        """OpenCompass's wrapper."""
        kind = HuggingFacewithChatTemplate if chat else HuggingFaceBaseModel
        settings = {"torch_dtype": self.dtype, "device_map": self.device}
        return kind(path=self.path, model_kwargs=settings)

    def asked(self, suite: str, sets: Sequence[str], limit: int, most: int | None) -> list[Task]:
        """What the sets of a suite ask for, `limit` questions of each and `most` new tokens."""
        chosen = suite_of(suite, sets, limit)
        with tempfile.TemporaryDirectory() as folder:
            runs = Path(folder)
            checks.check_suite(chosen, runs, "with another current folder")
            found = questions(chosen, self.model, self.tokenizer, runs)
        sizes = {d.name: len(chosen.asked(d)) for d in chosen.datasets}
        return [
            Task(name, kind, prompts, most or longest, sizes[name])
            for name, (kind, prompts, longest) in found.items()
        ]

    def compare(self, task: Task, sizes: Sequence[int], own: int, repeats: int, goal: float) -> Row:
        """Both in turns, the wrapper at the best of its batch sizes, and whether they agree."""
        stock, answers = self.stock(task.chat), list[Any]()
        best, *others = sizes
        if others:
            trials = {
                size: seconds(lambda s=size: task.stock(stock, s), self.device) for size in sizes
            }
            best = min(sizes, key=lambda size: trials[size])

        def ours() -> float:
            return seconds(lambda: answers.append(task.ours(self.ours(task, own))), self.device)

        def wrapper() -> float:
            return seconds(lambda: answers.append(task.stock(stock, best)), self.device)

        mine, theirs = in_turns(ours, wrapper, repeats)
        exact = self.dtype == torch.float32
        agreed = self.agreement(task, stock, answers) if exact else "answers not compared"
        limit = None
        if self.device == "cpu":
            limit = products(self.ours(task, 1), task, answers[0]) / gflops(self.dtype) / 1e9
        theirs_s, mine_s = statistics.median(theirs), statistics.median(mine)
        return row(
            f"{'generation' if task.chat else 'perplexity'}, {task.name}: OpenCompass's wrapper / "
            f"ours, {len(task.prompts)} {'questions' if task.chat else 'texts'}",
            [b / a for a, b in zip(mine, theirs, strict=True)],
            limit and theirs_s / limit,
            f"{theirs_s:.1f} (batch {best}) / {mine_s:.1f} s; {agreed}",
            at_least=goal,
        )

    def agreement(self, task: Task, stock: Any, answers: Sequence[list[Any]]) -> str:
        """Of ours and the wrapper's answers, the first two, how many differ and by how much.

        Raises:
            RuntimeError: by more than the order of sums accounts for.
        """
        # in batches the wrapper's perplexities take in the token after the padding
        other = answers[1] if task.chat else task.stock(stock, 1)
        gaps = differing(task, self.ours(task, 1), answers[0], other)
        if wide := [gap for gap in gaps if gap >= TIE]:
            raise RuntimeError(f"{task.name}: {len(wide)} answers differ by up to {max(wide):.1e}")
        return told(task, gaps)


def differing(task: Task, model: Remembering, ours: list[Any], other: list[Any]) -> list[float]:
    """Of answers that differ, the gap between the two best logits where they begin to; of
    perplexities, by how much each differs."""
    if not task.chat:
        return [abs(x - y) for x, y in zip(ours, other, strict=True)]
    which = [i for i in range(len(ours)) if ours[i] != other[i]]
    return [gap(model, task.prompts[i], ours[i], other[i]) for i in which]


def told(task: Task, gaps: list[float]) -> str:
    """How many answers differ, or by how much losses do."""
    if task.chat:
        return f"{len(gaps)} answers differ" + (f", by {max(gaps):.0e}" if gaps else "")
    return f"losses within {max(gaps):.1e}"


def suite_of(name: str, sets: Sequence[str], limit: int) -> EvalConfig:
    """The suite's section of a configuration, limited to what was asked for."""
    with composer():
        cfg = resolve(compose([f"eval={name}", "task=toy", "trainer=toy"], "suite"), "suite")
    chosen = [d for d in cfg.eval.datasets if d.name in sets]
    limited = [replace(d, limit=min(limit, d.questions)) for d in chosen]
    return replace(cfg.eval, datasets=limited)
