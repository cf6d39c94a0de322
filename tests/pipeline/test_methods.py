"""A method is one YAML: a class from outside is added so; AdaLoRA has its budget; full is whole."""

import csv
import io
import shutil

import pytest
import torch

from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.models import counting
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.records import record
from osora_bench.reporting import parameters
from tests.conftest import QUICK
from tests.grids import cells_of

OUTSIDE = """\
name: outside
label: Outside
rank: 2
rank_bounded: false
peft:
  _target_: tests.outside_method.ScaleConfig
  task_type: CAUSAL_LM
  r: ${method.rank}
  target_modules: ${model.target_modules}
"""
EXPERIMENT = """\
title: Two more methods
seed: [0]
set: {task: toy, eval: toy, trainer.max_steps: 4}
blocks:
  - {model: [toy], method: [lora, adalora, outside], rank: [8]}
tables:
  more:
    layout: methods
    title: Accuracy
    columns: [model, method, params, datasets, average]
"""


@pytest.fixture
def one_more_method(tmp_path, monkeypatch):
    """A copy of conf/ with a file more, and an experiment that names it."""
    conf = shutil.copytree(paths.CONF, tmp_path / "conf")
    (conf / "method" / "outside.yaml").write_text(OUTSIDE)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "more.yaml").write_text(EXPERIMENT)
    monkeypatch.setattr(paths, "CONF", conf)
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path / "experiments")


def test_a_method_is_added_by_one_file(one_more_method, places, session, capsys, tmp_path):
    quick = [q for q in QUICK if not q.startswith("trainer.")]
    asked = ["experiment=more", *places, *quick]
    assert main(["run", *asked]) == 0
    capsys.readouterr()
    assert main(["plan", *asked]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1:4] for line in told[:3]] == [
        ["done", "toy", m] for m in ("lora", "adalora", "outside")
    ]
    counted = ["model=toy", "method=lora,adalora,outside", "rank=8", "--csv"]
    assert main(["params", *counted]) == 0
    counts = [
        int(line["trainable"]) for line in csv.DictReader(io.StringIO(capsys.readouterr().out))
    ]
    for cell, count in zip(cells_of("more", [*places, *quick]), counts, strict=True):
        made = record.read_record(cell.record)
        assert made["training"]["steps"] == 4
        assert made["parameters"]["trainable"] == count
    assert main(["tables", *asked, "others=true", f"out={tmp_path}"]) == 0
    with (tmp_path / "more.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["Model", "Method", "Params", "GSM8K-toy", "CSQA-toy", "Avg."]
    assert [row["Method"] for row in rows] == ["LoRA", "AdaLoRA", "Outside"]
    assert [int(row["Params"]) for row in rows] == counts
    assert all(row["Avg."].endswith("†") for row in rows)


def test_a_method_that_reads_the_weights_cannot_be_counted_but_is_not_refused(
    one_more_method, make_cell, monkeypatch
):
    from tests import outside_method

    class Reading(outside_method.ScaledLinear):
        def __init__(self, base_layer, *args):
            super().__init__(base_layer, *args)
            assert float(base_layer.weight.detach().sum())

    monkeypatch.setattr(outside_method, "ScaledLinear", Reading)
    line = parameters.count_table(["toy"], ["outside"], [2])[0]
    assert line.count is None
    assert "method outside: cannot be made without weights: " in line.problem
    preflight.check_cells([make_cell("method=outside")])


def test_adalora_really_allocates_its_rank(make_cell, session, monkeypatch):
    """PEFT leaves the call of the allocator to the training loop, and it ends with the training,
    whatever total_step says."""
    from peft.tuners.adalora import RankAllocator

    budgets = []
    real = RankAllocator.update_and_allocate

    def watched(self, model, step, force_mask=False):
        budget, pattern = real(self, model, step, force_mask)
        budgets.append((step, budget))
        return budget, pattern

    monkeypatch.setattr(RankAllocator, "update_and_allocate", watched)
    phases = ["method.peft.tinit=1", "method.peft.tfinal=1"]
    cell = make_cell("method=adalora", *phases, *QUICK, "trainer.max_steps=4")
    assert attempt(cell) == "done"
    assert [step for step, _ in budgets] == [1, 2, 3]  # from total_step - tfinal on it is fixed
    assert budgets[0][1] > budgets[-1][1]


def test_adalora_trains_a_single_step(make_cell, session):
    """As at smoke scale: there are no importances of steps before to judge by."""
    cell = make_cell("method=adalora", *QUICK, "trainer.max_steps=1")
    assert attempt(cell) == "done"


def test_a_training_too_short_for_adaloras_phases_is_refused(make_cell, session):
    cell = make_cell("method=adalora", "method.peft.tfinal=4", *QUICK, "trainer.max_steps=4")
    assert attempt(cell) == "failed"
    assert "the training has 4 steps: method.peft.tinit=0 and method.peft.tfinal=4 l" in cell.error


def test_full_fine_tuning_trains_every_weight_and_leaves_the_next_cell_a_fresh_base(
    make_cell, session
):
    cell = make_cell("method=full", *QUICK)
    before = {
        n: t.clone() for n, t in session.workspace.base(cell.config).model.state_dict().items()
    }
    assert attempt(cell) == "done"
    made = record.read_record(cell.record)
    model = session.workspace.base(cell.config).model
    assert made["parameters"]["trainable"] == sum(p.numel() for p in model.parameters())
    assert made["parameters"]["trainable"] == counting.count(cell.config).trainable
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert made["run_id"] != make_cell("method=none", *QUICK).run_id
