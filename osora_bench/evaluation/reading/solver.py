"""math-verify, asked in a process of its own that ends when its solver does not."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from opencompass.evaluator import math_evaluator

from osora_bench.evaluation.reading.bounded import Bounded, TimedOut

SECONDS = 10
"""For one question: OpenCompass's own bound."""


class _Answers(list[Any]):
    """Stands in for the queue that OpenCompass's function puts its answer into."""

    put = list.append


def _official(pred: str, gold: str) -> Any:
    """OpenCompass's own parsing and comparison."""
    answers = _Answers()
    math_evaluator._verify_worker(pred, gold, answers)
    return answers[0]


def _parse(formula: str) -> Any:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    kinds = [LatexExtractionConfig(), ExprExtractionConfig()]  # as OpenCompass reads a reference
    return parse(f"${formula}$", extraction_config=kinds, extraction_mode="first_match")


def _equal(value: str, gold: str) -> bool:
    from math_verify import verify

    return bool(verify(_parse(gold), _parse(value)))


def _parses(gold: str) -> bool:
    return bool(_parse(gold))


def _solve(function: str, *arguments: str) -> Any:
    logging.disable(logging.WARNING)  # math-verify repeats itself at every question
    functions: dict[str, Callable[..., Any]] = {
        "official": _official, "equal": _equal, "parses": _parses
    }  # fmt: skip
    return functions[function](*arguments)


_solver = Bounded(_solve, SECONDS)


def close() -> None:
    """End the process; the next question starts another."""
    _solver.close()


def verify_with_timeout(pred: str, ref: str, timeout: float = SECONDS) -> dict[str, Any]:
    """In place of OpenCompass's function of this name, which forks a process for every question.

    A question without a verdict is an error with a reason, so that it has an entry among the
    details, wrong and unread; OpenCompass leaves one out whose reference cannot be parsed.
    """
    try:
        kind, *values = _solver("official", pred, ref)
    except TimedOut:
        return _without(f"not within {timeout:g} s")
    except RuntimeError as error:
        return _without(str(error))
    if kind == "ok":
        right, parsed, gold = values
        return {"answer_correct": right, "answer_parsed": parsed, "gold_parsed": gold}
    return _without("the reference answer cannot be parsed" if kind == "empty" else str(values[0]))


def equal(value: str, gold: str) -> bool | None:
    """Whether two formulas are one by math-verify's algebra; None without a verdict in time."""
    try:
        return bool(_solver("equal", value, gold))
    except (TimedOut, RuntimeError):
        return None


def unparsable(references: Iterable[str]) -> list[int]:
    """The places of the references that math-verify cannot parse."""
    return [i for i, gold in enumerate(references) if not _can_parse(gold)]


def _can_parse(gold: str) -> bool:
    try:
        return bool(_solver("parses", gold))
    except (TimedOut, RuntimeError):
        return False


def _without(reason: str) -> dict[str, Any]:
    return {"error": True, "msg": f"{UNJUDGED}{reason}"}


UNJUDGED = "no verdict: "
"""How the details begin of a question that math-verify could not judge."""


def mark(details: Any) -> None:
    """Say of each entry of the details that has no verdict why."""
    for entry in details if isinstance(details, list) else ():
        pred = entry.get("pred")
        pred = pred[0] if isinstance(pred, list) and pred else pred
        if isinstance(pred, str) and pred.startswith(UNJUDGED):
            entry["unjudged"] = pred.removeprefix(UNJUDGED)


FORKED = math_evaluator._verify_with_timeout
"""OpenCompass's own."""
math_evaluator._verify_with_timeout = verify_with_timeout
