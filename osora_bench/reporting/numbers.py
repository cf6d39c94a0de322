"""Rounding as the paper prints it: decimal, half up, two places."""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

CENT = Decimal("0.01")


def percent(k: int, n: int) -> Decimal:
    """100 k / n, rounded half up to two decimals."""
    return (Decimal(100) * k / n).quantize(CENT, ROUND_HALF_UP)


def mean(values: Sequence[Decimal]) -> Decimal:
    """Mean of printed values, rounded half up: what the paper's Avg. column is."""
    return (sum(values, Decimal(0)) / len(values)).quantize(CENT, ROUND_HALF_UP)
