"""Rounding as the paper prints it: decimal, half up, two places."""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

import pandas as pd

CENT = Decimal("0.01")

NOT_IN_GRID = "-"


def percent(k: int, n: int) -> Decimal:
    """100 k / n, rounded half up to two decimals."""
    return (Decimal(100) * k / n).quantize(CENT, ROUND_HALF_UP)


def mean(values: Sequence[Decimal]) -> Decimal:
    """Mean of printed values, rounded half up: what the paper's Avg. column is."""
    return (sum(values, Decimal(0)) / len(values)).quantize(CENT, ROUND_HALF_UP)


def shown_values(values: Sequence[Decimal]) -> str:
    """One seed as it is; several as mean and sample standard deviation; none as nothing."""
    if not values:
        return ""
    if len(values) == 1:
        return str(values[0])
    spread = pd.Series([float(v) for v in values]).std(ddof=1)
    return f"{mean(values)} ± {Decimal(spread).quantize(CENT, ROUND_HALF_UP)}"


def mean_count(values: Sequence[Decimal]) -> str:
    """A whole number as it is; the mean of several."""
    return str(mean(values)).removesuffix(".00") if values else ""


def scientific(value: float) -> str:
    """2e-5, as the paper prints a rate."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def shown_points(points: float) -> str:
    """Points with two decimals."""
    return str(Decimal(points).quantize(CENT, ROUND_HALF_UP))


def signed(points: float) -> str:
    """A difference in points, two decimals."""
    return f"{Decimal(points).quantize(CENT, ROUND_HALF_UP):+}"


def probability(p: float) -> str:
    """Three decimals, as journals print it; what is smaller by a bound."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def mean_or_none(values: Sequence[Decimal]) -> Decimal | None:
    return mean(values) if values else None


def grouped(text: str) -> str:
    """A whole number with its thousands apart; any other text as it is."""
    return f"{int(text):,}" if text.isdigit() else text
