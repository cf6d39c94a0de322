"""Test questions that stand in training rows: whole, or in a stretch of words."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GRAM = 13
"""Words in a row that two texts have in common by more than chance (Brown et al. 2020,
arXiv 2005.14165, appendix C)."""
SHORTEST = 5
"""Words that a whole question needs to be told from common speech."""

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


class Questions:
    """The questions of a set, to find them in texts.

    Args:
        texts: of each question its texts: the question itself, a passage, options. The longest
            is the one that can stand whole in a training row.
    """

    def __init__(self, texts: Iterable[Sequence[str]]) -> None:
        self._stretches: dict[Words, set[int]] = {}
        self._whole: dict[Words, list[tuple[Words, int]]] = {}
        self.count = 0
        for number, parts in enumerate(texts):
            self.count += 1
            split = [words(part) for part in parts]
            for part in split:
                for i in range(len(part) - GRAM + 1):
                    self._stretches.setdefault(part[i : i + GRAM], set()).add(number)
            longest = max(split, key=len, default=())
            if len(longest) >= SHORTEST:
                self._whole.setdefault(longest[:SHORTEST], []).append((longest, number))

    def in_rows(self, rows: Iterable[str]) -> Overlap:
        """Those that stand in some row."""
        exact: set[int] = set()
        near: set[int] = set()
        for row in rows:
            text = words(row)
            for i in range(len(text) - SHORTEST + 1):
                for whole, number in self._whole.get(text[i : i + SHORTEST], ()):
                    if text[i : i + len(whole)] == whole:
                        exact.add(number)
                near |= self._stretches.get(text[i : i + GRAM], set())
        return Overlap(self.count, tuple(sorted(exact)), tuple(sorted(near - exact)))
