"""Records grouped into rows: which runs count, and the numbers of a row by another way."""

from dataclasses import replace
from decimal import Decimal

import pytest

from osora_bench.planning.cell import Cell, cell_of
from osora_bench.planning.config import plain
from osora_bench.records import record
from osora_bench.reporting import rows as reporting_rows
from osora_bench.reporting.rows import Row
from tests.grids import cells_of


def score(k, n, questions=None, **more):
    return {"k": k, "n": n, "questions": questions or n, "unread": 0, "corrected": None, **more}


@pytest.fixture
def cell():
    """With two sets, as all of its questions."""
    (found,) = (c for c in cells_of("demo") if c.config.method.name == "dora")
    return found


def run(cell, first, second, **more):
    names = [d.name for d in cell.config.eval.datasets]
    scores = dict(zip(names, (first, second), strict=True))
    return {
        "run_id": cell.run_id,
        "config": plain(cell.config),
        "provenance": {"fingerprints": dict(cell.fingerprints)},
        "training": None,
        "scores": scores,
        **more,
    }


def decimals(*values):
    return [Decimal(value) for value in values]


def test_accuracies_by_set_and_seed(cell):
    first, second = row_names(cell)
    asked = cell.config.eval.datasets[0].questions
    runs = [run(cell, score(k, asked), score(2 * k, asked)) for k in (100, 151)]
    row = Row(cell, runs, 2)
    expected = [Decimal(100 * k) / asked for k in (100, 151, 200, 302)]
    assert row.values(first) == expected[:2]
    assert row.values(second) == expected[2:]
    assert row.averages() == [(a + b) / 2 for a, b in zip(expected, expected[2:], strict=False)]
    assert row.planned(first) == asked


def row_names(cell):
    return [d.name for d in cell.config.eval.datasets]


def test_a_corrected_score_counts_where_there_is_one(cell):
    first, second = row_names(cell)
    n = cell.config.eval.datasets[0].questions
    mended = score(10, n, corrected={"k": 250}, unread=7)
    row = Row(cell, [run(cell, mended, score(20, n, unread=5))], 1)
    assert row.values(first) == [Decimal(1000) / n]
    assert row.values(first, corrected=True) == [Decimal(25000) / n]
    assert row.values(second, corrected=True) == row.values(second)
    assert row.averages(corrected=True) == [Decimal(13500) / n]
    assert row.unread() == [12]


def test_a_score_of_a_part_of_the_questions_counts_on_request_only(cell):
    first, second = row_names(cell)
    n = cell.config.eval.datasets[0].questions
    part = run(cell, score(30, 40, n), score(100, n))
    row = Row(cell, [part], 1)
    assert row.values(first) == []
    assert row.averages() == []
    asked_for = Row(cell, [], 1, [part])
    assert asked_for.values(first) == [Decimal(75)]
    assert asked_for.shown == [part]
    without = {**part, "scores": {second: score(100, n)}}
    assert Row(cell, [without], 1).values(first) == []
    assert Row(cell, [without], 1).averages() == []


def test_the_suites_own_limit_is_what_is_planned(cell):
    limited = replace(cell.config, eval=replace(cell.config.eval, limit=40))
    first, _ = row_names(cell)
    row = Row(Cell("x", limited, ()), [run(cell, score(30, 40, 500), score(10, 40, 500))], 1)
    assert row.planned(first) == 40
    assert row.values(first) == [Decimal(75)]
    dataset = limited.eval.datasets[0]
    assert reporting_rows.limit_mark(limited.eval, dataset) == reporting_rows.LIMITED
    assert reporting_rows.limit_mark(cell.config.eval, dataset) == ""


def test_the_standard_error_is_the_largest_of_the_seeds(cell):
    """Binomial, of a mean over sets: by the formula with its sums written out."""
    runs = [run(cell, score(20, 80), score(40, 50)), run(cell, score(40, 80), score(25, 50))]
    variance = 0.5 * 0.5 / 80 / 4 + 0.5 * 0.5 / 50 / 4
    assert Row(cell, runs, 2).standard_error() == pytest.approx(100 * variance**0.5)
    smaller = 0.25 * 0.75 / 80 / 4 + 0.8 * 0.2 / 50 / 4
    assert Row(cell, runs[:1], 1).standard_error() == pytest.approx(100 * smaller**0.5)
    assert Row(cell, [], 1).standard_error() == 0


def test_missing_seeds_and_runs_that_are_no_own_ones_are_marked(cell):
    values = decimals("1", "2")
    assert Row(cell, [], 2).show(values) == "1.50 ± 0.71"
    assert Row(cell, [], 3).show(values) == "1.50 ± 0.71 (2 of 3 seeds)"
    assert Row(cell, [], 3).show([]) == ""
    other = run(cell, score(1, 2), score(1, 2))
    assert Row(cell, [], 2, [other]).show(values) == "1.50 ± 0.71" + reporting_rows.LIMITED
    assert Row(cell, [], 2, [other]).show([]) == ""


def test_a_key_of_the_paper_is_of_model_method_rank_and_column(cell):
    method = cell.config.method
    key = Row(cell, []).key("GSM8K")
    assert (key.model, key.method, key.rank, key.column) == (
        cell.config.model.name, method.name, method.rank, "GSM8K",
    )  # fmt: skip
    numbers = reporting_rows.numbers_of([None, Row(cell, [])], "GSM8K", [None, Decimal(3)])
    assert numbers[0] is None
    assert (numbers[1].key, numbers[1].value) == (key, 3)


def seeds(cell, *numbers):
    return [cell_of(replace(cell.config, seed=number)) for number in numbers]


def test_cells_that_differ_in_their_seed_are_one_row(cell):
    one, two, three = seeds(cell, 1, 2, 3)
    other = replace(cell.config, trainer=replace(cell.config.trainer, learning_rate=0.5))
    records = {c.run_id: run(c, score(1, 500), score(1, 500)) for c in (two, one)}
    found = reporting_rows.rows([one, Cell("other", other, ()), two, three], records)
    assert [(row.seeds, [r["run_id"] for r in row.runs]) for row in found] == [
        (3, [one.run_id, two.run_id]), (1, []),
    ]  # fmt: skip
    assert [row.cell.run_id for row in found] == [one.run_id, "other"]
    assert [row.others for row in found] == [[], []]


def test_on_request_other_seeds_and_limited_runs_join_their_row(cell):
    one, two, three = seeds(cell, 1, 2, 3)
    full, limited = score(1, 500), score(1, 40, 500)
    stranger = replace(cell.config, method=replace(cell.config.method, rank=99))
    recipe = replace(cell.config, trainer=replace(cell.config.trainer, learning_rate=0.5))
    records = {
        "a": run(one, full, full),
        "b": run(two, full, limited),  # one of the row's own, limited
        "c": run(three, full, full),  # another seed
        "d": run(cell_of(stranger), full, full),
        "e": run(cell_of(recipe), full, full),
    }
    by_id = {r["run_id"]: r for r in records.values()}
    (row,) = reporting_rows.rows([one, two], by_id, others=True)
    assert [r["run_id"] for r in row.runs] == [one.run_id]
    assert [r["run_id"] for r in row.others] == [two.run_id, three.run_id]
    (row,) = reporting_rows.rows([one], by_id, others=True)
    assert [r["run_id"] for r in row.others] == [two.run_id, three.run_id]
    (row,) = reporting_rows.rows([one, two], by_id)
    assert [r["run_id"] for r in row.runs] == [one.run_id, two.run_id]
    assert row.others == []


def test_runs_of_other_questions_or_numerics_never_join(cell):
    """Not even on request: a suite of the same name on other files, in another form, or counted by
    another version of the numerics."""
    one, two = seeds(cell, 1, 2)
    full = score(1, 500)
    config = two.config
    first = replace(config.eval.datasets[0], metric="another")
    form = cell_of(
        replace(config, eval=replace(config.eval, datasets=[first, *config.eval.datasets[1:]]))
    )
    files = cell_of(config, (), dict.fromkeys(two.fingerprints, "sha256:other"))
    earlier = {**run(two, full, full), "run_id": "0123456789ab"}
    for stranger in (run(form, full, full), run(files, full, full), earlier):
        (row,) = reporting_rows.rows([one], {stranger["run_id"]: stranger}, others=True)
        assert row.others == []
    (row,) = reporting_rows.rows([one], {two.run_id: run(two, full, full)}, others=True)
    assert len(row.others) == 1


def test_rows_read_their_cells_ledgers(cell, tmp_path):
    config = replace(cell.config, ledger=str(tmp_path))
    own = Cell("0123456789ab", config, ())
    body = run(own, score(1, 500), score(2, 500))
    record.write_record({**body, "provenance": {}, "parameters": {}, "measured": {}}, tmp_path)
    (tmp_path / "damaged.json").write_text("{")
    (row,), damaged = reporting_rows.recorded_rows([own])
    assert [r["run_id"] for r in row.runs] == [own.run_id]
    assert len(damaged) == 1
    assert "damaged.json" in damaged[0]
