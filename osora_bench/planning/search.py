"""Which settings a method's choice is among: a grid that grows where it ends, or random draws."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from osora_bench.common.errors import UserError
from osora_bench.planning import declared

RATE = "trainer.learning_rate"
TUNABLE = ("trainer.", "method.")
"""What the keys that may be tuned begin with."""
MOST_EXTENSIONS = 2
MOST_LOOKS = 1000
"""For a point that was not drawn before, times the number of draws."""

Point = dict[str, Any]
"""Values by dotted key."""


@dataclass(frozen=True)
class Outcome:
    """What is known of a search.

    Args:
        points: all to try, as far as that is known.
        best: the one with the lowest loss, of several the first; None before all losses are known,
            or if all are infinite.
        edges: keys of which the best has the smallest or largest value tried, though there may be
            more beyond it.
        ended: by key why there is nothing to try beyond the best's value.
    """

    points: list[Point]
    best: Point | None = None
    edges: tuple[str, ...] = ()
    ended: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Search:
    """The settings that are tried for one model and method.

    Args:
        space: by dotted key a list of values, or `{low: 1e-4, high: 1e-1}` to draw from.
        draws: that many different points drawn at random; None: the product of all lists.
        extend: how often a grid may grow at each end of a key's numbers.
    """

    space: dict[str, Any]
    draws: int | None = None
    extend: int = MOST_EXTENSIONS

    def check(self, where: str) -> None:
        """Raise UserError if it is none."""
        for name, count, least in (("draws", self.draws, 1), ("extend", self.extend, 0)):
            if count is not None and (not _is_whole(count) or count < least):
                raise UserError(f"{where}: {name}={count}: a whole number of at least {least}")
        if not self.space:
            raise UserError(f"{where}: tune names no settings")
        for key, values in self.space.items():
            if not key.startswith(TUNABLE):
                raise UserError(f"{where}: {key} cannot be tuned, only trainer.* and method.* can")
            if (problem := declared.key_problem(key)) is not None:
                raise UserError(f"{where}: {problem}")
            if isinstance(values, list):
                if not values or len(values) != len({str(value) for value in self._list(key)}):
                    raise UserError(f"{where}: {key}: {values} is no list of different values")
            else:
                self._check_range(where, key, values)
            for value in values if isinstance(values, list) else values.values():
                if (problem := _value_problem(key, value)) is not None:
                    raise UserError(f"{where}: {key}={value}: {problem}")
        if self.draws is not None and self.draws > (size := self._size()):
            raise UserError(
                f"{where}: draws={self.draws}, and there are {size:g} different settings to draw; "
                "without draws all of them are tried"
            )

    def _check_range(self, where: str, key: str, values: Any) -> None:
        if not isinstance(values, dict) or set(values) != {"low", "high"}:
            raise UserError(f"{where}: {key}: {values} is neither a list nor {{low: , high: }}")
        if self.draws is None:
            raise UserError(f"{where}: {key}: {values} is drawn from: say how often (draws)")
        if not all(map(_is_number, values.values())):
            raise UserError(f"{where}: {key}: {values}: low and high are numbers")
        if not 0 < values["low"] < values["high"] < math.inf:
            raise UserError(f"{where}: {key}: {values} needs 0 < low < high")

    def _size(self) -> float:
        """How many different points can be drawn."""
        sizes = [
            len(values)
            if isinstance(values, list)
            else values["high"] - values["low"] + 1
            if _draws_whole(key, values)
            else math.inf
            for key, values in self.space.items()
        ]
        return math.prod(sizes)

    @property
    def fixed(self) -> list[str]:
        """Keys of a grid whose values are not extended at either end: words, switches, or numbers
        without a ratio."""
        if self.draws is not None:
            return []
        return [
            key
            for key in self.space
            if len(values := self._list(key)) > 1 and not (_ordered(values) and _grows(values))
        ]

    def _list(self, key: str) -> list[Any]:
        """A key's values; whole numbers as numbers where the key or a neighbour is one, since a
        run id tells 1 from 1.0."""
        values = list(self.space[key])
        if declared.taken(key).startswith("a number") or any(isinstance(v, float) for v in values):
            return [float(value) if _is_whole(value) else value for value in values]
        return values

    def first(self, seed: int) -> list[Point]:
        """The points that are tried in any case, by a seed if they are drawn.

        Numbers are drawn log-uniformly, to three digits; every method draws alike, and none a point
        twice.
        """
        if self.draws is None:
            return [
                dict(zip(self.space, values, strict=True))
                for values in itertools.product(*map(self._list, self.space))
            ]
        generators = {key: random.Random(f"{seed} {key}") for key in self.space}
        points: list[Point] = []
        for _ in range(MOST_LOOKS * self.draws):
            point = {key: self._drawn(key, generators[key]) for key in self.space}
            points += [] if point in points else [point]
            if len(points) == self.draws:
                break
        return points

    def _drawn(self, key: str, generator: random.Random) -> Any:
        given = self.space[key]
        if isinstance(given, list):
            return generator.choice(self._list(key))
        low, high = given["low"], given["high"]
        if _draws_whole(key, given):  # so that the ends are as likely as their size says
            number = generator.uniform(math.log(low - 0.5), math.log(high + 0.5))
            return min(high, max(low, round(math.exp(number))))
        number = math.exp(generator.uniform(math.log(low), math.log(high)))
        return float(min(high, max(low, rounded(number))))

    def tried(
        self,
        seed: int,
        loss_of: Callable[[Sequence[Point]], list[float | None]],
        refused: Callable[[Point], str | None] = lambda point: None,
    ) -> Outcome:
        """All points to try as far as that is known, and the best once all have a loss.

        A best point with the smallest or largest number of a key is not known to be the best: the
        next one beyond, as far away as its neighbour on the other side (by ratio), is tried with
        it, at most `extend` times at each end. The rule is every method's; how many points it comes
        to is not. 0 ends what is above it, and so does a value that cannot be.

        Args:
            loss_of: the loss of each point, infinite where it diverged, None if not known yet.
            refused: why a point beyond the values given cannot be; None if it can.
        """
        points = self.first(seed)
        while True:
            losses = loss_of(points)
            known = [loss for loss in losses if loss is not None]
            if len(known) < len(points) or min(known) == math.inf:
                return Outcome(points)
            best = points[losses.index(min(known))]
            ends = list(self._ends(best, points, refused))
            beyond = next((p for _, p, _ in ends if p is not None), None)
            if beyond is None:
                edges = dict.fromkeys(key for key, _, why in ends if why is None)
                ended = tuple((key, why) for key, _, why in ends if why is not None)
                return Outcome(points, best, tuple(edges), ended)
            points.append(beyond)

    def _ends(
        self, best: Point, points: Sequence[Point], refused: Callable[[Point], str | None]
    ) -> Iterator[tuple[str, Point | None, str | None]]:
        """Keys of which `best` has the first or the last of the numbers tried, with what to try
        next, or why nothing is beyond; neither, where there may be but nothing more is tried."""
        for key, given in self.space.items():
            tried = [point[key] for point in points]
            if not _ordered(tried) or len(values := sorted(set(tried))) < 2:
                continue
            start = self._list(key) if isinstance(given, list) else values
            for end, neighbour, added in (
                (values[0], values[1], sum(v < min(start) for v in values)),
                (values[-1], values[-2], sum(v > max(start) for v in values)),
            ):
                if best[key] != end or (end == 0 and end == values[0]):
                    continue
                value = _next(end, neighbour)
                beyond = None if value is None else {**best, key: value}
                why = None if value is None else _none_such(key, end, value)
                if beyond is not None and why is None:
                    why = refused(beyond)
                growing = self.draws is None and added < self.extend and why is None
                yield key, beyond if growing else None, why


def _next(end: Any, neighbour: Any) -> Any:
    """The number as far beyond `end` as its neighbour is on the other side, by ratio; a whole one
    where both are. None where there is no ratio."""
    if end <= 0 or neighbour <= 0:
        return None
    number = end * end / neighbour
    if _is_whole(end):
        return max(1, round(number))
    near = rounded(number)
    return near if near != end and (near > end) == (number > end) else number


def _none_such(key: str, end: Any, value: Any) -> str | None:
    """Why a key has no value beyond `end`."""
    if value == end:
        return f"{end} is the least whole number above 0"
    problem = _bound_problem(key, value)
    return None if problem is None else f"{value:g} would be next: {problem}"


def _bound_problem(key: str, value: float) -> str | None:
    """Why a number is beyond the bounds of a key; the configuration's own checks know others."""
    name = key.rpartition(".")[2]
    if "dropout" in name and not 0 <= value < 1:
        return "a dropout is at least 0 and below 1"
    if name.endswith("_ratio") and not 0 <= value <= 1:
        return "a ratio is between 0 and 1"
    return None


def _value_problem(key: str, value: Any) -> str | None:
    """Why a key cannot be tried at a value."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    takes = declared.taken(key)
    numeric = takes.startswith(("a number", "a whole number"))
    if numeric and value is not None and not _is_number(value):
        return f"{key} takes {takes}"
    if (problem := declared.value_problem(key, value)) is not None:
        return problem
    return _bound_problem(key, value) if _is_number(value) else None


def _draws_whole(key: str, given: Any) -> bool:
    """Whether a range is of whole numbers: its ends are, and the key does not take others."""
    return all(map(_is_whole, given.values())) and not declared.taken(key).startswith("a number")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _ordered(values: Sequence[Any]) -> bool:
    """Whether values have ends: numbers do, words and switches do not."""
    return all(map(_is_number, values))


def _grows(values: Sequence[Any]) -> bool:
    """Whether a grid of numbers can grow at an end: its last two are above 0."""
    return bool(sorted(values)[-2] > 0)


def rounded(number: float) -> float:
    """Three digits: 3e-3 times 3 is 9e-3 for whoever reads it."""
    return float(f"{number:.3g}")
