"""Ranks that train nearest to a number: growth of every shape against all ranks one by one."""

import pytest

from osora_bench.common.errors import UserError
from osora_bench.models import counting, matching
from osora_bench.planning.compose import compose, composer, resolve

SHAPES = {
    "linear": lambda r: 7 * r,
    "from a floor": lambda r: 3 * r + 1000,
    "no room above 64": lambda r: 10 * r + 5 if r <= 64 else None,
    "even only": lambda r: 6 * r if r % 2 == 0 else None,
    "falling": lambda r: 80_000 // r + 1,
}


@pytest.mark.parametrize("budget", [1, 7, 100, 101, 1003, 5_000, 100_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_nearest_rank_is_found(shape, budget):
    count = SHAPES[shape]
    counted = {r: n for r in range(1, matching.MOST + 1) if (n := count(r)) is not None}
    expected = min(abs(n - budget) for n in counted.values())
    rank, found = matching.nearest(count, budget, own=8)
    assert found == counted[rank]
    assert abs(found - budget) == expected


@pytest.mark.parametrize(
    ("method", "budget"),
    [("lora", 5_000), ("osora", 1_000), ("vera", 1_200), ("gralora", 30_000), ("lokr", 2_080),
     ("randlora", 1_800)],
)  # fmt: skip
def test_ranks_of_the_embedded_model(method, budget):
    """Against every rank up to 130."""
    rank, trained = matching.matched_rank(["model=toy", f"method={method}"], budget)
    by_rank = {}
    with composer():
        for r in range(1, 131):
            chosen = compose(["model=toy", f"method={method}", f"method.rank={r}"], "t")
            try:
                by_rank[r] = counting.count(resolve(chosen, "t")).trainable
            except UserError:
                continue
    assert by_rank[rank] == trained
    assert abs(trained - budget) == min(abs(n - budget) for n in by_rank.values())


@pytest.mark.parametrize("method", ["adalora", "osora_star", "tinylora"])
@pytest.mark.parametrize("given", [None, 12])
def test_a_rank_that_changes_no_count_stays_the_methods_own(method, given):
    """That of its file, or the one given beside it."""
    overrides = ["model=toy", f"method={method}"]
    overrides += [] if given is None else [f"method.rank={given}"]
    with composer():
        config = resolve(compose(overrides, "t"), "t")
    trained = counting.count(config).trainable
    rank = matching.matched_rank(overrides, trained)[0]
    assert rank == config.method.rank == (given or rank)


@pytest.mark.parametrize(("own", "rank"), [(2100, 2100), (1, 2000), (9000, 2999)])
def test_of_ranks_as_near_the_nearest_to_the_methods_own_is_taken(own, rank):
    def count(rank):
        return rank // 1000 * 100

    assert matching.nearest(count, 200, own) == (rank, 200)


@pytest.mark.parametrize(
    ("method", "budget", "told"),
    [("none", 100, "it has no rank to match 100"), ("randlora", 5, "at no rank it trains near 5"),
     ("lora", 10**9, "at no rank it trains near 1,000,000,000")],
)  # fmt: skip
def test_what_cannot_be_matched_is_told(method, budget, told):
    with pytest.raises(UserError, match=told):
        matching.matched_rank(["model=toy", f"method={method}"], budget)
