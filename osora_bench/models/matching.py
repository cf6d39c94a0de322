"""The rank at which a method trains nearest to a given number of parameters."""

from collections.abc import Callable, Sequence

from osora_bench.common.errors import UserError
from osora_bench.models import counting
from osora_bench.planning.compose import compose, composer, vary
from osora_bench.planning.config import Config

MOST = 1 << 14
FAR = 0.5
"""Beyond this share of the budget nothing is matched."""
NEIGHBOURS = 4
"""Ranks on each side that are looked at one by one."""


def matched_rank(overrides: Sequence[str], budget: int) -> tuple[int, int]:
    """A rank and how many numbers are trained at it; of several as near, the method's own (that of
    its file or of `overrides`) or the one nearest to it.

    Args:
        overrides: of the cell that is to have the rank: model, method and all else.

    Raises:
        UserError: the method has no rank, cannot be counted on the model, or trains more than half
            the budget too many or too few at every rank.
    """
    chosen = dict(override.partition("=")[::2] for override in overrides)
    where = f"{chosen.get('method')} on {chosen.get('model')}"

    def count(rank: int) -> int | None:
        """None where the method or the model has no such rank."""
        try:
            return counting.count(with_rank(rank)).trainable
        except UserError:
            return None

    def with_rank(rank: int) -> Config:
        (config,) = vary(composed.copy(), [{"method.rank": rank}], where)
        return config

    with composer():
        composed = compose(overrides, where)
        (own,) = vary(composed.copy(), [{}], where)
        if own.method.rank is None:
            raise UserError(f"{where}: it has no rank to match {budget:,} parameters with")
        rank, found = nearest(count, budget, own.method.rank)
        if found == 0:
            counting.count(with_rank(own.method.rank))  # says why
        if abs(found / budget - 1) > FAR:
            raise UserError(
                f"{where}: at no rank it trains near {budget:,} numbers, the nearest are {found:,} "
                f"at rank {rank}"
            )
    return rank, found


def nearest(count: Callable[[int], int | None], budget: int, own: int) -> tuple[int, int]:
    """The rank whose count is nearest: powers of two show between which of them it lies, halving
    finds it. Counts may grow or fall with the rank, and some ranks may be missing.

    Args:
        count: of a rank; None where there is no such one.
        own: the method's own rank. Of ranks as near to the budget the nearest to it is taken: some
            methods train as many numbers at any rank.

    Returns:
        (1, 0) if no rank was counted.
    """
    known: dict[int, int] = {}

    def there(rank: int) -> bool:
        if rank not in known and (found := count(rank)) is not None:
            known[rank] = found
        return rank in known

    for power in range(MOST.bit_length()):
        if not there(1 << power) and known:
            break  # there is no room for more
    if not known:
        return 1, 0

    def best() -> int:
        return min(known, key=lambda rank: (abs(known[rank] - budget), abs(rank - own), rank))

    def halve(low: int, high: int) -> None:
        while high - low > NEIGHBOURS:
            half = (low + high) // 2
            middle = next((rank for rank in range(half, high) if there(rank)), None)
            if middle is None:
                high = half
                continue
            grows = known[middle] >= known[low]
            low, high = (middle, high) if (known[middle] < budget) == grows else (low, middle)

    def towards(level: int, other: int) -> None:
        """Count the rank that trains as many as `level` and is nearest to `other`."""
        count = known[level]
        while abs(other - level) > 1:
            half = (level + other) // 2
            level, other = (half, other) if there(half) and known[half] == count else (level, half)

    centre = best()
    halve(centre // 2, centre)
    halve(centre, min(2 * centre, MOST))
    for rank in range(max(1, best() - NEIGHBOURS), min(MOST, best() + NEIGHBOURS) + 1):
        there(rank)
    there(own)
    towards(best(), own)
    return best(), known[best()]
