"""Problems and their worked answers, and the files they stand in.

A problem is a number and one to three operations on it, told in a split's own words. Every
calculation (the operation and its two numbers) belongs to one split by a hash of the seed, so that
no calculation of a test question, nor any of its intermediate ones, is in a training row.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osora_bench.arithmetic.wording import SPLITS, WORDS, Words
from osora_bench.common.files import write_json_lines

SEED = 20250514
DATA = Path(__file__).resolve().parent / "data"
STEPS = (1, 2, 3)
ROWS = {
    "train": {1: 1500, 2: 1500, 3: 1500},
    "validation": {1: 100, 2: 100, 3: 100},
    "test": {1: 334, 2: 333, 3: 333},
}
SHARES = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}
"""Of ten parts of all calculations, those of each split."""
LARGEST = 499
"""No number of a problem or an answer is larger."""
FACTORS = range(2, 10)
MOST_MULTIPLIED = 49
ATTEMPTS = 20
SHOWN = 10
"""Rows of the training file that OpenCompass's loader wants beside the questions."""


@dataclass(frozen=True)
class Calculation:
    """`a` `sign` `b`; a quotient is whole."""

    sign: str
    a: int
    b: int

    @property
    def result(self) -> int:
        if self.sign == "+":
            return self.a + self.b
        if self.sign == "-":
            return self.a - self.b
        return self.a * self.b if self.sign == "*" else self.a // self.b

    @property
    def text(self) -> str:
        return f"{self.a}{self.sign}{self.b}={self.result}"

    def split(self, seed: int) -> str:
        """The split that it belongs to; of a sum and a product in either order."""
        numbers = sorted((self.a, self.b)) if self.sign in "+*" else (self.a, self.b)
        digest = hashlib.sha256(f"{seed} {self.sign} {numbers[0]} {numbers[1]}".encode()).digest()
        part = int.from_bytes(digest[:8], "big") % 10
        return next(split for split, parts in SHARES.items() if part in parts)


Chain = tuple[Calculation, ...]
"""Calculations of which each begins with the result of the one before."""


def _number(rng: random.Random) -> int:
    return rng.randrange(2, 100)


def _first(rng: random.Random, sign: str) -> Calculation:
    """A calculation to begin with."""
    a, b = _number(rng), _number(rng)
    if sign == "+":
        return Calculation(sign, a, b)
    if sign == "-":
        return Calculation(sign, max(a, b) + 1, min(a, b))
    factor = rng.choice(FACTORS)
    if sign == "*":
        return Calculation(sign, rng.randrange(2, MOST_MULTIPLIED + 1), factor)
    return Calculation(sign, factor * rng.randrange(2, MOST_MULTIPLIED + 1), factor)


def _next(rng: random.Random, sign: str, a: int) -> Calculation | None:
    """A calculation that goes on with `a`, if this operation can."""
    if sign == "+":
        b = _number(rng)
        return Calculation(sign, a, b) if a + b <= LARGEST else None
    if sign == "-":
        b = _number(rng)
        return Calculation(sign, a, b) if b < a else None
    factor = rng.choice(FACTORS)
    fits = a <= MOST_MULTIPLIED if sign == "*" else a % factor == 0 and a // factor > 1
    return Calculation(sign, a, factor) if fits else None


def chain(rng: random.Random, steps: int, split: str, seed: int = SEED) -> Chain:
    """So many calculations, all of one split."""
    made: list[Calculation] = []
    while len(made) < steps:
        found = None
        for _ in range(ATTEMPTS):
            sign = rng.choice("+-*/")
            drawn = _next(rng, sign, made[-1].result) if made else _first(rng, sign)
            if drawn is None or (made and (sign == made[-1].sign or drawn.result == made[-1].a)):
                continue  # neither the same operation again nor one that undoes the last
            if drawn.split(seed) == split:
                found = drawn
                break
        made = [*made, found] if found is not None else []  # it leads nowhere: begin again
    return tuple(made)


def question(rng: random.Random, calculations: Chain, words: Words) -> str:
    """The problem in words."""
    told = [rng.choice(words.openings), *(rng.choice(words.steps[c.sign]) for c in calculations)]
    told.append(rng.choice(words.endings))
    numbers = [{"a": calculations[0].a}, *({"b": c.b} for c in calculations), {}]
    story = {"name": rng.choice(words.names.split()), "things": rng.choice(words.things.split())}
    return " ".join(s.format(**story, **n) for s, n in zip(told, numbers, strict=True))


def row(rng: random.Random, calculations: Chain, words: Words) -> dict[str, Any]:
    """A row of GSM8K's columns, with what makes it difficult: how many steps, which operations."""
    lines = [*(c.text for c in calculations), f"#### {calculations[-1].result}"]
    return {
        "question": question(rng, calculations, words),
        "answer": "\n".join(lines),
        "steps": len(calculations),
        "operations": "".join(c.sign for c in calculations),
    }


def rows(split: str, steps: int, seed: int = SEED) -> list[dict[str, Any]]:
    """The rows of a split with so many steps; no two have the same calculations."""
    rng = random.Random(f"{seed} {split} {steps}")
    chains: dict[Chain, None] = {}
    while len(chains) < ROWS[split][steps]:
        chains[chain(rng, steps, split, seed)] = None
    return [row(rng, calculations, WORDS[split]) for calculations in chains]


def files(seed: int = SEED) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Relative file names of the data folder and their rows.

    OpenCompass's loader takes a folder with two fixed names, so the questions of each number of
    steps stand in a folder of their own, with a training file that the loader opens.
    """
    made = {split: {steps: rows(split, steps, seed) for steps in STEPS} for split in SPLITS}
    train = [row for by_steps in zip(*made["train"].values(), strict=True) for row in by_steps]
    yield "train.jsonl", train
    for split in ("validation", "test"):
        for steps in STEPS:
            yield f"{split}-{steps}/train.jsonl", train[:SHOWN]
            yield f"{split}-{steps}/test.jsonl", made[split][steps]


def write_data(folder: Path, seed: int = SEED) -> None:
    """Write the data files below `folder`; the same seed gives the same bytes."""
    write_json_lines(folder, files(seed))
