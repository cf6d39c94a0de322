"""Grids that grow where they end, random draws: known curves of losses, and every refusal."""

import math
import statistics

import pytest

from osora_bench.common.errors import UserError
from osora_bench.planning.search import RATE, Search


def by(curve):
    """Losses of points by a function of their values."""
    return lambda points: [curve(**{k.rpartition(".")[2]: v for k, v in p.items()}) for p in points]


def valley(best):
    return by(lambda learning_rate: abs(math.log10(learning_rate) - math.log10(best)))


def rates(points):
    return [point[RATE] for point in points]


@pytest.mark.parametrize(
    ("best", "tried", "chosen"),
    [
        (1e-3, [], 1e-3),  # inside
        (3e-4, [9e-5], 3e-4),  # at the end: one more shows that it is the best
        (1e-4, [9e-5, 2.7e-5], 9e-5),
        (1e-9, [9e-5, 2.7e-5], 2.7e-5),  # at most twice
        (1e-2, [1.11e-2, 3.7e-2], 1.11e-2),
    ],
)
def test_a_choice_at_the_end_of_a_grid_is_extended(best, tried, chosen):
    grid = Search({RATE: [3e-4, 1e-3, 3.33e-3]})
    points, found = grid.tried(0, valley(best))
    assert rates(points) == pytest.approx([3e-4, 1e-3, 3.33e-3, *tried], rel=0.01)
    assert found[RATE] == pytest.approx(chosen, rel=0.01)


def test_it_is_extended_on_both_sides_if_losses_say_so_and_not_beyond():
    losses = {1e-3: 3.0, 1e-2: 2.0, 0.1: 1.0, 1.0: 0.9, 10.0: 0.8}
    points, best = Search({RATE: [1e-3, 1e-2]}).tried(
        0, lambda points: [losses[p[RATE]] for p in points]
    )
    assert (rates(points), best[RATE]) == ([1e-3, 1e-2, 0.1, 1.0], 1.0)


def test_what_diverges_ends_the_way():
    grid = Search({RATE: [1e-3, 1e-2]})
    falling = by(lambda learning_rate: math.inf if learning_rate > 0.05 else 1 / learning_rate)
    points, best = grid.tried(0, falling)
    assert (rates(points), best[RATE]) == ([1e-3, 1e-2, 0.1], 1e-2)
    points, best = grid.tried(0, lambda points: [math.inf] * len(points))
    assert (len(points), best) == (2, None)


def test_nothing_is_chosen_before_all_losses_are_known():
    known = {1e-3: 2.0, 1e-2: 1.0}
    points, best = Search({RATE: [1e-3, 1e-2]}).tried(
        0, lambda points: [known.get(p[RATE]) for p in points]
    )
    assert (rates(points), best) == ([1e-3, 1e-2, 0.1], None)


def test_no_extension_if_none_is_wanted_or_values_have_no_ratio():
    assert Search({RATE: [1e-3, 1e-2]}, extend=0).tried(0, valley(1.0))[1][RATE] == 1e-2
    ranks = Search({"method.rank": [4, 8], "trainer.schedule": ["linear", "cosine"]})
    points, best = ranks.tried(0, by(lambda rank, schedule: -rank - (schedule == "cosine")))
    assert len(points) == 4
    assert best == {"method.rank": 8, "trainer.schedule": "cosine"}


def test_of_several_keys_all_combinations_are_tried_and_each_end_is_extended():
    space = {RATE: [1e-3, 1e-2], "method.peft.lora_dropout": [0.1, 0.2]}

    def loss(learning_rate, lora_dropout):
        return abs(math.log10(learning_rate) + 1) + abs(lora_dropout - 0.1)

    points, best = Search(space).tried(0, by(loss))
    assert points[4:] == [
        {RATE: 0.1, "method.peft.lora_dropout": 0.1},
        {RATE: 1.0, "method.peft.lora_dropout": 0.1},
        {RATE: 0.1, "method.peft.lora_dropout": 0.05},
    ]
    assert best == {RATE: 0.1, "method.peft.lora_dropout": 0.1}


def test_draws_are_log_uniform_the_same_for_all_and_kept_in_their_range():
    space = {RATE: {"low": 1e-5, "high": 1e-1}, "trainer.batch_size": {"low": 8, "high": 64}}
    points = Search(space, draws=400).first(3)
    assert points == Search(dict(reversed(space.items())), draws=400).first(3)
    assert points != Search(space, draws=400).first(4)
    logs = [math.log10(rate) for rate in rates(points)]
    assert all(-5 <= value <= -1 for value in logs)
    assert statistics.fmean(logs) == pytest.approx(-3, abs=0.2)
    assert statistics.pstdev(logs) == pytest.approx(4 / 12**0.5, rel=0.1)
    assert {type(p["trainer.batch_size"]) for p in points} == {int}
    assert {min(p["trainer.batch_size"] for p in points)} <= {8, 9}
    one, best = Search(space, draws=3).tried(0, by(lambda learning_rate, batch_size: learning_rate))
    assert best[RATE] == min(rates(one))
    assert len(one) == 3


@pytest.mark.parametrize(
    ("search", "told"),
    [
        (Search({"model.dtype": ["float32"]}), "model.dtype cannot be tuned"),
        (Search({RATE: []}), "no list of different values"),
        (Search({RATE: [1e-3, 1e-3]}), "no list of different values"),
        (Search({RATE: {"low": 1e-3, "high": 1e-1}}), "say how often"),
        (Search({RATE: {"low": 1e-3}}, draws=2), "neither a list nor"),
        (Search({RATE: {"low": 1.0, "high": 0.1}}, draws=2), "0 < low < high"),
        (Search({RATE: 3}, draws=2), "neither a list nor"),
        (Search({}), "names no settings"),
        (Search({RATE: [1e-3]}, draws=0), "names no settings"),
    ],
)
def test_what_is_no_search_is_told(search, told):
    with pytest.raises(UserError, match=f"experiments/x.yaml: .*{told}"):
        search.check("experiments/x.yaml")
