"""What OpenCompass wrote about one dataset, question by question."""

import gzip
import json
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from osora_bench.common.errors import UserError
from osora_bench.planning.config import DatasetConfig, EvalConfig
from osora_bench.records.record import pack

UNREAD = ("", "NULL", "None", "null")
"""What OpenCompass's post-processors return for an output in which they find no answer."""


@dataclass(frozen=True)
class Answer:
    """One question of a dataset: what was asked, what came out, how it was read and judged.

    `read` is the answer that OpenCompass found in `output`; None if it found none, or none of those
    that there are. `unjudged` says why there is no verdict, where that is why it is wrong. `cut`:
    the output ended at the length limit. `too_long`: the prompt left no room in the model's
    context, and was not asked.
    """

    prompt: Any
    output: Any
    read: Any
    right: bool
    unjudged: str | None = None
    cut: bool = False
    too_long: bool = False


def collect(
    result: dict[str, Any],
    predictions: dict[str, Any],
    possible: Callable[[str], bool] = lambda _: True,
    cut: Container[int] = (),
    too_long: Container[int] = (),
) -> list[Answer]:
    """Every question in order, from OpenCompass's result file and its predictions file.

    Args:
        possible: whether a value read is one of the set's possible answers.
        cut: places of the outputs that ended at the length limit.
        too_long: places of the questions that were not asked.

    Raises:
        RuntimeError: a result with verdicts of another number of questions.
    """
    entries = in_order(result.get("details") or {})
    outputs = in_order(predictions)
    if len(entries) != len(outputs) or not outputs:
        raise RuntimeError(
            f"OpenCompass judged {len(entries)} questions and has predictions for {len(outputs)}"
        )
    pairs = enumerate(zip(entries, outputs, strict=True))
    return [
        replace(_answer(*pair, possible), cut=i in cut, too_long=i in too_long) for i, pair in pairs
    ]


def in_order(details: Any) -> list[dict[str, Any]]:
    """The entries of any of OpenCompass's forms of details: a list, or keys 0, 1, ..."""
    if isinstance(details, list):
        return details
    return [details[key] for key in sorted((k for k in details if k.isdigit()), key=int)]


def _answer(
    entry: dict[str, Any], prediction: dict[str, Any], possible: Callable[[str], bool]
) -> Answer:
    read = entry["pred"] if "pred" in entry else entry.get("predictions")
    if isinstance(read, list) and len(read) == 1:
        read = read[0]
    unread = read is None or str(read).strip() in UNREAD or not possible(str(read))
    return Answer(
        prompt=prediction.get("origin_prompt"),
        output=prediction["prediction"],
        read=None if unread else read,
        right=bool(verdict_of_answer(entry)),
        unjudged=entry.get("unjudged"),
    )


def verdict_of_answer(entry: dict[str, Any]) -> bool | None:
    """Whether an entry of OpenCompass's details says right or wrong; None if it says neither."""
    for key in ("correct", "is_correct"):
        if key in entry:
            value = entry[key]
            return bool(value[0] if isinstance(value, list) else value)
    return None


def write_answers(answers: list[Answer], path: Path) -> None:
    """Keep the answers, one JSON line a question, gzipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Score:
    """One dataset's result: `k` of `n` questions right, of `questions` that the set has.

    `right` holds the verdict of each question (`record.pack`). `unread` are the outputs in which
    OpenCompass found none of the answers that there are; `too_long`, among them, those of questions
    with a prompt that leaves no room in the model's context, which are not asked; `unjudged`, also
    among them, those without a verdict in time. `cut` are the outputs that ended at the length
    limit. `corrected` is the score by this project's own reading (reading/corrections.py), where
    it has one; the headline stays OpenCompass's.
    """

    k: int
    n: int
    questions: int
    accuracy: float
    right: str
    unread: int
    too_long: int
    corrected: dict[str, Any] | None
    cut: int = 0
    unjudged: int = 0


def not_run(suite: EvalConfig, scores: dict[str, Score]) -> dict[str, str]:
    """By set, what was asked for by the suite's name and is not in the scores."""
    by_set: dict[str, list[str]] = {}
    for dataset in suite.datasets:
        score = scores.get(dataset.name)
        if score is None:
            by_set[dataset.name] = ["left out by eval.without"]
            continue
        by_set[dataset.name] = reasons = []
        if score.n < score.questions:
            reasons.append(f"{score.questions - score.n} of {score.questions} questions: limited")
        if score.too_long:
            reasons.append(f"{score.too_long} prompts: longer than the model's context")
    return {name: "; ".join(reasons) for name, reasons in by_set.items() if reasons}


def score_of(
    result: dict[str, Any],
    answers: list[Answer],
    dataset: DatasetConfig,
    too_long: int,
    corrected: dict[str, Any] | None,
) -> Score:
    """A result file as a score; its verdicts must add up to the accuracy that it states."""
    metric = dataset.metric
    verdicts = [answer.right for answer in answers]
    k, n = sum(verdicts), len(verdicts)
    stated = result[metric]
    if abs(100 * k / n - stated) > 1e-6 and stated != round(100 * k / n, 2):  # some round it
        raise UserError(f"{dataset.name}: OpenCompass says {stated}, its verdicts say {k}/{n}")
    return Score(
        k=k,
        n=n,
        questions=dataset.questions,
        accuracy=float(result[metric]),
        right=pack(verdicts),
        unread=sum(answer.read is None for answer in answers),
        too_long=too_long,
        corrected=corrected,
        cut=sum(answer.cut for answer in answers),
        unjudged=sum(answer.unjudged is not None for answer in answers),
    )
