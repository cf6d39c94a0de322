"""Which settings a method's choice is among: a grid that grows where it ends, or random draws."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from osora_bench.common.errors import UserError

RATE = "trainer.learning_rate"
TUNABLE = ("trainer.", "method.")
"""What the keys that may be tuned begin with."""
MOST_EXTENSIONS = 2

Point = dict[str, Any]
"""Values by dotted key."""


@dataclass(frozen=True)
class Search:
    """The settings that are tried for one model and method.

    Args:
        space: by dotted key a list of values, or `{low: 1e-4, high: 1e-1}` to draw from.
        draws: that many points drawn at random; None: the product of all lists.
        extend: how often a grid may grow at each end of a key's values.
    """

    space: dict[str, Any]
    draws: int | None = None
    extend: int = MOST_EXTENSIONS

    def check(self, where: str) -> None:
        """Raise UserError if it is none."""
        for key, values in self.space.items():
            if not key.startswith(TUNABLE):
                raise UserError(f"{where}: {key} cannot be tuned, only trainer.* and method.* can")
            if isinstance(values, list):
                if not values or len(values) != len({str(value) for value in values}):
                    raise UserError(f"{where}: {key}: {values} is no list of different values")
            else:
                self._check_range(where, key, values)
        if not self.space or (self.draws is not None and self.draws < 1):
            raise UserError(f"{where}: tune names no settings, or draws none of them")

    def _check_range(self, where: str, key: str, values: Any) -> None:
        if not isinstance(values, dict) or set(values) != {"low", "high"}:
            raise UserError(f"{where}: {key}: {values} is neither a list nor {{low: , high: }}")
        if self.draws is None:
            raise UserError(f"{where}: {key}: {values} is drawn from: say how often (draws)")
        if not 0 < values["low"] < values["high"]:
            raise UserError(f"{where}: {key}: {values} needs 0 < low < high")

    def first(self, seed: int) -> list[Point]:
        """The points that are tried in any case, by a seed if they are drawn.

        Numbers are drawn log-uniformly, to three digits; every method draws alike.
        """
        if self.draws is None:
            return [
                dict(zip(self.space, values, strict=True))
                for values in itertools.product(*self.space.values())
            ]
        generators = {key: random.Random(f"{seed} {key}") for key in self.space}
        return [
            {key: _drawn(generators[key], values) for key, values in self.space.items()}
            for _ in range(self.draws)
        ]

    def tried(
        self, seed: int, loss_of: Callable[[Sequence[Point]], list[float | None]]
    ) -> tuple[list[Point], Point | None]:
        """All points to try as far as that is known, and the best once all have a loss.

        A best point with the smallest or largest value of a key is not known to be the best: the
        next value beyond, as far away as its neighbour on the other side (by ratio), is tried with
        it, at most `extend` times at each end. Every method has the same rule.

        Args:
            loss_of: the loss of each point, infinite where it diverged, None if not known yet.
        """
        points = self.first(seed)
        while True:
            losses = loss_of(points)
            known = [loss for loss in losses if loss is not None]
            if len(known) < len(points) or min(known) == math.inf:
                return points, None
            best = points[losses.index(min(known))]
            beyond = next(self._beyond(best, points), None)
            if beyond is None:
                return points, best
            points.append(beyond)

    def _beyond(self, best: Point, points: Sequence[Point]) -> Iterator[Point]:
        """The next points to try where `best` is at the end of a key's values."""
        if self.draws is not None:
            return
        for key, given in self.space.items():
            if len(given) < 2 or not all(isinstance(v, float) and v > 0 for v in given):
                continue
            values = sorted({point[key] for point in points})
            for end, neighbour, added in (
                (values[0], values[1], sum(v < min(given) for v in values)),
                (values[-1], values[-2], sum(v > max(given) for v in values)),
            ):
                if best[key] == end and added < self.extend:
                    yield {**best, key: rounded(end * end / neighbour)}


def _drawn(generator: random.Random, values: Any) -> Any:
    if isinstance(values, list):
        return generator.choice(values)
    low, high = values["low"], values["high"]
    number = math.exp(generator.uniform(math.log(low), math.log(high)))
    if isinstance(low, int) and isinstance(high, int):
        return min(high, max(low, round(number)))
    return rounded(number)


def rounded(number: float) -> float:
    """Three digits: 3e-3 times 3 is 9e-3 for whoever reads it."""
    return float(f"{number:.3g}")
