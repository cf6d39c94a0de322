"""The formula that an output ends with, as MATH's answers are, and whether two are one."""

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

from osora_bench.evaluation.reading.turns import first_read

BOX = re.compile(r"\\(?:boxed|fbox)\s*")
BETWEEN = re.compile(r"[\s$.]*(?:,?\s*(?:and|or)|,)[\s$]*(?:[a-zA-Z]\w?\s*=\s*)?$")
"""What stands between two boxes that are one answer: `\\boxed{1} and \\boxed{2}`."""
STATED = re.compile(
    r"\banswers?\b(?:\s+(?:to|for|of)\b[^.\n:]{0,60}?)?[\s*]*"
    r"(?:(?:\b(?:is|are|was|would be)\b|:)[\s*]*)+"
    r"(?:(?:thus|therefore|then|simply|just)\s+)?(?=(?P<said>[^\n]*(?:\n[^\n]+)?))",
    re.IGNORECASE,
)
PRAISE = re.compile(r"(?:correct|right|wrong|incorrect|clear|known|found)\b", re.IGNORECASE)
"""What an answer is said to be, and is not."""
MATHS = re.compile(
    r"(?<!\\)\$\$(.+?)(?<!\\)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?")
SHORT = 60
"""Characters of an answer that is a formula and no more."""
LONGEST = 1_000
"""Characters of a formula that is an answer; the longest reference has 200."""
WORDS = re.compile(r"(?:(?<![\\A-Za-z])[A-Za-z]{3,}|\s[A-Za-z]{2,})\s")
LETTERS = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])")


def read_formula(output: str) -> str | None:
    """The formula that an output gives as its answer, None if it gives none.

    The last box, with those before it that are one answer with it; else what is said to be the
    answer, up to the end of its sentence; else the last formula or number.
    """
    formula = first_read(output, _boxed, _stated, _last)
    return formula if formula is not None and len(formula) <= LONGEST else None


def _boxed(turn: str) -> str | None:
    """What is in the last box that is closed, and in those that `and` or a comma joins to it."""
    boxes: list[tuple[int, int, str]] = []
    for match in BOX.finditer(turn):
        end = _closing(turn, match.end())
        if end is not None and (not boxes or match.start() >= boxes[-1][1]):
            boxes.append((match.start(), end, turn[match.end() + 1 : end - 1].strip()))
    if not boxes:
        return None
    texts, begin = [boxes[-1][2]], boxes[-1][0]
    for start, end, text in reversed(boxes[:-1]):
        if not BETWEEN.match(turn[end:begin]):
            break
        texts, begin = [text, *texts], start
    return ",".join(texts) or None


def _closing(text: str, start: int) -> int | None:
    """Where the brace that opens at `start` is closed, None if none opens there or it is not."""
    depth = 0
    for i in range(start, min(len(text), start + LONGEST)):
        depth += {"{": 1, "}": -1}.get(text[i], 0) * (text[i - 1] != "\\")
        if depth == 0:
            return i + 1 if i > start else None
    return None


def _stated(turn: str) -> str | None:
    found = [_formula(match["said"]) for match in STATED.finditer(turn)]
    said = [formula for formula in found if formula is not None and not PRAISE.match(formula)]
    return said[-1] if said else None


def _formula(statement: str) -> str | None:
    """The formula of a statement: in its dollars, or up to the end of its sentence."""
    statement = statement.strip(" *\n")
    sentence = SENTENCE.split(statement, maxsplit=1)[0].strip(" *:")
    maths = MATHS.search(statement)
    if maths is not None and maths.start() <= len(sentence):
        last = [
            m for m in MATHS.finditer(statement) if m.start() <= max(len(sentence), maths.end())
        ]
        joined = all(BETWEEN.match(statement[a.end() : b.start()]) for a, b in pairwise(last))
        texts = [next(filter(None, m.groups())).strip() for m in last]
        return ",".join(texts) if joined else texts[0]
    return _ended(sentence)


def _value(formula: str) -> str:
    """What a formula comes to: behind its last `=`, unless it is an equation of some unknowns."""
    first, *others = re.split(r"(?<![<>!\\])=", formula)
    head = first[-SHORT:]
    unknowns = len(LETTERS.findall(head)) > 1 or re.search(r"[-+^\d].*[a-z]|[a-z].*[-+^]", head)
    return (formula if len(others) == 1 and unknowns else [first, *others][-1]).strip()


def _ended(text: str) -> str | None:
    """A text that is a formula without dollars; of one with words its last number."""
    formula = _value(text).strip(" *$").rstrip(".,")
    if not formula:
        return None
    if len(formula) <= SHORT and not WORDS.search(f"{formula} "):
        return formula
    if not re.search(r"\d", formula):
        return formula if len(formula) <= SHORT and len(formula.split()) <= 3 else None
    return NUMBER.findall(formula)[-1] if NUMBER.search(formula) else None


def _last(turn: str) -> str | None:
    """The last formula of a turn without a statement; a short line alone is one, and a box that is
    empty or was never closed is none."""
    if BOX.search(turn):
        return None
    line = turn.rstrip().rpartition("\n")[2]
    maths = [next(filter(None, m.groups())) for m in MATHS.finditer(turn)]
    if maths and MATHS.search(line):
        return _value(maths[-1]) or None
    formula = _ended(SENTENCE.sub("\n", line).strip().rpartition("\n")[2])
    if formula is not None and (re.search(r"[\d\\^]", formula) or turn == line):
        return formula if re.search(r"[\d\\^]", formula) or len(formula.split()) == 1 else None
    numbers = NUMBER.findall(turn)
    return numbers[-1] if numbers else None


def equal(value: str, gold: str, solve: Callable[[str, str], bool | None]) -> bool | None:
    """Whether two formulas are one: written alike, of one number, or by `solve`'s algebra.

    Words are compared as they are written: to a solver, `east` is a product of four letters.
    """
    ours, theirs = normal(value), normal(gold)
    if ours == theirs:
        return True
    numbers = number(ours), number(theirs)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if any(re.match(r"-\\?[a-zA-Z]+=", text) for text in (ours, theirs)):
        return False  # the solver would compare what stands on the right alone
    if any(re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}", text) for text in (ours, theirs)):
        return ours.casefold() == theirs.casefold()
    return solve(ours, theirs) if ours else False


def is_formula(value: str) -> bool:
    """Whether what OpenCompass read has an answer's form: its post-processor for MATH hands on the
    first sentence, without its spaces, of what holds no answer."""
    if re.search(r"[A-Za-z]{16,}", value):
        return False
    if re.search(r"[\d\\+*/^=<>()\[\]{}|]", value) or value.isalpha():
        return True
    return bool(re.search(r"[A-Za-z]", value)) and not re.search(r"[A-Za-z]{2}", value)


REPLACED = (
    (r"\\(?:left|right|displaystyle|quad|qquad|big|Big|bigg|Bigg)(?![a-zA-Z])|\\[!,;:]", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|textit)\s*\{\s*([^{}]*?)\s*\}", r"\1"),
    (r"\\\s|~", ""),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\u00b0", ""),
    (r"\\?[$%]", ""),
    (r"\{,\}", ","),
    (r"(?<=\d),(?=\d{3}(?!\d))(?![^(\[]*[)\]])", ""),
    (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\\sqrt\s*(\d|[a-z](?![a-z]))", r"\\sqrt{\1}"),
    (r"\\le(?![a-z])|\\leq(?![a-z])", "<="),
    (r"\\ge(?![a-z])|\\geq(?![a-z])", ">="),
    (r"^\s*[a-zA-Z]\w?(?:\([a-z]\))?\s*(?:=|\\in(?![a-z]))\s*(?=[^=]+$)", ""),
    (r"(?<=\d)\s*(?:square |cubic )?(?:units?|cm|inches|feet|meters|dollars|degrees|hours|minutes"
     r"|miles|cents|points|ways|people|years)(?:\s*\^\s*\{?\d\}?)?\s*$", ""),
    (r"\s+", ""),
    (r"\.$", ""),
)  # fmt: skip
"""How one formula is written in two ways, in this order."""
COMPILED = [(re.compile(pattern), new) for pattern, new in REPLACED]


def normal(formula: str) -> str:
    """A formula as all that are written a little differently are."""
    for pattern, replacement in COMPILED:
        formula = pattern.sub(replacement, formula)
    return formula


def number(formula: str) -> Fraction | None:
    """The value of a decimal or of a fraction of whole numbers, in `normal` form."""
    match = re.fullmatch(
        r"(-?)\\frac\{(-?\d{1,30})\}\{(-?\d{1,30})\}|(-?\d{1,30})/(\d{1,30})", formula
    )
    if match is not None:
        sign, numerator, denominator = match[1] or "", match[2] or match[4], match[3] or match[5]
        return (
            None
            if int(denominator) == 0
            else Fraction(int(sign + "1") * int(numerator), int(denominator))
        )
    if re.fullmatch(r"[-+]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})", formula):
        return Fraction(formula.rstrip("."))
    return None
