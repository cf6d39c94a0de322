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
from osora_bench.reporting.charts import points as points_module
from osora_bench.reporting.charts.lines import Axes, Point, lines
from osora_bench.reporting.charts.points import Named
from osora_bench.reporting.statistics import Estimate
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
    (right,) = {label["x"] for label in labels}
    assert right == ranks["layer"][-1]["encoding"]["x"]["scale"]["domain"][1]
    assert right > max(v["x"] for v in ranks["data"]["values"])
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
    for of_one in (1, 3, 12):  # series of one method
        series = {str(i): f"m{i // of_one}" for i in range(style.MOST_SERIES)}
        worn = style.looks(series, ["other", "m0"]).values()
        assert len({(look.dash, look.shape) for look in worn}) == style.MOST_SERIES
        assert len({look.tone for look in worn}) == min(6, style.MOST_SERIES // of_one)


def worn(spec, channel, series):
    """The look of a series in a chart."""
    scales = [
        layer["encoding"][channel]["scale"]
        for layer in spec["layer"]
        if layer.get("encoding", {}).get(channel, {}).get("field") == "series"
    ]
    assert all(scale == scales[0] for scale in scales)
    return scales[0]["range"][scales[0]["domain"].index(series)]


def test_a_method_looks_alike_in_all_charts_for_the_same_methods():
    one = lines("A", Axes("x", "y"), [Point("LoRA", 1, 1), Point("OSoRA", 1, 2)])
    two = lines(
        "B",
        Axes("x", "y"),
        [Point(f"OSoRA r={r}", 1, r, method="OSoRA") for r in (4, 8)] + [Point("VeRA", 1, 2)],
    )
    one, two = (style.dressed_for(spec, ["VeRA", "LoRA", "OSoRA"]) for spec in (one, two))
    for channel in style.CHANNELS:
        assert worn(one, channel, "OSoRA") == worn(two, channel, "OSoRA r=4")
        assert worn(one, channel, "OSoRA") != worn(one, channel, "LoRA")
    assert worn(two, "color", "OSoRA r=4") == worn(two, "color", "OSoRA r=8") == {"expr": "tone2"}
    assert worn(two, "strokeDash", "OSoRA r=4") != worn(two, "strokeDash", "OSoRA r=8")
    assert worn(two, "color", "VeRA") == {"expr": "tone0"}


def test_labels_of_lines_that_end_early_stand_right_of_the_chart():
    early = [Point("short", x, 2.0) for x in (1, 2)]
    late = [Point("long", x, 2.0) for x in (1, 2, 3)]
    spec = lines("T", Axes("x", "y"), early + late)
    for layer in spec["layer"][-3:]:  # sample of the line, of the point, the name
        assert {label["x"] for label in layer["data"]["values"]} == {3}
    assert [layer["mark"]["type"] for layer in spec["layer"][-3:]] == ["rule", "point", "text"]


def test_losses_that_no_logarithm_or_axis_takes_are_drawn_or_named():
    axes = Axes("step", "loss", log_y=True)
    fine = [Point("a", x, 2.0 / x) for x in (1, 2)]
    zero = lines("T", axes, [*fine, Point("z", 1, 0.0)])
    assert "type" not in zero["layer"][0]["encoding"]["y"]["scale"]
    assert {value["series"] for value in zero["data"]["values"]} == {"a", "z"}
    bad = [Point("n", 1, float("nan")), Point("i", 1, 1.0), Point("i", 2, float("inf"))]
    spec = lines("T", axes, [*fine, *bad], subtitle="s")
    told = "s; without values that are no finite number: n, i"
    assert spec["title"]["subtitle"] == told
    assert [v["series"] for v in spec["data"]["values"]] == ["a", "a", "i"]
    assert spec["layer"][0]["encoding"]["y"]["scale"]["type"] == "log"
    assert figures.drawn(spec)[".svg"].startswith(b"<svg")


def test_a_description_tells_every_series():
    few = [Point(f"m{i}", x, 10 * i + x) for i in range(12) for x in (1, 2, 4)]
    said = lines("T", Axes("rank r", "accuracy", log_x=True), few)["description"]
    assert said.startswith("accuracy by rank r; m0: first 1 at 1, last 4 at 4, lowest 1 at 1, ")
    assert all(f"m{i}: " in said for i in range(12))


def test_a_line_without_marks_is_found_by_a_pointer():
    spec = lines("T", Axes("x", "y"), [Point("a", 1, 1, told={"Runs": "r"})], marks=False)
    (layer,) = [one for one in spec["layer"] if one["mark"].get("opacity") == 0]
    assert layer["encoding"]["tooltip"] == [{"field": "Runs", "type": "nominal"}]


def named(count, gap=float):
    """Four ranks of each of `count` / 4 methods."""
    return [
        Named(f"m{i // 4} r={i}", Estimate(gap(i), 1.0, float("inf")), float(count - i) + 1,
              {"Average": str(i)}, "Toy", f"m{i // 4}", differs=i % 2 == 0, baseline=i == 3)
        for i in range(count)
    ]  # fmt: skip


def test_of_many_points_the_front_and_the_baseline_are_named():
    few = points_module.against_cost("T", "s", named(24), less=True)
    assert all(value["named"] for value in few["data"]["values"])
    many = points_module.against_cost("T", "s", named(200, lambda i: -abs(i - 190.0)), less=True)
    shown = [value["name"] for value in many["data"]["values"] if value["named"]]
    assert shown == ["m0 r=3", *(f"m{i // 4} r={i}" for i in range(190, 200))]
    assert many["title"]["subtitle"].endswith("; named, of 200: these and the baseline")
    without = [replace(one, baseline=False) for one in named(200)]
    without = points_module.against_cost("T", "s", without, less=True)
    assert without["title"]["subtitle"].endswith("; named, of 200: these")
    assert "m47 r=190: Average 190, on the front" in many["description"]
    texts = [one for one in many["layer"] if one["mark"]["type"] == "text"]
    assert all(len(one["data"]["values"]) <= 11 for one in texts)
    grounds = [one for one in texts if one["mark"].get("stroke")]
    assert len(grounds) == len(texts) / 2  # no line strikes a name through


def test_a_forest_of_many_shows_the_best_of_each_method():
    whole = points_module.forest("T", "B", named(40))
    assert len(whole["data"]["values"]) == 40
    some = points_module.forest("T", "B", named(100))
    assert [value["name"] for value in some["data"]["values"]][:2] == ["m0 r=0", "m1 r=4"]
    assert "the best 25 of 100, one of each method" in some["title"]["subtitle"]
    assert [value["differs"] for value in some["data"]["values"]] == [True] * 25
    many = points_module.forest("T", "B", named(200))
    assert len(many["data"]["values"]) == 40
    assert "the best 40 of 200" in many["title"]["subtitle"]


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
