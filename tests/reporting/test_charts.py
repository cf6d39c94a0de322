"""Charts: told apart in grey, intervals side by side, labels that do not cover one another."""

import itertools
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from osora_bench.models import counting
from osora_bench.planning.experiments import FigureSpec
from osora_bench.reporting import figures
from osora_bench.reporting.charts import of_rows, style
from osora_bench.reporting.charts.lines import Axes, Point, lines
from tests.grids import cells_of


def points(series=4):
    return [
        Point(f"m{i}", rank, 50 + i / 100, 48, 52, {"Method": f"m{i}"})
        for i in range(series)
        for rank in (2, 4, 8)
    ]


@pytest.fixture
def ranks():
    return lines("T", Axes("rank r", "accuracy", log_x=True, ticks=[2, 4, 8]), points())


def test_intervals_of_several_methods_at_one_rank_stand_beside_each_other(ranks):
    for rank in (2, 4, 8):
        places = [v["x"] for v in ranks["data"]["values"] if rank / 1.3 < v["x"] < rank * 1.3]
        assert len(places) == len(set(places)) == 4
        gaps = [b / a for a, b in itertools.pairwise(sorted(places))]
        assert min(gaps) > 1.04
        assert max(places) / min(places) < 2**0.5  # nearer to their rank than to the next
    assert ranks["layer"][-1]["encoding"]["x"]["axis"]["values"] == [2, 4, 8]


def test_lines_are_labelled_where_they_end_and_labels_keep_apart(ranks):
    labels = ranks["layer"][-1]["data"]["values"]
    assert {label["series"] for label in labels} == {"m0", "m1", "m2", "m3"}
    assert {label["x"] for label in labels} == {max(v["x"] for v in ranks["data"]["values"])}
    low, high = ranks["layer"][-1]["encoding"]["y"]["scale"]["domain"]
    heights = sorted(label["y"] for label in labels)
    pixels = [(b - a) / (high - low) * style.HEIGHT for a, b in itertools.pairwise(heights)]
    assert min(pixels) > style.LINE - 0.01


def test_what_is_moved_apart_moves_no_further_than_it_must():
    chance = random.Random(0)
    for _ in range(200):
        places = [chance.uniform(0, 6) for _ in range(chance.randrange(1, 7))]
        moved = style.apart(places, 1.0)
        order = sorted(range(len(places)), key=lambda i: places[i])
        assert all(moved[b] - moved[a] > 1 - 1e-9 for a, b in itertools.pairwise(order))
        cost = sum((a - b) ** 2 for a, b in zip(places, moved, strict=True))
        for _ in range(200):  # no other arrangement that keeps apart is nearer
            other = sorted(chance.gauss(place, 0.8) for place in moved)
            if all(b - a >= 1 for a, b in itertools.pairwise(other)):
                tried = dict(zip(order, other, strict=True))
                assert sum((places[i] - tried[i]) ** 2 for i in order) >= cost - 1e-9


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [style.LIGHT, style.DARK])
def test_all_that_is_drawn_stands_out_from_the_paper(colours):
    for colour in [*colours["series"], colours["ink"], colours["muted"]]:
        assert contrast(colour, colours["paper"]) > 4.5, colour


def test_series_differ_without_their_colours():
    names = [str(i) for i in range(style.MOST_SERIES)]
    dashes, shapes = style.dash_of(names)["scale"]["range"], style.shape_of(names)["scale"]["range"]
    looks = {(str(dash), shape) for dash, shape in zip(dashes, shapes, strict=True)}
    assert len(looks) == style.MOST_SERIES


def test_a_chart_is_drawn_in_three_forms_and_the_same_each_time(ranks):
    first, second = figures.drawn(ranks), figures.drawn(ranks)
    assert first == second
    assert first[".svg"].startswith(b"<svg")
    assert first[".png"].startswith(b"\x89PNG")
    assert first[".pdf"].startswith(b"%PDF")
    assert all(name in first[".svg"].decode() for name in ("m0", "rank r", "accuracy"))


def test_nothing_yet_is_said_in_the_chart():
    empty = lines("T", Axes("x", "y"), [])
    assert style.EMPTY in figures.drawn(empty)[".svg"].decode()


def test_counted_parameters_of_two_models_have_a_line_each(monkeypatch):
    cells = [c for c in cells_of("demo") if c.config.method.name == "lora"][:1]
    both = []
    for label, rank in (("One", 4), ("One", 8), ("Two", 4), ("Two", 8)):
        config = cells[0].config
        config = replace(
            config,
            model=replace(config.model, label=label),
            method=replace(config.method, rank=rank),
        )
        both.append(replace(cells[0], config=config))
    counts = {"One": 10, "Two": 30}
    monkeypatch.setattr(
        counting, "count",
        lambda config: SimpleNamespace(trainable=counts[config.model.label] * config.method.rank),
    )  # fmt: skip
    spec = of_rows.parameters(FigureSpec("parameters", "T"), both)
    assert {(value["series"], value["y"]) for value in spec["data"]["values"]} == {
        ("One, LoRA: 10 more for each rank", 40), ("One, LoRA: 10 more for each rank", 80),
        ("Two, LoRA: 30 more for each rank", 120), ("Two, LoRA: 30 more for each rank", 240),
    }  # fmt: skip
