"""Ranks that train nearest to a number: known growth, and the toy's counts one by one."""

import pytest

from osora_bench.common.errors import UserError
from osora_bench.models import counting, matching
from osora_bench.planning.compose import compose, composer, resolve


@pytest.mark.parametrize("budget", [1, 7, 100, 101, 5_000, 10**9])
@pytest.mark.parametrize(("slope", "start", "most"), [(7, 0, 10**9), (3, 1000, 10**9), (10, 5, 64)])
def test_the_nearest_rank_is_found_by_halving(budget, slope, start, most):
    def count(rank):
        if rank > most:
            raise UserError("no room")
        return slope * rank + start

    candidates = range(1, min(most, matching.MOST - 1) + 1)
    expected = min(candidates, key=lambda rank: (abs(count(rank) - budget), rank))
    assert matching._nearest(count, budget) == (expected, count(expected))


@pytest.mark.parametrize(("method", "budget"), [("lora", 5_000), ("osora", 1_000), ("vera", 1)])
def test_ranks_of_the_embedded_model(method, budget):
    rank, trained = matching.matched_rank("toy", method, budget)
    with composer():
        chosen = compose(["model=toy", f"method={method}", f"method.rank={rank}"], "t")
        assert counting.count(resolve(chosen, "t")).trainable == trained
    other = matching.matched_rank("toy", method, trained)
    assert other == (rank, trained)


def test_a_method_without_ranks_is_told():
    with pytest.raises(UserError, match="method=none: it has no rank"):
        matching.matched_rank("toy", "none", 100)
