"""Which settings a method's choice is among: a grid that grows where it ends, or random draws."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from osora_bench.common.errors import UserError
from osora_bench.planning import bounds, declared
from osora_bench.planning.bounds import Bounds, is_whole, rounded

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
        ended: keys of which the best has the last value that there is, each with why.
        refused: of keys among `edges`, each with why, the next value, which cannot be; another one
            beyond the best may.
    """

    points: list[Point]
    best: Point | None = None
    edges: tuple[str, ...] = ()
    ended: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, Any, str], ...] = ()


@dataclass(frozen=True)
class _End:
    """A key of which the best point has the first or the last number tried: what to try next, or
    why that cannot be, or why there is no more; none of them where no more is tried."""

    key: str
    beyond: Point | None = None
    refused: str | None = None
    ended: str | None = None


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
            if count is not None and (not is_whole(count) or count < least):
                raise UserError(f"{where}: {name}={count}: a whole number of at least {least}")
        if not self.space:
            raise UserError(f"{where}: tune names no settings")
        for key, values in self.space.items():
            if (problem := _key_problem(key)) is not None:
                raise UserError(f"{where}: {problem}")
            if isinstance(values, list):
                if not values or len(values) != len({str(value) for value in self._list(key)}):
                    raise UserError(f"{where}: {key}: {values} is no list of different values")
            else:
                self._check_range(where, key, values)
            for value in values if isinstance(values, list) else values.values():
                if (problem := _value_problem(key, value)) is not None:
                    raise UserError(f"{where}: {key}={value}: {problem}")
        if self.draws is not None:
            self._check_draws(where, self.draws)

    def _check_draws(self, where: str, draws: int) -> None:
        """Raise UserError if there are not so many different points."""
        if draws > (size := self._size()):
            listed = all(isinstance(values, list) for values in self.space.values())
            hint = "without draws all of them are tried" if listed else f"draws at most {size:g}"
            raise UserError(
                f"{where}: draws={draws}, and there are {size:g} different settings to draw; {hint}"
            )
        try:
            self.first(0)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

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
            return [float(value) if is_whole(value) else value for value in values]
        return values

    def first(self, seed: int) -> list[Point]:
        """The points that are tried in any case, by a seed if they are drawn.

        Numbers are drawn log-uniformly, to three digits; every method draws alike, and none a point
        twice.

        Raises:
            UserError: of so many looks too few gave a new point.
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
                return points
        raise UserError(
            f"draws={self.draws}, and only {len(points)} different settings were found: numbers "
            f"are drawn to three digits; widen a range, or draw at most {len(points)}"
        )

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
        bounds_of: Callable[[str, Point], Bounds] = lambda key, point: bounds.of_key(key),
    ) -> Outcome:
        """All points to try as far as that is known, and the best once all have a loss.

        A best point with the smallest or largest number of a key is not known to be the best: the
        next one beyond, as far away as its neighbour on the other side (by ratio), is tried with
        it, at most `extend` times at each end, or one nearer that is within the key's bounds. The
        rule is every method's; how many points it comes to is not. 0 ends what is above it.

        Args:
            loss_of: the loss of each point, infinite where it diverged, None if not known yet.
            refused: why a point beyond the values given cannot be; None if it can.
            bounds_of: the numbers that a key may have where the others are a point's.
        """
        points = self.first(seed)
        while True:
            losses = loss_of(points)
            known = [loss for loss in losses if loss is not None]
            if len(known) < len(points) or min(known) == math.inf:
                return Outcome(points)
            best = points[losses.index(min(known))]
            ends = list(self._ends(best, points, refused, bounds_of))
            new = [end.beyond for end in ends if end.beyond is not None and end.refused is None]
            if not new:
                return _outcome(points, best, ends)
            points.append(new[0])

    def _ends(
        self,
        best: Point,
        points: Sequence[Point],
        refused: Callable[[Point], str | None],
        bounds_of: Callable[[str, Point], Bounds],
    ) -> Iterator[_End]:
        """Keys of which `best` has the first or the last of the numbers tried."""
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
                allowed = bounds_of(key, best)
                if (why := allowed.last(end, up=end > neighbour)) is not None:
                    yield _End(key, ended=why)
                    continue
                value = allowed.next(end, neighbour)
                if value is None or self.draws is not None or added >= self.extend:
                    yield _End(key)
                    continue
                beyond = {**best, key: value}
                yield _End(key, beyond, refused(beyond))


def _outcome(points: list[Point], best: Point, ends: Sequence[_End]) -> Outcome:
    """What is known once there is no more to try."""
    return Outcome(
        points,
        best,
        edges=tuple(dict.fromkeys(end.key for end in ends if end.ended is None)),
        ended=tuple((end.key, end.ended) for end in ends if end.ended is not None),
        refused=tuple(
            (end.key, end.beyond[end.key], end.refused)
            for end in ends
            if end.beyond is not None and end.refused is not None
        ),
    )


def _key_problem(key: str) -> str | None:
    """Why a key cannot be tuned."""
    if not key.startswith(TUNABLE):
        return f"{key} cannot be tuned, only trainer.* and method.* can"
    if (problem := declared.key_problem(key)) is not None:
        return problem
    if not declared.counts(key):
        return f"{key} cannot be tuned: it changes no numbers, only speed or names"
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
    return bounds.problem(key, value) if _is_number(value) else None


def _draws_whole(key: str, given: Any) -> bool:
    """Whether a range is of whole numbers: its ends are, and the key does not take others."""
    return all(map(is_whole, given.values())) and not declared.taken(key).startswith("a number")


def _is_number(value: Any) -> bool:
    return is_whole(value) or isinstance(value, float)


def _ordered(values: Sequence[Any]) -> bool:
    """Whether values have ends: numbers do, words and switches do not."""
    return all(map(_is_number, values))


def _grows(values: Sequence[Any]) -> bool:
    """Whether a grid of numbers can grow at an end: its last two are above 0."""
    return bool(sorted(values)[-2] > 0)
