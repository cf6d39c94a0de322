"""Costs as a table and a figure: known records, the Pareto front by its definition, blanks."""

import itertools
import json
import random
from dataclasses import replace

import pytest

from osora_bench.common.errors import UserError
from osora_bench.planning.experiments import FigureSpec, TableSpec
from osora_bench.reporting import figures
from osora_bench.reporting import rows as reporting_rows
from osora_bench.reporting.charts import of_rows, points, style
from osora_bench.reporting.costs import COSTS, cost_of, pareto
from osora_bench.reporting.layouts import costs
from osora_bench.reporting.layouts.values import by_value
from tests.grids import cells_of
from tests.reporting.test_against import row


def with_costs(cell, right, *speeds, params=1000):
    """A row whose runs have some tokens a second; None: a record of before costs were kept."""
    made = row(cell, [[[i < right for i in range(40)]] * 2] * len(speeds))
    for run, speed in zip(made.runs, speeds, strict=True):
        run["parameters"] = {"trainable": params, "adapter_bytes": 4 * params}
        run["measured"] = {}
        if speed is not None:
            run["measured"]["training"] = {
                "start_seconds": 0.5, "seconds": 1000 / speed, "tokens_per_second": speed,
                "memory_bytes": 12_000_000, "frozen_bytes": 2_000_000,
            }  # fmt: skip
    return made


@pytest.fixture
def rows():
    cells = {c.config.method.name: c for c in cells_of("demo", ["eval.limit=40"])}
    return [
        with_costs(cells["none"], 4, None, params=0),
        with_costs(cells["lora"], 30, 100.0, 300.0, 200.0, params=4000),
        with_costs(cells["vera"], 20, 400.0, None, params=500),
        with_costs(cells["dora"], 10, None),
        reporting_rows.Row(cells["pissa"], []),
    ]


def test_costs_are_medians_over_the_runs_that_tell_them(rows):
    table = costs.costs("t", TableSpec("costs", "T"), rows)
    assert list(table.frame) == ["Method", "r", "Avg.", *(c.heading for c in COSTS.values())]
    assert table.frame["Avg."].tolist() == ["10.00", "75.00", "50.00", "25.00", ""]
    assert table.frame["Params"].tolist() == ["0", "4000", "500", "1000", ""]
    assert table.frame["Tokens/s"].tolist() == ["", "200", "400", "", ""]
    assert table.frame["Forgotten, nats"].tolist() == [""] * 5
    assert table.frame["Training, s"].tolist() == ["", "5.0", "2.5", "", ""]
    assert table.frame["Frozen, MB"].tolist() == ["", "2.00", "2.00", "", ""]
    assert table.frame["Memory, MB"].tolist() == ["", "12", "12", "", ""]
    assert len(table.notes) == 2
    assert table.notes[1].startswith("Blank: not recorded")
    assert table.best["Tokens/s"].tolist() == [False, False, True, False, False]
    assert table.best["Params"].tolist() == [False, False, True, False, False]  # 0 trains nothing
    with pytest.raises(UserError, match="table t: unknown cost 'sped'. Did you mean 'speed'"):
        costs.costs("t", TableSpec("costs", "T", columns=["sped"]), rows)


def test_memory_has_one_unit_whatever_a_record_says_it_in(rows):
    """The first records hold 2^20 bytes."""
    costs_of = rows[2].runs[0]["measured"]["training"]
    costs_of["memory_mb"] = costs_of.pop("memory_bytes") / 2**20
    assert cost_of(rows[2], "memory") == pytest.approx(12.0)


def test_what_shared_and_interrupted_trainings_lack_is_said(rows):
    told = [rows[1]]
    assert len(costs.costs("t", TableSpec("costs", "T"), told).notes) == 1
    for run in rows[1].runs:
        run["config"]["trainer"]["processes"] = 2
        run["measured"]["training"]["seconds"] = None
    table = costs.costs("t", TableSpec("costs", "T"), told)
    assert table.frame["Training, s"].tolist() == [""]
    assert [note.partition(":")[0] for note in table.notes[1:]] == [
        "Where processes share the model", "Blank",
    ]  # fmt: skip


@pytest.mark.parametrize("less", [True, False])
def test_the_pareto_front_is_what_nothing_dominates(less):
    chance = random.Random(0)
    for _ in range(50):
        points = [(chance.randrange(6), chance.randrange(6)) for _ in range(8)]
        expected = []
        for i, (cost, score) in enumerate(points):
            better = [
                (c, s)
                for c, s in points
                if (c <= cost if less else c >= cost) and s >= score and (c, s) != (cost, score)
            ]
            if not better:
                expected.append(i)
        assert pareto(points, less=less) == expected


@pytest.mark.parametrize("cost", list(COSTS))
def test_a_figure_of_costs_marks_the_front_and_names_every_point(rows, cost):
    spec = of_rows.costs(FigureSpec("costs", "T", cost=cost), rows)
    values = spec["data"]["values"]
    labels = [layer["data"]["values"] for layer in spec["layer"] if "data" in layer]
    told = {label["name"].partition(" ")[0] for part in labels for label in part}
    known = {"params": 3, "adapter": 3, "forgetting": 0}.get(cost, 2)  # of how many it is known
    assert told == set(["LoRA", "VeRA", "DoRA"][:known])
    filled = sum(value["front"] for value in values)
    assert filled == {"frozen": 1, "start": 1, "memory": 1, "forgetting": 0}.get(cost, 2)


def test_intervals_in_figures_end_where_a_mean_does(rows):
    cells = {c.config.method.name: c for c in cells_of("demo", ["eval.limit=40"])}
    ends = [with_costs(cells["lora"], 39, 100.0), with_costs(cells["vera"], 1, 200.0)]
    for spec in (
        of_rows.costs(FigureSpec("costs", "T", cost="speed"), ends),
        of_rows.by_setting("ranks", FigureSpec("ranks", "T"), ends),
    ):
        values = sorted(spec["data"]["values"], key=lambda value: value["low"])
        assert values[0]["low"] == 0.0 < values[0]["high"]
        assert values[1]["low"] < values[1]["high"] == 100.0


def test_a_forest_is_sorted_and_fills_what_differs(rows):
    spec = of_rows.forest(FigureSpec("forest", "T", baseline="vera"), rows)
    values = spec["data"]["values"]
    assert [value["name"].partition(" ")[0] for value in values] == ["LoRA", "DoRA", "Base"]
    assert [value["points"] for value in values] == [-25.0, 25.0, 40.0]  # of VeRA less it
    assert [value["So"].split(",")[0] for value in values] == [
        "VeRA loses",
        "VeRA wins",
        "VeRA wins",
    ]
    assert all(value["differs"] for value in values)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            FigureSpec("costs", "T", cost="sped"),
            "figure f: unknown cost 'sped'. Did you mean 'speed'",
        ),
        (FigureSpec("costs", "T"), "unknown cost 'None'"),
        (FigureSpec("forest", "T", baseline="mine"), "figure f: unknown baseline 'mine'"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_runs(rows, spec, message):
    with pytest.raises(UserError, match=message):
        figures.check("f", spec, rows)
    assert spec.kind in figures.KINDS


def of_two_models(rows):
    """LoRA and VeRA, and the same on another model that is better and dearer throughout."""
    both = list(rows[1:3])
    for made, right, speed in zip(rows[1:3], (36, 34), (50.0, 60.0), strict=True):
        config = made.cell.config
        config = replace(config, model=replace(config.model, name="two", label="Two"))
        both.append(with_costs(replace(made.cell, config=config), right, speed, params=9000))
    return both


def test_costs_are_compared_within_a_model(rows):
    table = costs.costs("t", TableSpec("costs", "T", columns=["speed"]), of_two_models(rows))
    assert table.groups is not None
    assert table.groups[2:] == ["Two", "Two"] != table.groups[:2]
    assert table.best["Tokens/s"].tolist() == [False, True, False, True]
    spec = of_rows.costs(FigureSpec("costs", "T", cost="speed"), of_two_models(rows))
    values = spec["data"]["values"]
    assert [value["name"][:9] for value in values][2:] == ["Two, LoRA", "Two, VeRA"]
    assert [value["front"] for value in values] == [True] * 4  # each model has a front of both
    assert "no other of its model" in json.dumps(spec)


def test_a_forest_measures_each_method_from_its_own_model(rows):
    spec = of_rows.forest(FigureSpec("forest", "T", baseline="vera"), of_two_models(rows))
    values = spec["data"]["values"]
    names = [value["name"].partition(" r=")[0] for value in values]
    assert names[0].endswith(", LoRA")
    assert names[1] == "Two, LoRA"
    points = [value["points"] for value in values]
    assert points == pytest.approx([-25.0, -5.0])  # 20 - 30 and 34 - 36 of 40


def test_ranks_of_two_models_stand_apart_and_none_is_lost(rows):
    table = by_value(
        "r", lambda c: c.method.rank, "t", TableSpec("ranks", "T"), of_two_models(rows)
    )
    assert table.groups is not None
    assert table.groups[-1] == "Two"
    shown = {value.split()[0] for label in ("LoRA", "VeRA") for value in table.frame[label]}
    assert {"75.00", "50.00", "90.00", "85.00"} <= shown


def at_ranks(made, *rights):
    """A row at ranks 4 and 8, with a curve of its training loss and a loss on held-out rows."""
    rows = []
    for rank, right in zip((4, 8), rights, strict=True):
        config = made.cell.config
        config = replace(config, method=replace(config.method, rank=rank))
        rows.append(with_costs(replace(made.cell, config=config), right, 100.0))
        loss = right / 10
        rows[-1].runs[0]["training"] = {
            "loss": [[1, loss], [2, loss]], "validation": {"rows": 8, "tokens": 16, "loss": loss},
        }  # fmt: skip
    return rows


def test_figures_of_two_models_have_a_line_each_and_name_them(rows):
    (one, _, two, _) = of_two_models(rows)
    both = [*at_ranks(one, 30, 36), *at_ranks(two, 10, 20)]
    label = one.cell.config.model.label
    spec = of_rows.by_setting("ranks", FigureSpec("ranks", "T"), both)
    lines: dict[str, list[float]] = {}
    for value in spec["data"]["values"]:
        lines.setdefault(value["series"], []).append(value["y"])
    assert lines == {f"{label}, LoRA": [75.0, 90.0], "Two, LoRA": [25.0, 50.0]}
    by_rank = [f"{label}, LoRA r=4", f"{label}, LoRA r=8", "Two, LoRA r=4", "Two, LoRA r=8"]
    for draw in (of_rows.tuning, of_rows.losses):
        values = draw(FigureSpec("x", "T"), both)["data"]["values"]
        assert sorted({value["series"] for value in values}) == sorted(by_rank)
    bars = of_rows.by_set(FigureSpec("bars", "T"), both[::2])
    text = json.dumps(bars)
    assert f"{label}, LoRA" in text
    assert "Two, LoRA" in text
    assert (
        of_rows.by_setting("ranks", FigureSpec("ranks", "T", methods=["lora"]), both[:2])["data"][
            "values"
        ][0]["series"]
        == "LoRA"
    )


def boxes(spec):
    """The boxes that the names of a figure of costs take, in pixels."""
    x, y = (spec["layer"][-1]["encoding"][axis]["scale"] for axis in ("x", "y"))
    found = []
    for layer in spec["layer"]:
        if layer["mark"]["type"] != "text" or "stroke" in layer["mark"]:  # the ground of a name
            continue
        for label in layer["data"]["values"]:
            across, along = (
                size * (label[key] - scale["domain"][0]) / (scale["domain"][1] - scale["domain"][0])
                for size, key, scale in ((style.WIDTH, "cost", x), (style.HEIGHT, "points", y))
            )
            width = points.CHARACTER * len(label["name"])
            left = across + 8 if label["side"] == "left" else across - 8 - width
            found.append((left, left + width, along - style.LINE / 2, along + style.LINE / 2))
    return found


def test_names_of_a_figure_of_costs_stay_within_it_and_apart():
    cells = {c.config.method.name: c for c in cells_of("demo", ["eval.limit=40"])}
    spec = of_rows.costs(
        FigureSpec("costs", "T", cost="speed"),
        [
            with_costs(cells[method], right, speed)
            for method, right, speed in (
                ("lora", 30, 100.0), ("dora", 31, 90.0), ("pissa", 29, 110.0), ("osora", 39, 300.0),
                ("vera", 36, 400.0),
            )
        ],
    )  # fmt: skip
    found = boxes(spec)
    assert len(found) == 5
    for left, right, low, high in found:
        assert 0 < left < right <= style.WIDTH
        assert 0 <= low < high <= style.HEIGHT + 1e-9
    for a, b in itertools.combinations(found, 2):
        assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] + 1e-3 or b[3] <= a[2] + 1e-3
