"""Between which numbers a setting that is tuned lies, and which comes after those tried."""

import math
from dataclasses import dataclass
from typing import Any

from osora_bench.planning.adapter_rank import largest_rank
from osora_bench.planning.config import Config

RANK = "method.rank"
BATCH = "trainer.batch_size"
IN_CONFIG = (RANK, BATCH)
"""Keys whose bounds depend on the rest of the configuration."""


@dataclass(frozen=True)
class Bounds:
    """The numbers that a key may have.

    Args:
        high: the largest, or with `below` what all are less than.
        step: what whole numbers are a multiple of.
        why: this, in words.
    """

    high: float = math.inf
    below: bool = False
    step: int = 1
    why: str = ""

    def last(self, end: Any, *, up: bool) -> str | None:
        """Why no number above 0 lies beyond `end`; None if one may."""
        whole = is_whole(end)
        if up:
            nearest = end + self.step if whole else end
            beyond = nearest > self.high if whole else nearest >= self.high
            return self.why if beyond and not self.below else None
        if whole and 0 < end <= self.step:
            return self.why if self.step > 1 else f"{end} is the least whole number above 0"
        return None

    def next(self, end: Any, neighbour: Any) -> Any:
        """The number as far beyond `end` as its neighbour is on the other side, by ratio, and
        within the bounds: where it would not be, the bound itself, or half the way to one that is
        not reached. A whole one where both are. None where there is no ratio.

        `end` is not the last (`last`).
        """
        if end <= 0 or neighbour <= 0:
            return None
        number, up = end * end / neighbour, end > neighbour
        if is_whole(end):
            return self._multiple(round(number), end, up)
        if number >= self.high:
            if not self.below:
                return float(self.high)
            number = (end + self.high) / 2
        near = rounded(number)
        return near if near != end and (near > end) == up and self.allow(near) else number

    def allow(self, number: float) -> bool:
        """Whether a number of at least 0 is within the bounds."""
        return 0 <= number < self.high or (number == self.high and not self.below)

    def _multiple(self, number: int, end: int, up: bool) -> int:
        """The multiple of `step` nearest to a number on its way from `end`, but not `end`."""
        step = self.step
        if not up:
            return max(step, min(-(-number // step), (end - 1) // step) * step)
        multiple = max(number // step, end // step + 1) * step
        return multiple if multiple <= self.high else int(self.high // step * step)


def of_key(key: str) -> Bounds:
    """The bounds that a key has by its name."""
    if "dropout" in key.rpartition(".")[2]:
        return Bounds(1, below=True, why="a dropout is at least 0 and below 1")
    if key == "trainer.warmup_ratio":  # from 1 on, transformers takes it for a number of steps
        return Bounds(1, below=True, why="a share of the steps is at least 0 and below 1")
    return Bounds()


def in_config(key: str, cfg: Config) -> Bounds:
    """The bounds that one of `IN_CONFIG` has beside the rest of a configuration."""
    if key == RANK:
        largest = largest_rank(cfg)
        if largest is None:
            return Bounds()
        return Bounds(largest, why=f"the largest rank for {cfg.method.name} here is {largest}")
    rows, count = cfg.trainer.micro_batch_size, cfg.trainer.processes
    factor = f" x trainer.processes={count}" if count > 1 else ""
    why = f"a batch is a multiple of trainer.micro_batch_size={rows}{factor}"
    return Bounds(step=rows * count, why=why)


def problem(key: str, number: float) -> str | None:
    """Why a number is beyond the bounds that its key has by name; the configuration's own checks
    know others."""
    bounds = of_key(key)
    return bounds.why if bounds.why and not bounds.allow(number) else None


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; a switch is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def rounded(number: float) -> float:
    """Three digits: 3e-3 times 3 is 9e-3 for whoever reads it."""
    return float(f"{number:.3g}")
