"""Paired differences against numbers worked out another way; the table of tried rates."""

import random
import statistics
from dataclasses import replace

import pytest

from osora_bench.common.errors import UserError
from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import TableSpec
from osora_bench.records import record
from osora_bench.reporting import render
from osora_bench.reporting import rows as reporting_rows
from osora_bench.reporting.layouts import against, tuning
from tests.grids import cells_of
from tests.reporting.test_tabulate import score


def row(cell, verdicts_by_seed):
    """A row whose runs have given verdicts: a list (seeds) of lists (sets) of verdicts."""
    runs = []
    names = [d.name for d in cell.config.eval.datasets]
    for verdicts in verdicts_by_seed:
        scores = {}
        for name, right in zip(names, verdicts, strict=True):
            n = len(right)
            scores[name] = {**score(sum(right), n, n), "right": record.pack(right)}
        runs.append({"scores": scores, "training": None})
    return reporting_rows.Row(cell, runs, len(runs))


@pytest.fixture
def cell():
    return cells_of("demo")[0]


def test_a_difference_is_taken_question_by_question(cell):
    """By the formula in plain Python, sums written out."""
    chance = random.Random(1)
    sizes = (40, 25)
    one, other = (
        [[[chance.random() < p for _ in range(n)] for n in sizes] for _ in range(seeds)]
        for p, seeds in ((0.6, 3), (0.4, 2))
    )
    found = against.difference(row(cell, one), row(cell, other))
    gaps, variance = [], 0.0
    for s, n in enumerate(sizes):
        by_question = [
            statistics.mean(seed[s][q] for seed in one)
            - statistics.mean(seed[s][q] for seed in other)
            for q in range(n)
        ]
        gaps.append(statistics.mean(by_question))
        variance += statistics.variance(by_question) / n / len(sizes) ** 2
    for method in (one, other):
        averages = [statistics.mean(sum(v) / len(v) for v in seed) for seed in method]
        variance += statistics.variance(averages) / len(averages)
    assert found.points == pytest.approx(100 * statistics.mean(gaps))
    assert found.error == pytest.approx(100 * variance**0.5)
    assert found.low == pytest.approx(found.points - 1.96 * found.error)


def test_what_both_get_right_or_wrong_is_no_uncertainty(cell):
    verdicts = [[[True] * 30 + [False] * 30] * 2]
    found = against.difference(row(cell, verdicts), row(cell, verdicts))
    assert (found.points, found.error, found.outcome) == (0.0, 0.0, "ties")


@pytest.mark.parametrize(
    ("points", "error", "outcome"), [(5, 2, "wins"), (3, 2, "ties"), (-5, 2, "loses")]
)
def test_an_interval_decides(points, error, outcome):
    assert against.Difference(points, error).outcome == outcome


def test_the_table_names_the_baseline_first_and_leaves_unrun_methods_blank(cell):
    verdicts = [[[True, True, False, True]] * 2]
    cells = {c.config.method.name: c for c in cells_of("demo", ["eval.limit=4"])}
    rows = [
        row(cells["osora"], verdicts),
        row(cells["lora"], [[[True, False, False, True]] * 2]),
        reporting_rows.Row(cells["vera"], []),
    ]
    spec = TableSpec("against", "T", baseline="osora")
    table = against.against("t", spec, rows)
    assert list(table.frame) == ["Method", "OSoRA less it", "95 % interval", "so"]
    assert list(table.frame["Method"]) == ["LoRA", "VeRA"]
    assert table.frame["OSoRA less it"].tolist() == ["+25.00", ""]
    assert "paired by question" in render.markdown(table)
    with pytest.raises(UserError, match="unknown baseline 'osra'. Did you mean 'osora'"):
        against.against("t", TableSpec("against", "T", baseline="osra"), rows)


def test_tried_rates_show_the_lowest_loss_of_each_method(cell):
    def trial(method, rate, loss):
        config = cells[method].config
        config = replace(config, trainer=replace(config.trainer, learning_rate=rate))
        validation = {"rows": 8, "tokens": 16, "loss": loss}
        runs = [{"training": {"validation": validation}}] if loss else []
        return reporting_rows.Row(Cell("x", config, ()), runs)

    cells = {c.config.method.name: c for c in cells_of("demo")}
    rows = [trial("dora", 1e-3, 0.7), trial("dora", 1e-2, 0.6), trial("vera", 1e-2, 0.9)]
    table = tuning.tuning("t", TableSpec("tuning", "T"), [*rows, trial("vera", 0.1, None)])
    text = render.markdown(table)
    assert [r.split() for r in text.splitlines() if r.startswith("| DoRA")] == [
        ["|", "DoRA,", "r", "=", "16", "|", "0.7000", "|", "**0.6000**", "|", "-", "|"]
    ]
    assert "16 tokens in 8 rows" in text
    assert table.frame.iloc[1].tolist()[1:] == ["-", "0.9000", ""]
