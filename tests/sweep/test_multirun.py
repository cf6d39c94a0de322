"""A Hydra multirun: all of its cells are checked before the first is trained."""

import pytest

from osora_bench.common import exits
from osora_bench.pipeline.attempt import session
from osora_bench.planning.cell import Cell, State, cell_of
from osora_bench.planning.compose import resolve
from osora_bench.sweep import multirun
from tests.conftest import QUICK


@pytest.fixture
def watched(monkeypatch):
    """What is checked beforehand and what Hydra runs, as run ids; nothing is trained."""
    checked, ran = [], []
    monkeypatch.setattr(
        multirun.preflight,
        "check_cells",
        lambda cells, here: checked.extend(cell.run_id for cell in cells),
    )
    monkeypatch.setattr(session(), "prepare", lambda cells: None)

    def attempt(cfg):
        ran.append(cell_of(resolve(cfg, "test")).run_id)
        return exits.OK, ""

    monkeypatch.setattr(multirun, "_attempt", attempt)
    return checked, ran


@pytest.mark.parametrize(
    ("swept", "told"),
    [
        (["method.rank=8,4000"], ["toy osora: rank 4000 is above min(d_out, d_in)"]),
        (["method.rank=8,0,-1"], ["method.rank=0 for osora", "method.rank=-1 for osora"]),
        (["method.rank=8,many"], ["method.rank=many: method.rank takes a whole number"]),
        (["seed=interval(0,1)"], ["does not support sweep type"]),
        (
            ["eval.datasets.0.limit=null", "eval.datasets.0.questions=500,7"],
            ["gsm8k-toy has 500 questions, expected 7"],
        ),
    ],
)
def test_a_bad_cell_is_refused_before_another_is_trained(swept, told, places, tmp_path, capsys):
    loads = session().workspace.loads
    assert multirun.main(["-m", *places, *QUICK, "method=osora", *swept]) == exits.MISTAKE
    shown = capsys.readouterr().err
    assert all(line in shown for line in told), shown
    assert session().workspace.loads == loads
    assert not [*tmp_path.glob("ledger/*.json")]
    assert not (tmp_path / "runs" / "cells").exists()


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_the_cells_that_are_checked_are_those_that_hydra_runs(flag, places, watched):
    checked, ran = watched
    swept = ["method=lora,osora", "method.rank=choice(8,16)", "seed=range(0,3)", "task=toy"]
    assert multirun.main([*places, *swept, flag]) == exits.OK
    assert checked == ran
    assert len(set(checked)) == 12


def test_cells_with_a_record_are_not_asked_again(places, watched, monkeypatch):
    checked, ran = watched
    monkeypatch.setattr(
        Cell, "state", property(lambda c: State.DONE if c.config.seed == 0 else State.MISSING)
    )
    assert multirun.main(["-m", *places, "seed=0,1"]) == exits.OK
    assert checked == ran[1:]
    assert len(ran) == 2


@pytest.mark.parametrize(
    "alone",
    [
        ["ledger=runs/${hydra:job.num}"],
        ["hydra/sweeper=basic"],
        ["hydra.sweeper.params={seed: '0,1'}"],
        ["--config-name=config"],
    ],
)
def test_what_hydra_alone_knows_is_checked_at_its_turn(alone, places, watched, monkeypatch):
    monkeypatch.setattr(multirun, "_run", lambda: None)
    checked, _ = watched
    assert multirun.main(["-m", *places, "method=none", *alone]) == exits.OK
    assert checked == []
