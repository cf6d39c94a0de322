"""Questions a second beside OpenCompass's own Hugging Face wrapper, on the same questions.

    python benchmarks/evaluation.py --model models/smollm2-135m --suite gsm8k --limit 24 \\
        --stock 4 8 16 --ours 32

Both answer the same prompts, as OpenCompass renders them, in one process; each at several batch
sizes, of which its best counts. Outputs are compared as texts. Where they differ, the first token
that does is shown with the two best logits there: on equal terms they are nearly tied, since
padding changes the order of sums. The floor is the time that the products with the weights would
take at the speed of a large product, for the tokens that had to be read and made.

The stock wrapper calls a tokenizer method that transformers 5 no longer has; it is given back here.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from osora_bench import evaluate
from osora_bench.compose import compose, composer, resolve
from osora_bench.decoding import _shared
from osora_bench.opencompass_model import InMemoryModel

MOST = 1 << 30


class Asked(Exception):
    """A recorder has what it wanted."""


class Recorder(InMemoryModel):
    """Keeps what OpenCompass asks, and answers nothing."""

    def generate(self, inputs: list[Any], max_out_len: int, **_: Any) -> list[str]:  # type: ignore[override]
        self.asked = ("generate", inputs, max_out_len)
        raise Asked

    def get_ppl(self, inputs: list[Any], mask_length: list[int] | None = None) -> Any:
        self.asked = ("ppl", inputs, 0)
        raise Asked


def questions(suite: dict[str, Any], model: Any, tokenizer: Any, runs: Path) -> dict[str, Any]:
    """(kind, prompts, most new tokens) of each set of a suite."""
    configs = evaluate.prepare(suite, runs)
    found = {}
    for name, config in configs.items():
        recorder = Recorder(model, tokenizer, chat=True, label=name)
        recorder.dialogues = not evaluate._by_perplexity(config)
        with (
            contextlib.suppress(Asked),
            evaluate._quiet(runs / "log"),
            evaluate._work(runs / name) as work,
        ):
            evaluate._run(recorder, config, suite["max_out_len"], work)
        found[name] = recorder.asked
    return found


@dataclass
class Task:
    """What one set asks: prompts as OpenCompass renders them, and at most how many new tokens."""

    name: str
    kind: str  # "generate" or "ppl"
    prompts: list[Any]
    most: int

    def stock(self, model: Any, size: int) -> list[Any]:
        """Answers of OpenCompass's wrapper, `size` prompts at a time."""
        answers: list[Any] = []
        for begin in range(0, len(self.prompts), size):
            batch = self.prompts[begin : begin + size]
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


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def gap(model: InMemoryModel, prompt: Any, one: str, other: str) -> float:
    """Between the two best logits at the first token in which two outputs differ."""
    tokenizer = model.tokenizer
    ids = model._encode(prompt)
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (one, other))
    same = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([ids + a[:same]])).logits[0, -1]
    best = logits.topk(2).values
    return float(best[0] - best[1])


def floor(model: InMemoryModel, prompts: list[Any], outputs: list[str]) -> float:
    """Seconds that the weights' products must take: prompts read once, their prefix once in all."""
    encoded = [model._encode(p) for p in prompts]
    shared = _shared(encoded)
    tokens = shared + sum(len(ids) - shared for ids in encoded)
    tokens += sum(len(model.tokenizer(o, add_special_tokens=False)["input_ids"]) for o in outputs)
    weights = sum(p.numel() for n, p in model.model.named_parameters() if "embed" not in n)
    x, w = torch.randn(512, 2048), torch.randn(2048, 2048)
    seconds = min(timed(lambda: x @ w)[0] for _ in range(20))
    return 2 * weights * tokens / (2 * 512 * 2048 * 2048 / seconds)


def compare(task: Task, args: argparse.Namespace, model: Any, tokenizer: Any) -> None:
    """Both at each of their batch sizes, and one line of the table."""
    stock_type = HuggingFacewithChatTemplate if task.chat else HuggingFaceBaseModel
    settings = {"torch_dtype": torch.float32, "device_map": "cpu"}
    stock = stock_type(path=args.model, model_kwargs=settings)
    theirs = {size: timed(partial(task.stock, stock, size)) for size in args.stock}
    ours = {}
    for size in args.ours:
        mine = InMemoryModel(model, tokenizer, chat=task.chat, label=task.name, batch_size=size)
        ours[size] = timed(partial(task.ours, mine))
    # in batches the stock wrapper's perplexities take in the token after the padding
    reference = None if task.chat else task.stock(stock, 1)
    print(line(task, theirs, ours, mine, reference), flush=True)


def line(
    task: Task,
    stock: dict[int, Any],
    ours: dict[int, Any],
    model: InMemoryModel,
    reference: list[Any] | None,
) -> str:
    """The times at each side's best batch size, and how the answers differ."""
    best_stock, best_ours = (min(made, key=lambda s: made[s][0]) for made in (stock, ours))
    (t_stock, a), (t_ours, b) = stock[best_stock], ours[best_ours]
    if reference is None:
        differing = [i for i in range(len(a)) if a[i] != b[i]]
        gaps = [gap(model, task.prompts[i], a[i], b[i]) for i in differing]
        differ = f"{len(differing)}" + (f", gap {max(gaps):.1e}" if gaps else "")
        least = f"{floor(model, task.prompts, b):.1f}"
    else:
        widest = max(abs(x - y) for x, y in zip(reference, b, strict=True))
        differ, least = f"loss by {widest:.1e}", ""
    return (
        f"| {task.name} | {len(task.prompts)} | {t_stock:.1f} ({best_stock}) "
        f"| {t_ours:.1f} ({best_ours}) | {t_stock / t_ours:.2f} | {least} | {differ} |"
    )


def suite_of(args: argparse.Namespace) -> dict[str, Any]:
    """The suite's section of a configuration, limited to what was asked for."""
    with composer():
        cfg = resolve(compose([f"eval={args.suite}", "task=toy", "trainer=toy"], "suite"), "suite")
    suite: dict[str, Any] = cfg["eval"]
    suite["datasets"] = [
        {**d, "limit": min(args.limit, d["questions"])}
        for d in suite["datasets"]
        if not args.sets or d["name"] in args.sets
    ]
    return suite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--suite", required=True, help="name of a file in conf/eval")
    parser.add_argument("--sets", nargs="+", help="only these sets of the suite")
    parser.add_argument("--limit", type=int, default=24, help="questions of each set")
    parser.add_argument("--most", type=int, help="most new tokens, if not the suite's")
    parser.add_argument("--stock", type=int, nargs="+", default=[8], help="batch sizes")
    parser.add_argument("--ours", type=int, nargs="+", default=[128], help="batch sizes")
    args = parser.parse_args()
    PreTrainedTokenizerBase.batch_encode_plus = lambda self, texts, **k: self(texts, **k)
    suite = suite_of(args)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    print(f"{args.model}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print("| set | questions | stock, s (batch) | ours, s (batch) | ratio | floor, s | differ |")
    print("|---|---|---|---|---|---|---|")
    asked = questions(suite, model, tokenizer, Path("runs/benchmark"))
    for name, (kind, prompts, most) in asked.items():
        compare(Task(name, kind, prompts, args.most or most), args, model, tokenizer)


if __name__ == "__main__":
    main()
