"""The rank at which a method trains nearest to a given number of parameters."""

from collections.abc import Callable

from osora_bench.common.errors import UserError
from osora_bench.models import counting
from osora_bench.planning.compose import compose, composer, vary

MOST = 1 << 16


def matched_rank(model: str, method: str, budget: int) -> tuple[int, int]:
    """A rank and how many numbers are trained at it; of two as near, the lower.

    Raises:
        UserError: the method has no rank, or cannot be counted on the model.
    """
    where = f"model={model} method={method}"

    def count(rank: int) -> int:
        """Raises UserError where the model has no room for the rank."""
        (config,) = vary(composed.copy(), [{"method.rank": rank}], where)
        return counting.count(config).trainable

    with composer():
        composed = compose([f"model={model}", f"method={method}"], where)
        (own,) = vary(composed.copy(), [{}], where)
        if own.method.rank is None:
            raise UserError(
                f"{where}: it has no rank that could be matched with {budget} parameters"
            )
        return _nearest(count, budget)


def _nearest(count: Callable[[int], int], budget: int) -> tuple[int, int]:
    """By halving: more is trained at a higher rank."""
    known = {1: count(1)}

    def below(rank: int) -> bool:
        """Whether a rank is there and trains less."""
        try:
            known[rank] = count(rank)
        except UserError:
            return False
        return known[rank] < budget

    low, high = 1, 2
    while high < MOST and known[1] < budget and below(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if below(middle) else (low, middle)
    rank = min(known, key=lambda r: (abs(known[r] - budget), r))
    return rank, known[rank]
