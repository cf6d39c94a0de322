"""The option that an output names: a letter in any usual dress, or an option's text in full."""

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise

from osora_bench.evaluation.reading.turns import first_read

Options = Mapping[str, str]
"""The texts of a question's options by their letters."""

FONT = r"\\(?:text|textbf|textrm|mathrm|mathbf|mathsf|boxed|fbox|bf)\s*[{(]"
OPEN = rf"(?:[\s(\[{{<*_$`'\"]|{FONT}|\\[(\[]|<\w{{1,8}}>)*"
CLOSE = r"[)\]}>*_$`'\"]*"
SAID = r"(?=(?P<said>[^\n]*(?:\n+[^\n]+)?))"
STATED = re.compile(
    r"(?:\b(?:answer|ans|option|choice)\b"
    r"(?:\s+(?:to|for|of|here|choice|option|letter)\b[^.\n:]{0,60}?)?[\s*]*"
    r"(?:\b(?:is|are|was|would be|should be|must be|will be)\b[\s*]*[:=]?|[:=])[\s*]*"
    r"|\b(?:it|that|this)(?:'s|\s+is|\s+must be|\s+should be|\s+would be)\s+"
    r"(?=[(*$]*[A-Z][)*$]*\W*$)"
    r"|\b(?:choose|chose|pick|select|go with|choosing|going with)\s+"
    r"|^[^\w\n]*(?:answer|option|choice)\s+"
    r"(?!\s|[:=]|(?:is|are|was|would|should|must|will|to|for|of|here|choice|option|letter)\b)"
    r"|<answer>)"
    r"(?:(?:most likely|likely|probably|clearly|therefore|thus|definitely)[\s,]+)?"
    r"(?:(?:the\s+)?(?:option|choice|letter)\b[\s:]*)?" + SAID,
    re.IGNORECASE | re.MULTILINE,
)
"""Words that say that an answer follows."""
BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{(?P<said>(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\})")
CALLED = re.compile(
    rf"(?:^|(?<=[\s,;:(*]))(?P<said>{OPEN}[A-Za-z]{CLOSE})(?:[.:)]\s[^.\n]{{1,80}}?)?\s+"
    r"(?:is|as|being) (?:the |my )?(?:\w+ )?(?:correct|right|best|answer|true)\b",
    re.IGNORECASE | re.MULTILINE,
)
"""`(B) is correct`, `B. iron is the best answer`."""
PRAISED = re.compile(
    r"\b(?:is|as|being) .{0,20}(?:correct|right|best|answer|true)\b", re.IGNORECASE
)
DENIED = re.compile(
    r"(?:wrong|incorrect|not|n't|nor|neither|whether|if)(?: the)?[^\w.!?;]*$", re.IGNORECASE
)
LETTER = re.compile(
    rf"{OPEN}(?P<letter>[A-Za-z]){CLOSE}"
    r"(?:(?P<end>\s*$|\s*\n|[.:,;!?\\/|<]|\s*[-\u2013\u2014=>]+\s)|(?P<word>(?=\s)))"
)
"""A letter and no word's first one; `word`: with another word behind it."""
REASON = re.compile(r"\s+(?:because|since|as|for|which|that|given|due|over)\b", re.IGNORECASE)
DRESSED = re.compile(r"[(\[*$`{]\s*[A-Za-z]|[A-Za-z][)\]*$`}]")
ANOTHER = re.compile(
    rf"\s*(?:/|&|,|\bor\b|\band\b|,\s*or\b|,\s*and\b)\s*(?:option\s+)?{OPEN}[A-Z]{CLOSE}"
    r"(?=\s*(?:$|[.,;\n]|or\b|and\b))"
)
"""A second letter behind the first: what names two names none."""
OPENED = re.compile(rf"^{OPEN}")
CLOSED = re.compile(rf"^{CLOSE}")
ENDED = re.compile(r"[.!?]?[)\]}*_$`'\"]*\s*(?:$|\n)|[.!?)]['\"*]*\s")
CLAUSE = re.compile(rf"{ENDED.pattern}|[,;:]")
LISTED = re.compile(r"^[*_\s]{0,4}\(?([A-Z])[.):][*_\s]{0,4}(.*)$", re.MULTILINE)


def read_choice(output: str, options: Options) -> str | None:
    """The letter of the option that an output names, None where it names none or more than one.

    The last option that is said to be the answer; else one that stands alone, in all of the text,
    on its first line or on its last.
    """

    def read(turn: str) -> str | None:
        head = _own(turn, options)
        return _stated(head, options) or _alone(head, options)

    return first_read(output, read)


def _own(turn: str, options: Options) -> str:
    """A turn up to where it lists options that are not this question's."""
    items = list(LISTED.finditer(turn))
    for first, second in pairwise(items):
        others = (first[1], second[1]) == ("A", "B") and not _same_start(first[2], options["A"])
        if others and turn[: first.start()].strip():
            return turn[: first.start()]
    return turn


def _same_start(text: str, option: str) -> bool:
    return _words(text)[:20] == _words(option)[:20]


def _stated(turn: str, options: Options) -> str | None:
    """The last option that a turn says to be the answer."""
    statements = [
        (match.start("said"), letter)
        for pattern in (STATED, BOXED, *((CALLED,) if PRAISED.search(turn) else ()))
        for match in pattern.finditer(turn)
        if not DENIED.search(turn[max(0, match.start() - 16) : match.start()])
        and (letter := _option(match["said"], options)) is not None
    ]
    return max(statements)[1] if statements else None


def _alone(turn: str, options: Options) -> str | None:
    """An option that is all of a turn, of its first line or of its last."""
    if (choice := _text(turn, options)) is not None:
        return choice
    if len({m[1] for m in LISTED.finditer(turn)} & set(options)) > 1:  # it goes through them
        return None
    lines = [line for line in turn.split("\n") if line.strip()]
    for line in (lines[0], lines[-1]) if lines else ():
        if (letter := _option(line, options)) is not None:
            return letter
    return None


def _option(statement: str, options: Options) -> str | None:
    """The option that a text begins with, by its letter or by its words; None if these differ."""
    letter, text = _letter(statement, options), _text(statement, options)
    return letter or text if None in (letter, text) or letter == text else None


def _letter(statement: str, options: Options) -> str | None:
    match = LETTER.match(statement)
    if match is None or match["letter"].upper() not in options:
        return None
    letter, rest = match["letter"], statement[match.end("letter") :]
    if ANOTHER.match(CLOSED.sub("", rest)):
        return None
    if match["word"] is None or DRESSED.search(match[0]):
        return letter.upper()
    # a word follows: the letter may be an article, a pronoun, or before the option's own words
    reason = letter.isupper() and REASON.match(rest)
    repeats_option = _words(rest).startswith(_words(options[letter.upper()]) or " ")
    return letter.upper() if reason or repeats_option else None


def _text(statement: str, options: Options) -> str | None:
    """The option whose words in full a text is, or is up to the end of a sentence; the longest."""
    bare = OPENED.sub("", statement)
    start = bare[:2].casefold()
    if not any(start in text[:20].casefold() for text in options.values()):
        return None
    for matches in (_equal, _begins, _equal_words):
        candidates = sorted(
            ((len(text), key) for key, text in options.items() if matches(bare, text)), reverse=True
        )
        if len(candidates) == 1 or (candidates and candidates[0][0] > candidates[1][0]):
            return candidates[0][1]
        if candidates:
            return None
    return None


def _equal(statement: str, option: str) -> bool:
    return statement.strip() == option.strip() != ""


def _begins(statement: str, option: str) -> bool:
    """Whether a text is an option's up to the end of a sentence, or of a clause if it is short."""
    stem = option.strip().rstrip(".").casefold()
    if not stem or statement[: len(stem)].casefold() != stem:
        return False
    return (CLAUSE if len(stem) < 20 else ENDED).match(statement[len(stem) :]) is not None


def _equal_words(statement: str, option: str) -> bool:
    words = _words(option)
    return words != "" and words in (_words(statement.partition("\n")[0]), _words(statement))


@lru_cache(maxsize=64)
def _words(text: str) -> str:
    """A text by its letters and digits, in small letters."""
    return " ".join(re.findall(r"\w+", text.casefold()))
