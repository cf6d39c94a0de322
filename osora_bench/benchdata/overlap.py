"""Test questions that stand in training rows: whole, or in a stretch of words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

GRAM = 13
"""Words in a row that two texts have in common by more than chance (Brown et al. 2020,
arXiv 2005.14165, appendix C)."""
SHORTEST = 5
"""Words in a row that a whole question needs to be told from common speech."""

_WORD = re.compile(r"[^\W_]+")
Words = tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """How many of a set's questions stand whole in a training row, and how many others have a
    stretch of `GRAM` words in common with one; their positions from 0."""

    questions: int
    exact: tuple[int, ...]
    near: tuple[int, ...]


def words(text: str) -> Words:
    """Letters and digits in lower case, without what stands between them."""
    return tuple(_WORD.findall(text.lower()))


@dataclass(frozen=True)
class Question:
    """What a set shows of a question.

    Attributes:
        wordings: it stands whole in a row that has all the texts of one of these.
        beside: what other questions may share with it, a passage or options. That in a row makes
            no duplicate of the question; a stretch of it is counted as any other.
    """

    wordings: tuple[tuple[str, ...], ...]
    beside: tuple[str, ...] = ()


class Questions:
    """The questions of a set, to find them in texts."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._stretches: dict[Words, set[int]] = {}
        self._whole: dict[Words, list[tuple[list[Words], int]]] = {}
        self.count = 0
        for number, question in enumerate(questions):
            self.count += 1
            wordings = [[words(text) for text in wording] for wording in question.wordings]
            for part in (
                *(w for wording in wordings for w in wording),
                *map(words, question.beside),
            ):
                for i in range(len(part) - GRAM + 1):
                    self._stretches.setdefault(part[i : i + GRAM], set()).add(number)
            for wording in wordings:
                wording.sort(key=len, reverse=True)
                if wording and len(wording[0]) >= SHORTEST:
                    start = wording[0][:SHORTEST]
                    self._whole.setdefault(start, []).append((wording, number))

    def in_rows(self, rows: Iterable[str]) -> Overlap:
        """Those that stand in some row."""
        exact: set[int] = set()
        near: set[int] = set()
        for row in rows:
            text = words(row)
            for i in range(len(text) - SHORTEST + 1):
                for (longest, *others), number in self._whole.get(text[i : i + SHORTEST], ()):
                    if text[i : i + len(longest)] == longest and _hold(text, others):
                        exact.add(number)
                near |= self._stretches.get(text[i : i + GRAM], set())
        return Overlap(self.count, tuple(sorted(exact)), tuple(sorted(near - exact)))


def _hold(text: Words, parts: Iterable[Words]) -> bool:
    """Whether each of the parts stands in a text."""
    spaced = f" {' '.join(text)} "
    return all(f" {' '.join(part)} " in spaced for part in parts if part)
