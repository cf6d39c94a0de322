"""What `plan` shows: states, what waits, hours counted once, how precise a suite can be."""

import json
import math

import pytest

from osora_bench.cli import plan
from osora_bench.cli.main import main
from osora_bench.planning import estimate
from tests.grids import expansion_of
from tests.planning.test_tuning import experiments, with_loss  # noqa: F401 (a fixture)


def test_every_cell_has_a_line_and_those_that_wait_no_run_id(experiments, places):  # noqa: F811
    made = plan.lines(expansion_of("tuned", places))
    assert [line.state for line in made] == ["missing"] * 4 + ["waiting"] * 4
    assert [line.run_id is None for line in made] == [False] * 4 + [True] * 4
    told = plan.text(made)
    assert any("toy lora r=4 seed=3 rate=0.001" in line for line in told)
    assert any("for the choice of one of 3 learning rates" in line for line in told)
    assert told[-1].startswith("8 cells: 4 missing, 4 waiting; about ")


def test_json_has_the_same_lines(experiments, places, capsys):  # noqa: F811
    assert main(["plan", "experiment=tuned", "--json", *places]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in listed] == ["missing"] * 4 + ["waiting"] * 4
    assert listed[4]["run_id"] is None
    assert listed[4]["suite"] == "toy"


def test_a_training_that_several_suites_share_counts_once(experiments, places):  # noqa: F811
    trials = expansion_of("tuned", places).cells[1:]
    for trial in trials:
        with_loss(trial, 1.0)  # the first is the best of equals
    made = plan.lines(expansion_of("tuned", places))
    todo = [line for line in made if line.state == "missing"]
    trained = [line for line in todo if line.cell.config.method.name == "lora"]
    # two suites: seed 3 was trained by the trial, seed 4 is trained once
    expected = sum(line.cost.hours for line in todo) - 3 * trained[0].cost.training
    assert plan.hours_left(made) == pytest.approx(expected)


def test_a_damaged_record_is_no_work_to_be_done(experiments, places):  # noqa: F811
    expansion = expansion_of("tuned", places)
    whole = plan.lines(expansion)
    expansion.cells[0].ledger.mkdir(parents=True, exist_ok=True)
    expansion.cells[0].record.write_text("{")
    made = plan.lines(expansion_of("tuned", places))
    assert made[0].state == "damaged"
    left = plan.hours_left(whole) - plan.hours_left(made)
    assert left == pytest.approx(whole[0].cost.hours)


def test_precision_is_the_binomial_one_at_one_half(make_cell):
    suite = make_cell("eval=toy", "eval.limit=100").config.eval
    assert estimate.precision(suite) == (200, pytest.approx(100 * math.sqrt(0.25 / 200)))
