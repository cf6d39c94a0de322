"""Numbers as tables print them, against decimals and the statistics of Python."""

import statistics
from decimal import Decimal

import pytest

from osora_bench.reporting import numbers


def decimals(*values):
    return [Decimal(value) for value in values]


@pytest.mark.parametrize(
    ("k", "n", "shown"),
    [(1, 3, "33.33"), (2, 3, "66.67"), (1, 800, "0.13"), (3, 800, "0.38"), (0, 7, "0.00"),
     (7, 7, "100.00"), (1, 32, "3.13"), (1, 160, "0.63")],
)  # fmt: skip
def test_a_percentage_is_rounded_half_up(k, n, shown):
    assert str(numbers.percent(k, n)) == shown


def test_a_mean_is_of_printed_values_and_rounded_half_up():
    assert str(numbers.mean(decimals("1.00", "1.01"))) == "1.01"
    assert str(numbers.mean(decimals("2.34"))) == "2.34"
    assert str(numbers.mean(decimals("1", "2", "2"))) == "1.67"
    assert numbers.mean_or_none([]) is None
    assert numbers.mean_or_none(decimals("1", "2")) == Decimal("1.50")


def test_several_values_are_a_mean_and_a_sample_deviation():
    values = decimals("10.00", "11.50", "14.25")
    spread = statistics.stdev(map(float, values))
    assert numbers.shown_values(values) == f"11.92 ± {spread:.2f}"
    assert numbers.shown_values(decimals("1", "1.25")) == "1.13 ± 0.18"
    assert numbers.shown_values(decimals("11.5")) == "11.5"
    assert numbers.shown_values([]) == ""


def test_a_count_is_whole_where_it_can_be():
    assert numbers.mean_count(decimals("80", "81", "80")) == "80.33"
    assert numbers.mean_count(decimals("80", "82")) == "81"
    assert numbers.mean_count(decimals("100")) == "100"
    assert numbers.mean_count([]) == ""


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(2e-5, "2e-5"), (1e-3, "1e-3"), (2.5e-4, "2.5e-4"), (1.0, "1e0"), (100.0, "1e2"),
     (0.05, "5e-2")],
)  # fmt: skip
def test_a_rate_is_written_as_in_the_paper(rate, shown):
    assert numbers.scientific(rate) == shown
