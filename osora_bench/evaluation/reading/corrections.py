"""What an output says, read by this project's own rules beside OpenCompass's.

The official score stays the headline of a record; the corrected one stands beside it, with the
number of questions whose verdict differs. Which reader a set has is what its configuration says of
how its answers are read and judged.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from osora_bench.evaluation.reading import formulas, numbers
from osora_bench.evaluation.reading.choices import read_choice

Row = Mapping[str, Any]
"""A question of a set, by its columns."""

LETTERS = (
    "first_option_postprocess", "last_option_postprocess", "first_capital_postprocess",
    "last_capital_postprocess", "match_answer_pattern", "GPQA_Simple_Eval_postprocess",
)  # fmt: skip
"""OpenCompass's post-processors whose value is an option's letter."""
OPTION = re.compile(r"^\(?([A-Z])[.):]\s*(.+)$", re.MULTILINE)
"""How a prompt lists its options: `A. {A}`, `A) {A}`, `A. Yes`."""
COLUMN = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Reader:
    """How the answers of a kind of set are read.

    Attributes:
        rule: what the corrected reading mends, as tables say it.
        read: the answer that an output gives to a question, None if it gives none.
        right: whether an answer is the reference's; None where that could not be found out.
        possible: whether what OpenCompass read is one of the answers that there are.
    """

    rule: str
    read: Callable[[str, Row], str | None]
    right: Callable[[str, str], bool | None]
    possible: Callable[[str], bool]


def named(kind: Any) -> str:
    """The bare name of a class or function that an OpenCompass configuration holds, itself or as a
    dotted path."""
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def reader_of(config: Any) -> Reader | None:
    """The reader of a dataset configuration's answers, None where this project has none: what is
    scored by perplexity is not read at all."""
    post = named(config.eval_cfg.get("pred_postprocessor", {}).get("type"))
    judge = named(config.eval_cfg.get("evaluator", {}).get("type"))
    options = options_of(config)
    if post in LETTERS and options:
        return _choice(options)
    if post == "gsm8k_postprocess":
        return NUMBER
    if judge == "MATHVerifyEvaluator":
        return VERIFIED
    return FORMULA if judge == "MATHEvaluator" and post == "math_postprocess_v2" else None


def options_of(config: Any) -> dict[str, str]:
    """By its letter, how a prompt shows each option: a text with columns in braces; empty if it
    lists none."""
    options: dict[str, str] = {}
    for letter, text in OPTION.findall(_question(config.infer_cfg)):
        if letter == "A":
            options = {}  # the last list is the question's
        if letter == chr(ord("A") + len(options)):
            options[letter] = text
    return options if len(options) > 1 else {}


def _question(infer: Any) -> str:
    """The last turn that is asked in a configuration's prompts."""
    for kind in ("prompt_template", "ice_template"):
        template = infer.get(kind, {}).get("template", "")
        if isinstance(template, str):
            prompts = [template]
        else:
            prompts = [t["prompt"] for t in template.get("round", []) if t["role"] == "HUMAN"]
        if prompts and prompts[-1]:
            return str(prompts[-1])
    return ""


def _choice(shown: dict[str, str]) -> Reader:
    def read(output: str, row: Row) -> str | None:
        return read_choice(output, filled(shown, row))

    return Reader(
        rule="an option's letter in any dress, or its text in full, is read",
        read=read,
        right=str.__eq__,
        possible=shown.__contains__,
    )


def filled(shown: dict[str, str], row: Row) -> dict[str, str]:
    """A question's options, from how the prompt shows them."""
    return {key: COLUMN.sub(lambda m: str(row[m[1]]), text) for key, text in shown.items()}


def _solved(value: str, gold: str) -> bool | None:
    from osora_bench.evaluation.reading import solver  # it imports OpenCompass

    return solver.equal(value, gold)


NUMBER = Reader(
    rule="the number is read that is said to be the answer, its thousands set apart or not",
    read=lambda output, _: numbers.read_number(output),
    right=numbers.equal,
    possible=numbers.is_number,
)
FORMULA = Reader(
    rule="the formula is read that is boxed or said to be the answer, and compared by its value",
    read=lambda output, _: formulas.read_formula(output),
    right=lambda value, gold: formulas.equal(value, gold, _solved),
    possible=formulas.is_formula,
)
VERIFIED = Reader(
    rule=FORMULA.rule,
    read=FORMULA.read,
    right=FORMULA.right,
    # math-verify's answers are shown as a list; anything else says why there is none
    possible=lambda value: value.startswith("[") and value != "[]",
)
