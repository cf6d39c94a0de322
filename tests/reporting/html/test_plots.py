"""The charts of a page: each of one model, suite and task, and in agreement with the tables."""

from dataclasses import replace

import pytest

from osora_bench.common import paths
from osora_bench.planning.experiments import FigureSpec, TableSpec
from osora_bench.reporting import figures
from osora_bench.reporting.charts import of_rows
from osora_bench.reporting.html import plots
from osora_bench.reporting.layouts.against import against
from osora_bench.reporting.rows import recorded_rows
from tests.reporting.html import made


@pytest.fixture
def part(tmp_path, monkeypatch):
    return made.part_of(tmp_path, monkeypatch, paths)


@pytest.fixture
def rows(part):
    return recorded_rows(part.cells)[0]


def of_another(row, section):
    """The same row of another model or task."""
    config = row.cell.config
    other = replace(getattr(config, section), name="other", label="Other")
    return replace(row, cell=replace(row.cell, config=replace(config, **{section: other})))


@pytest.mark.parametrize("section", ["model", "task"])
def test_charts_of_several_models_or_tasks_are_called_after_them(part, rows, section):
    alone = plots.places(part.experiment, part.cells, rows)
    rows = [*rows, *(of_another(row, section) for row in rows if row.cell.config.trains)]
    both = plots.places(part.experiment, part.cells, rows)
    titles = [place.title for place in both]
    assert len(titles) == len(set(titles)) == 2 * len(alone)
    assert sum(title.endswith(", Other") for title in titles) == len(alone)
    assert len(plots.by_file(both)) == 2 * len(plots.by_file(alone))


def test_charts_of_one_title_have_a_file_each(part, rows):
    found = plots.places(part.experiment, part.cells, rows)
    names = plots.by_file([found[0], *found])
    assert len(names) == len(plots.by_file(found)) + 1
    assert "accuracy-by-rank-r-toy-tasks--2" in names


def test_a_forest_says_what_the_table_says(rows):
    own = [r for r in rows if r.cell.config.method.name == "none" or r.cell.config.method.rank == 4]
    own = own[::-1]
    table = against("t", TableSpec("against", "T", baseline="osora"), own).frame
    spec = of_rows.forest(FigureSpec("forest", "T", baseline="osora"), own)
    drawn = {value["name"]: value for value in spec["data"]["values"]}
    assert list(table["Method"]) == ["LoRA r=4", "Base"]
    assert set(drawn) == set(table["Method"])
    for _, line in table.iterrows():
        value = drawn[line["Method"]]
        assert value["points"] == pytest.approx(float(line["OSoRA less it"]), abs=0.005)
        assert value["So"].startswith(line["so"])
        assert value["differs"] == ("ties" not in line["so"])
    runs = {run["run_id"] for row in own for run in row.runs}
    assert {run for value in drawn.values() for run in value["runs"].split(",")} == runs
    assert "OSoRA r=4 less it" in str(spec["layer"])


def ranked(row, rank):
    """The row at another rank, its losses as many times as high."""
    config = row.cell.config
    other = replace(config, method=replace(config.method, rank=rank))
    runs = [
        {**run, "training": {**run["training"], "loss": [[s, x * rank] for s, x in
                                                         run["training"]["loss"]],
                             "validation": {"rows": 8, "tokens": 16, "loss": float(rank)}}}
        for run in row.runs
    ]  # fmt: skip
    return replace(row, cell=replace(row.cell, config=other), runs=runs)


@pytest.mark.parametrize("draw", [of_rows.tuning, of_rows.losses])
def test_of_many_lines_the_best_are_drawn_and_counted(rows, draw):
    many = [ranked(rows[1], rank) for rank in range(1, 15)]
    spec = draw(FigureSpec("x", "T"), many)
    assert spec["title"]["subtitle"] == "the best 12 of 14"
    shown = {value["series"] for value in spec["data"]["values"]}
    assert shown == {f"LoRA r={rank}" for rank in range(1, 13)}
    assert "subtitle" not in draw(FigureSpec("x", "T"), many[:12])["title"]


def test_held_out_losses_far_from_the_lowest_get_a_logarithmic_axis(rows):
    def axis(*ranks):
        spec = of_rows.tuning(FigureSpec("x", "T"), [ranked(rows[1], rank) for rank in ranks])
        return spec["layer"][0]["encoding"]["y"]["scale"]

    assert axis(1, 3)["type"] == "log"
    assert "type" not in axis(2, 3)


def test_a_held_out_loss_far_above_all_others_leaves_them_their_room(rows):
    def at(rate, loss):
        row = ranked(rows[1], loss)
        trainer = replace(row.cell.config.trainer, learning_rate=rate)
        method = rows[1].cell.config.method
        config = replace(row.cell.config, method=method, trainer=trainer)
        return replace(row, cell=replace(row.cell, config=config))

    far = of_rows.tuning(FigureSpec("x", "T"), [at(1e-3, 2.0), at(1e-2, 2.1), at(1e-1, 9.0)])
    low, high = far["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert 1.9 < low < 2.0
    assert 2.1 < high < 2.2
    assert far["title"]["subtitle"] == "above the axis: LoRA r=2: 9 at 0.1"
    assert "highest 9 at 0.1" in far["description"]
    label = far["layer"][-1]["data"]["values"][0]
    assert label["y"] <= high
    assert figures.drawn(far) == figures.drawn(far)
    near = of_rows.tuning(FigureSpec("x", "T"), [at(1e-3, 2.0), at(1e-2, 2.5), at(1e-1, 3.0)])
    assert near["layer"][0]["encoding"]["y"]["scale"]["domain"][1] > 3.0


def test_numbers_are_told_as_the_tables_tell_them(rows):
    spec = of_rows.costs(FigureSpec("costs", "T", cost="params"), rows)
    assert {value["Params"] for value in spec["data"]["values"]} == {
        f"{row.runs[0]['parameters']['trainable']:,}" for row in rows if row.cell.config.trains
    }
    assert any("," in value["Params"] for value in spec["data"]["values"])
