"""The number that an output ends with, as GSM8K's answers are."""

import re
from decimal import Decimal, InvalidOperation

from osora_bench.evaluation.reading.turns import first_read

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+"
"""Digits with their thousands set apart by commas or spaces, or not at all."""
VALUE = (
    r"(?<![^\W_])(?<![.,])(?<!\w_)"  # `_18_` is a number in italics, `x_18` is none
    rf"(?P<value>(?:-\s?)?(?:{NUMBER})(?:\s?[-\u2013/:]\s?-?(?:{NUMBER})(?!\w))?)"
)
"""A number, a range, a fraction or a ratio: one of two numbers is not the one that is meant."""
LEAD = r"[\s*_$\u20ac\u00a3(\[{~=:\"'`]*(?:\\[(\[]\s*)?"
ABOUT = r"(?:(?:approximately|about|equal to|exactly|a total of|only|just|USD|US)\s+)?"
AFTER_MARK = re.compile(rf"####{LEAD}{VALUE}(?![.)]\s+[A-Za-z])")
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{(?P<said>(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
STATED = re.compile(
    r"\banswer\b(?:\s+(?:to|for|of)\b[^.\n:]{0,60}?)?[\s*]*"
    r"(?:(?:\b(?:is|are|was|would be)\b|=|:)[\s*]*)+(?=(?P<said>[^\n]*))",
    re.IGNORECASE,
)
FIRST = re.compile(rf"^{LEAD}{ABOUT}{LEAD}{VALUE}", re.IGNORECASE)
ANY = re.compile(VALUE)
SENTENCE = re.compile(r"[.!?](?:\s|$)")


def read_number(output: str) -> str | None:
    """The number that an output gives as its answer, as digits; None if it holds none.

    What follows `####`, or the last of a box and of what is said to be the answer; without any of
    them the last number. A range and a fraction are read as they stand.
    """
    return first_read(_without_latex(output), _marked, _stated, _last)


def _without_latex(text: str) -> str:
    """Numbers as LaTeX sets them, in plain digits."""
    text = re.sub(r"\\(?:text|textbf|mathbf|mathrm|mbox)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\,|\\;|\\ |\{\\,\}|~)(?=\d{3})", ",", text)
    return re.sub(r"\\([$%])", r"\1", text)


def _marked(turn: str) -> str | None:
    match = AFTER_MARK.search(turn)
    return None if match is None else _digits(match["value"])


def _stated(turn: str) -> str | None:
    statements = [
        (match.start(), value)
        for pattern in (BOXED, STATED)
        for match in pattern.finditer(turn)
        if (value := _in(match["said"])) is not None
    ]
    return max(statements)[1] if statements else None


def _in(statement: str) -> str | None:
    """The number of a statement: what it begins with, or the last one of its sentence."""
    boxed = BOXED.search(statement)
    sentence = boxed["said"] if boxed else SENTENCE.split(statement, maxsplit=1)[0]
    last = sentence.rpartition("=")[2]
    if (match := FIRST.match(last)) is not None:
        return _digits(match["value"])
    return _last(last)


def _last(turn: str) -> str | None:
    numbers = [match["value"] for match in ANY.finditer(turn)]
    return _digits(numbers[-1]) if numbers else None


def _digits(value: str) -> str:
    return re.sub(r"(?<=\d)[, ](?=\d{3})", "", value).replace(" ", "")


def equal(value: str, gold: str) -> bool:
    """Whether two numbers are one; a range or a fraction is no number."""
    try:
        return Decimal(value) == Decimal(gold.replace(",", "").strip())
    except InvalidOperation:
        return False


def is_number(value: str) -> bool:
    """Whether OpenCompass has read a number."""
    try:
        return Decimal(value).is_finite()
    except InvalidOperation:
        return False
