"""Run ids stand for what can change the numbers; an experiment's cells are Hydra's own."""

import json
import random
import shutil
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.planning import identity
from osora_bench.planning.compose import composer
from osora_bench.planning.config import Config, plain
from tests.grids import cells_of


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
        "task.even=true",
        "task.plain=true",
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
    sweep = {cell.run_id for cell in cells_of("table3-toy")}
    demo = {cell.run_id for cell in cells_of("demo")}
    assert sweep < demo
    assert len(demo) == 17


def hydras_own(overrides) -> dict:
    """What a user gets who hands the overrides to Hydra itself."""
    with composer():
        cfg = hydra.compose("config", overrides=[*overrides])
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_cells_equal_hydras_own_composition():
    for cell in random.Random(0).sample(cells_of("demo"), 6):
        assert hydras_own(cell.overrides) == plain(cell.config)


BY_SEED = """\
name: by_seed
label: By seed
rank: 4
rank_bounded: false
peft:
  _target_: peft.VeraConfig
  r: ${method.rank}
  projection_prng_key: ${seed}
  through_another: ${.projection_prng_key} of ${task.name}
  target_modules: ${model.target_modules}
"""
MADE_UP = """\
name: made_up
label: Made up
rank: 4
rank_bounded: false
peft:
  r: ${method.rank}
  which: seed
  found: ${oc.select:${method.peft.which}}
"""
GRID = """\
title: Three learning rates, and another task
seed: [0, 1, 2, 3]
blocks:
  - &choices
    model: [toy, qwen2-7b]
    method: [lora, by_seed, made_up]
    rank: [2, 4, 8]
    set: {trainer.learning_rate: 1}
  - {<<: *choices, set: {trainer.learning_rate: 1e-3, eval.datasets.0.limit: 3}}
  - {<<: *choices, seed: [5], set: {"model.target_modules": [k_proj], seed: 3}}
  - {<<: *choices, seed: [7, 8], set: {task: math, eval: math, trainer.batch_size: 64}}
  - {model: [toy], method: [none, full]}
"""


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """An experiment of some two hundred cells, with methods that refer to the seed."""
    conf, experiments = tmp_path / "conf", tmp_path / "experiments"
    shutil.copytree(paths.CONF, conf)
    (conf / "method" / "by_seed.yaml").write_text(BY_SEED)
    (conf / "method" / "made_up.yaml").write_text(MADE_UP)
    experiments.mkdir()
    (experiments / "grid.yaml").write_text(GRID)
    monkeypatch.setattr(paths, "CONF", conf)
    monkeypatch.setattr(paths, "EXPERIMENTS", experiments)
    return "grid"


def test_a_large_grid_equals_hydras_own_composition(grid, places):
    cells = cells_of(grid, [*places, "device=cpu", "trainer.micro_batch_size=1"])
    assert len(cells) == 18 * (4 + 4 + 1 + 2) + 1 + 4
    for cell in [*random.Random(1).sample(cells, 30), *cells[-5:]]:
        own = hydras_own(cell.overrides)
        assert own == plain(cell.config)
        assert identity.run_id(Config.of(own)) == cell.run_id


def test_hydra_composes_each_choice_of_files_once(grid, places, monkeypatch):
    asked = []
    compose_once = hydra.compose

    def counted(name, overrides):
        asked.append(tuple(overrides))
        return compose_once(name, overrides=overrides)

    monkeypatch.setattr(hydra, "compose", counted)
    cells = cells_of(grid, [*places, "trainer.micro_batch_size=1"])
    files = {(c.config.model.name, c.config.method.name, c.config.task.name) for c in cells}
    assert len(asked) == len(set(asked)) == len(files) == 2 * 3 * 2 + 2


def test_content_is_looked_at_once_a_plan_and_anew_in_the_next(make_cell, tmp_path, monkeypatch):
    looked = []
    original = identity.fingerprint
    monkeypatch.setattr(
        identity, "fingerprint", lambda place: looked.append(place) or original(place)
    )
    first = {c.run_id for c in cells_of("demo")}
    assert len(looked) == len(set(looked)) > 0
    copied = tmp_path / "model"
    shutil.copytree(paths.resolve("pkg://osora_bench.toy/model"), copied)
    assert {c.run_id for c in cells_of("demo", [f"model.path={copied}"])} == first
    (copied / "config.json").write_text((copied / "config.json").read_text() + "\n")
    assert not {c.run_id for c in cells_of("demo", [f"model.path={copied}"])} & first


def test_table3_is_the_published_grid():
    grid: dict[str, list[int]] = {}
    for cell in cells_of("table3"):
        grid.setdefault(cell.config.method.name, []).append(cell.config.method.rank)
        assert cell.config.model.name == "qwen2-7b"
        assert cell.config.trainer.batch_size == 1
        rate = 2e-5 if cell.config.method.name == "lora" else 5e-3
        assert cell.config.trainer.learning_rate == rate
    assert grid == {
        "lora": [2, 4, 8, 16, 32, 64],
        "vera": [64, 128, 256, 512],
        "osora": [64, 128, 256, 512],
    }


def test_several_experiments_are_planned_together_and_what_they_share_once(capsys):
    alone = [c.run_id for name in ("table2", "table4") for c in cells_of(name)]
    assert main(["plan", "experiment=table2,table4", "--json"]) == 0
    listed = [line["run_id"] for line in json.loads(capsys.readouterr().out)]
    assert len(alone) == 10 + 3
    assert listed == list(dict.fromkeys(alone))
    assert len(listed) == 10 + 1


def test_a_damaged_record_is_told_whoever_it_belongs_to(tmp_path, capsys):
    (tmp_path / "fedcba987654.json").write_text("{")
    assert main(["plan", "experiment=demo", f"ledger={tmp_path}", f"runs={tmp_path}"]) == 0
    told = capsys.readouterr()
    assert "damaged record, left alone" in told.err
    assert "fedcba987654.json" in told.err
    assert told.out.splitlines()[-1].startswith("17 cells: 17 missing")


def test_an_unknown_experiment_names_those_there_are():
    with pytest.raises(UserError, match="unknown experiment 'demmo'. Did you mean 'demo'"):
        cells_of("demmo")


def test_a_misspelled_key_of_an_experiment_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path)
    (tmp_path / "mine.yaml").write_text("title: x\nseed: [0]\nblocs: []\n")
    with pytest.raises(UserError, match="blocs"):
        cells_of("mine")


def test_the_grid_of_an_experiment_cannot_be_bent_from_outside():
    with pytest.raises(UserError, match="says which models, methods, ranks and seeds"):
        cells_of("demo", ["method.rank=3"])


def test_some_of_its_methods_have_the_cells_that_they_have_among_all():
    every, some = cells_of("demo"), cells_of("demo", ["methods=none,osora"])
    wanted = {"none", "osora"}
    assert [c.run_id for c in some] == [c.run_id for c in every if c.config.method.name in wanted]
    smoke = [["scale=smoke"], ["scale=smoke", "methods=vera"]]
    whole, part = ({c.run_id for c in cells_of("table3", given)} for given in smoke)
    assert part < whole


def test_a_method_that_the_experiment_has_not_is_told():
    with pytest.raises(UserError, match="unknown method of experiment demo 'ora'.*Did you mean"):
        cells_of("demo", ["methods=lora,ora"])


def test_states_follow_the_files(make_cell):
    cell = make_cell()
    assert cell.state == "missing"
    cell.paths.folder.mkdir(parents=True)
    cell.paths.failure.write_text("{}")
    assert cell.state == "failed"
    assert (cell.error, cell.failed) == (f"{cell.paths.failure} does not say why it failed", "")
    cell.fail("a reason\nand more")
    assert cell.error == "a reason"
    cell.ledger.mkdir()
    Path(cell.record).write_text("{")
    assert cell.state == "damaged"


def test_every_file_that_is_missing_is_told(make_cell, tmp_path, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path))
    cell = make_cell("task=gpqa-clean", "eval=gpqa", "trainer=toy")
    with pytest.raises(UserError) as told:
        preflight.check_cells([cell])
    for name in ("main", "extended", "diamond"):
        assert f"{tmp_path}/gpqa/gpqa_{name}.csv: no such file" in str(told.value)


def test_a_record_is_found_also_where_the_files_that_it_was_made_with_are_not(
    make_cell, session, tmp_path, monkeypatch
):
    """A clone holds records, and neither the data nor the model."""
    chosen = [f"task.sources.0.path={tmp_path}/train.jsonl", f"model.path={tmp_path}/model"]
    chosen += ["trainer.max_steps=1", "eval.datasets.0.limit=2", "eval.datasets.1.limit=2"]
    source = paths.data_file("pkg://osora_bench.toy/data/gsm8k/train.jsonl")
    model = paths.resolve("pkg://osora_bench.toy/model")
    shutil.copy(source, tmp_path / "train.jsonl")
    shutil.copytree(model, tmp_path / "model")
    cell = make_cell(*chosen)
    assert attempt(cell) == "done"
    (tmp_path / "train.jsonl").unlink()
    shutil.rmtree(tmp_path / "model")
    assert make_cell(*chosen) == cell
    assert make_cell(*chosen, f"ledger={tmp_path}/empty").run_id != cell.run_id
    with (tmp_path / "train.jsonl").open("w") as file:  # another file there is another cell
        file.write(source.read_text().partition("\n")[2])
    assert make_cell(*chosen).run_id != cell.run_id
