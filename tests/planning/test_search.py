"""Grids that grow where they end, random draws: known curves of losses, and every refusal."""

import math
import statistics
from collections import Counter

import pytest

from osora_bench.common.errors import UserError
from osora_bench.planning.bounds import Bounds
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
    found = grid.tried(0, valley(best))
    assert rates(found.points) == pytest.approx([3e-4, 1e-3, 3.33e-3, *tried], rel=0.01)
    assert found.best[RATE] == pytest.approx(chosen, rel=0.01)
    assert found.edges == ((RATE,) if best == 1e-9 else ())


def test_it_is_extended_on_both_sides_if_losses_say_so_and_not_beyond():
    losses = {1e-3: 3.0, 1e-2: 2.0, 0.1: 1.0, 1.0: 0.9, 10.0: 0.8}
    found = Search({RATE: [1e-3, 1e-2]}).tried(0, lambda points: [losses[p[RATE]] for p in points])
    assert (rates(found.points), found.best[RATE]) == ([1e-3, 1e-2, 0.1, 1.0], 1.0)
    assert found.edges == (RATE,)


def test_what_diverges_ends_the_way():
    grid = Search({RATE: [1e-3, 1e-2]})
    falling = by(lambda learning_rate: math.inf if learning_rate > 0.05 else 1 / learning_rate)
    found = grid.tried(0, falling)
    assert (rates(found.points), found.best[RATE]) == ([1e-3, 1e-2, 0.1], 1e-2)
    assert found.edges == ()
    found = grid.tried(0, lambda points: [math.inf] * len(points))
    assert (len(found.points), found.best) == (2, None)


def test_nothing_is_chosen_before_all_losses_are_known():
    known = {1e-3: 2.0, 1e-2: 1.0}
    found = Search({RATE: [1e-3, 1e-2]}).tried(
        0, lambda points: [known.get(p[RATE]) for p in points]
    )
    assert (rates(found.points), found.best) == ([1e-3, 1e-2, 0.1], None)


def test_without_extensions_a_choice_at_the_end_is_marked():
    found = Search({RATE: [1e-3, 1e-2]}, extend=0).tried(0, valley(1.0))
    assert (found.best[RATE], len(found.points), found.edges) == (1e-2, 2, (RATE,))


def test_words_and_switches_have_no_ends():
    space = {"trainer.schedule": ["linear", "cosine"], "method.peft.use_dora": [True, False]}
    search = Search(space)
    found = search.tried(0, by(lambda schedule, use_dora: use_dora + (schedule == "linear")))
    assert len(found.points) == 4
    assert found.best == {"trainer.schedule": "cosine", "method.peft.use_dora": False}
    assert (found.edges, found.ended) == ((), ())
    assert search.fixed == list(space)


@pytest.mark.parametrize(
    ("key", "given", "best", "tried", "edges"),
    [
        ("method.rank", [4, 8], 100, [16, 32], ("method.rank",)),
        ("method.rank", [4, 8], 1, [2, 1], ()),  # no whole number lies below 1
        ("method.rank", [4, 8], 8, [16], ()),
        ("trainer.epochs", [1, 2, 3], 3, [4.5], ()),
        ("trainer.batch_size", [32, 48], 1000, [72, 108], ("trainer.batch_size",)),
        ("method.peft.r", [1, 9], 0, [], ()),
        ("method.peft.lora_dropout", [0, 0.05, 0.1], 0.0, [], ()),  # 0 is a bound
        ("method.peft.lora_dropout", [0, 0.05, 0.1], 0.3, [0.2, 0.4], ()),
        # 1.2 and 2.5 would be none: half the way to 1, which is not reached
        ("method.peft.lora_dropout", [0, 0.3, 0.6], 1.0, [0.8, 0.9], ("method.peft.lora_dropout",)),
        ("method.peft.lora_dropout", [0.1, 0.5], 0.7, [0.75, 0.875], ()),
        ("trainer.warmup_ratio", [0.03, 0.3], 0.5, [0.65, 0.825], ()),
        ("trainer.warmup_ratio", [0.2, 0.3], 0.5, [0.45, 0.675], ()),
        ("method.optimizer.loraplus_lr_ratio", [4.0, 16.0], 64, [64.0, 256.0], ()),
        ("trainer.warmup_ratio", [0.0, 0.1], 0.1, [], ("trainer.warmup_ratio",)),  # no ratio
        ("trainer.weight_decay", [0.1, 0.01, 0.0], 1.0, [1.0, 10.0], ()),
    ],
)
def test_whole_numbers_and_lists_with_0_grow_where_they_can(key, given, best, tried, edges):
    found = Search({key: given}).tried(0, lambda points: [abs(p[key] - best) for p in points])
    assert [p[key] for p in found.points[len(given) :]] == pytest.approx(tried)
    whole = key in ("method.rank", "trainer.batch_size", "method.peft.r")
    assert {type(p[key]) for p in found.points} == {int if whole else float}
    assert found.edges == edges


def test_a_refused_step_is_told_and_the_choice_stays_at_an_end():
    def refused(point):
        return "the largest rank is 8" if point["method.rank"] > 8 else None

    search = Search({"method.rank": [4, 8]})
    found = search.tried(0, lambda points: [-p["method.rank"] for p in points], refused)
    assert [p["method.rank"] for p in found.points] == [4, 8]
    assert (found.edges, found.ended) == (("method.rank",), ())
    assert found.refused == (("method.rank", 16, "the largest rank is 8"),)
    found = Search({"method.rank": [4, 8]}, extend=0).tried(
        0, lambda points: [-p["method.rank"] for p in points], refused
    )
    assert (found.edges, found.refused) == (("method.rank",), ())  # it was not the next to try


@pytest.mark.parametrize(
    ("bounds", "given", "downwards", "tried", "last"),
    [
        (Bounds(64, why="at most 64"), [8, 48], False, [64], True),
        (Bounds(64, why="at most 64"), [8, 64], False, [], True),
        (Bounds(64, why="at most 64"), [2, 4], False, [8, 16], False),
        (Bounds(step=4, why="fours"), [8, 12], False, [16, 20], False),
        (Bounds(step=4, why="fours"), [24, 28], True, [20, 16], False),
        (Bounds(step=8, why="eights"), [8, 16], True, [], True),
        (Bounds(step=8, why="eights"), [24, 16], True, [8], True),
    ],
)
def test_a_step_beyond_a_bound_becomes_one_within_it(bounds, given, downwards, tried, last):
    found = Search({"method.rank": given}).tried(
        0,
        lambda points: [p["method.rank"] * (1 if downwards else -1) for p in points],
        bounds_of=lambda key, point: bounds,
    )
    assert [p["method.rank"] for p in found.points[len(given) :]] == tried
    assert found.ended == ((("method.rank", bounds.why),) if last else ())
    assert found.edges == (() if last else ("method.rank",))


def test_a_whole_step_is_the_nearest_that_there_is_on_its_way():
    """Against all numbers that are allowed, for every pair of neighbours."""
    for step, high in ((1, math.inf), (1, 13), (3, math.inf), (4, 30)):
        bounds = Bounds(high, step=step, why="so")
        allowed = range(step, 1000 if high == math.inf else high + 1, step)
        for end in allowed[:12]:
            for neighbour in (n for n in allowed[:12] if n != end):
                beyond = [n for n in allowed if (n > end) == (end > neighbour) and n != end]
                assert (bounds.last(end, up=end > neighbour) is None) == bool(beyond)
                if not beyond:
                    continue
                aim = round(end * end / neighbour)
                on_the_way = [n for n in beyond if abs(n - end) <= abs(aim - end)]
                nearest = min(
                    on_the_way or [min(beyond, key=lambda n: abs(n - end))],
                    key=lambda n: abs(n - aim),
                )
                assert bounds.next(end, neighbour) == nearest


def test_of_equal_losses_the_first_tried_is_taken():
    found = Search({RATE: [1e-2, 1e-3, 1e-4]}).tried(0, lambda points: [1.0] * len(points))
    assert found.best == {RATE: 1e-2}
    assert rates(found.points[3:]) == [0.1]


def test_of_several_keys_all_combinations_are_tried_and_each_end_is_extended():
    space = {RATE: [1e-3, 1e-2], "method.peft.lora_dropout": [0.1, 0.2]}

    def loss(learning_rate, lora_dropout):
        return abs(math.log10(learning_rate) + 1) + abs(lora_dropout - 0.1)

    found = Search(space).tried(0, by(loss))
    assert found.points[4:] == [
        {RATE: 0.1, "method.peft.lora_dropout": 0.1},
        {RATE: 1.0, "method.peft.lora_dropout": 0.1},
        {RATE: 0.1, "method.peft.lora_dropout": 0.05},
    ]
    assert found.best == {RATE: 0.1, "method.peft.lora_dropout": 0.1}


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
    found = Search(space, draws=3).tried(
        0, by(lambda learning_rate, batch_size: learning_rate + 0 * batch_size)
    )
    assert found.best[RATE] == min(rates(found.points))
    assert len(found.points) == 3
    assert RATE in found.edges  # of what was drawn


def test_whole_numbers_are_drawn_log_uniformly_ends_included_and_no_point_twice():
    key = "trainer.batch_size"
    counts = Counter(
        Search({key: {"low": 1, "high": 4}}, draws=1).first(seed)[0][key] for seed in range(4000)
    )
    total = math.log(4.5 / 0.5)
    for number in range(1, 5):
        share = math.log((number + 0.5) / (number - 0.5)) / total
        assert counts[number] / 4000 == pytest.approx(share, abs=0.03)
    points = Search({key: {"low": 1, "high": 4}}, draws=4).first(0)
    assert sorted(p[key] for p in points) == [1, 2, 3, 4]


def test_a_drawn_number_stays_within_its_range_after_rounding():
    (point,) = Search({RATE: {"low": 1.2341e-3, "high": 1.2342e-3}}, draws=1).first(0)
    assert 1.2341e-3 <= point[RATE] <= 1.2342e-3


def test_as_many_draws_as_a_range_has_are_all_of_it():
    search = Search({RATE: {"low": 1e-3, "high": 1.1e-3}}, draws=11)
    search.check("experiments/x.yaml")
    expected = [round(1e-3 + 1e-5 * step, 5) for step in range(11)]
    for seed in range(20):
        assert sorted(rates(search.first(seed))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("search", "told"),
    [
        (Search({"model.dtype": ["float32"]}), "model.dtype cannot be tuned"),
        (
            Search({"trainer.micro_batch_size": [1, 2]}),
            "micro_batch_size cannot be tuned: it changes no numbers",
        ),
        (Search({"trainer.processes": [1, 2]}), "processes cannot be tuned: it changes no numbers"),
        (Search({"method.label": ["A", "B"]}), "label cannot be tuned: it changes no numbers"),
        (Search({RATE: []}), "no list of different values"),
        (Search({RATE: [1e-3, 1e-3]}), "no list of different values"),
        (Search({RATE: {"low": 1e-3, "high": 1e-1}}), "say how often"),
        (Search({RATE: {"low": 1e-3}}, draws=2), "neither a list nor"),
        (Search({RATE: {"low": 1.0, "high": 0.1}}, draws=2), "0 < low < high"),
        (Search({RATE: 3}, draws=2), "neither a list nor"),
        (Search({}), "names no settings"),
        (Search({RATE: [1e-3]}, draws=0), "draws=0: a whole number of at least 1"),
        (Search({RATE: [1e-3]}, draws=1.5), "draws=1.5: a whole number of at least 1"),
        (Search({RATE: [1e-3]}, extend=-1), "extend=-1: a whole number of at least 0"),
        (Search({RATE: [1e-3]}, extend=0.5), "extend=0.5: a whole number of at least 0"),
        (Search({RATE: {"low": "a", "high": 1}}, draws=2), "low and high are numbers"),
        (Search({RATE: {"low": None, "high": 1}}, draws=2), "low and high are numbers"),
        (Search({RATE: {"low": 1.0, "high": math.inf}}, draws=2), "0 < low < high"),
        (
            Search({"trainer.batch_size": {"low": 8.0, "high": 64}}, draws=2),
            "trainer.batch_size=8.0: trainer.batch_size takes a whole number",
        ),
        (Search({"trainer.batch_size": [8, 16.5]}), "trainer.batch_size takes a whole number"),
        (Search({"trainer.batch_size": ["8"]}), "trainer.batch_size takes a whole number"),
        (Search({"trainer.batch_size": [True]}), "trainer.batch_size takes a whole number"),
        (Search({RATE: ["fast"]}), "trainer.learning_rate takes a number"),
        (Search({RATE: [math.nan]}), "not a finite number"),
        (Search({RATE: [1, 1.0]}), "no list of different values"),
        (Search({"trainer.learning_rat": [1.0]}), "unknown key"),
        (Search({"method.peft.lora_dropout": [0.5, 1.0]}), "at least 0 and below 1"),
        (Search({"trainer.warmup_ratio": [0.1, 1.0]}), "at least 0 and below 1"),
        (Search({RATE: [1e-3, 1e-2]}, draws=8), "2 different settings to draw; without draws all"),
        (
            Search({"trainer.batch_size": {"low": 1, "high": 3}}, draws=5),
            "3 different settings to draw; draws at most 3",
        ),
        (
            Search({RATE: {"low": 1e-3, "high": 1.1e-3}}, draws=16),
            "draws=16, and only 11 different settings were found: .* draw at most 11",
        ),
    ],
)
def test_what_is_no_search_is_told(search, told):
    with pytest.raises(UserError, match=f"experiments/x.yaml: .*{told}"):
        search.check("experiments/x.yaml")
