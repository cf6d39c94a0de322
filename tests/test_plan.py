"""Run ids stand for what can change the numbers; an experiment's cells are Hydra's own."""

import random
from pathlib import Path

import pytest

from osora_bench import paths, plan
from osora_bench.compose import compose, composer, resolve
from osora_bench.errors import UserError


@pytest.mark.parametrize(
    "override",
    [
        "runs=elsewhere",
        "ledger=elsewhere",
        "device=cpu",
        "tracker=wandb",
        "trainer.micro_batch_size=8",
        "trainer.gradient_checkpointing=true",
        "eval.batch_size=64",
        "model.label=Other",
        "method.name=other",
    ],
)
def test_what_cannot_change_the_numbers_leaves_the_run_id(make_cell, override):
    assert make_cell(override).run_id == make_cell().run_id


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "method=lora",
        "method.rank=8",
        "trainer.learning_rate=0.5",
        "trainer.batch_size=64",
        "task.loss_on=text",
        "eval.datasets.0.limit=3",
        "model.dtype=bfloat16",
        "model.target_modules=[q_proj]",
    ],
)
def test_what_can_change_the_numbers_changes_the_run_id(make_cell, override):
    assert make_cell(override).run_id != make_cell().run_id


def test_a_file_counts_by_its_bytes_not_by_its_place(make_cell, tmp_path):
    source = paths.data_file("pkg://osora_bench.toy/data/gsm8k/train.jsonl")
    copy = tmp_path / "elsewhere.jsonl"
    copy.write_bytes(source.read_bytes())
    moved = make_cell(f"task.sources.0.path={copy}")
    assert moved.run_id == make_cell().run_id
    copy.write_bytes(source.read_bytes().replace(b"apples", b"grapes", 1))
    assert make_cell(f"task.sources.0.path={copy}").run_id != moved.run_id


def test_without_training_task_trainer_and_seed_do_not_count(make_cell):
    base = make_cell("method=none")
    other = make_cell("method=none", "seed=3", "trainer.learning_rate=0.5", "task.max_rows=5")
    assert other.run_id == base.run_id
    assert make_cell("method=none", "eval.datasets.0.limit=3").run_id != base.run_id


def test_experiments_that_share_a_cell_share_its_run():
    sweep = {cell.run_id for cell in plan.expand("table3-toy")}
    demo = {cell.run_id for cell in plan.expand("demo")}
    assert sweep < demo
    assert len(demo) == 17


def test_cells_equal_hydras_own_composition():
    cells = random.Random(0).sample(plan.expand("demo"), 6)
    with composer():
        for cell in cells:
            assert resolve(compose(cell.overrides, "test"), "test") == cell.config


def test_table3_is_the_published_grid():
    grid: dict[str, list[int]] = {}
    for cell in plan.expand("table3"):
        grid.setdefault(cell.config["method"]["name"], []).append(cell.config["method"]["rank"])
        assert cell.config["model"]["name"] == "qwen2-7b"
        assert cell.config["trainer"]["batch_size"] == 1
        rate = 2e-5 if cell.config["method"]["name"] == "lora" else 5e-3
        assert cell.config["trainer"]["learning_rate"] == rate
    assert grid == {
        "lora": [2, 4, 8, 16, 32, 64],
        "vera": [64, 128, 256, 512],
        "osora": [64, 128, 256, 512],
    }


def test_an_unknown_experiment_names_those_there_are():
    with pytest.raises(UserError, match="unknown experiment 'demmo'. Did you mean 'demo'"):
        plan.expand("demmo")


def test_a_misspelled_key_of_an_experiment_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path)
    (tmp_path / "mine.yaml").write_text("title: x\nseed: [0]\nblocs: []\n")
    with pytest.raises(UserError, match="blocs"):
        plan.expand("mine")


def test_the_grid_of_an_experiment_cannot_be_bent_from_outside():
    with pytest.raises(UserError, match="says which models, methods, ranks and seeds"):
        plan.expand("demo", ["method.rank=3"])


def test_states_follow_the_files(make_cell):
    cell = make_cell()
    assert cell.state == "missing"
    cell.paths.folder.mkdir(parents=True)
    cell.paths.failure.write_text("{}")
    assert cell.state == "failed"
    cell.ledger.mkdir()
    Path(cell.record).write_text("{")
    assert cell.state == "damaged"
