"""Every cell of every experiment runs a step: the paper's on tiny random models of their family."""

import os
from collections import Counter
from functools import cache
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from osora_bench.benchdata.made_up import write_data
from osora_bench.cli.run import run_verb
from osora_bench.cli.smoke import make_up
from osora_bench.common import exits, paths
from osora_bench.common.errors import UserError
from osora_bench.planning import blank as planning_blank
from osora_bench.planning import grid
from osora_bench.planning.compose import composer
from osora_bench.planning.config import plain
from osora_bench.planning.experiments import load_experiment
from osora_bench.planning.identity import identity
from osora_bench.records import record
from osora_bench.reporting import render, tabulate
from osora_bench.sweep import run
from tests.conftest import QUICK
from tests.grids import cells_of, expansion_of

full_scale = cache(cells_of)
GRID = """\
title: T
seed: [0]
set: {task: toy, eval: toy}
blocks: [{model: [toy], method: [none]}]
"""
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
TUNED = [
    "smollm2-commonsense",
    "smollm2-rank",
    "smollm2-math",
    "smollm2-cloze",
    "smollm2-arithmetic",
    "llm-adapters",
]
SWEPT = [
    "smollm2-cloze-rank",
    "smollm2-cloze-rows",
    "smollm2-cloze-parameters",
    "smollm2-cloze-transfer",
    "smollm2-arithmetic-parameters",
]
"""Of the same kinds of cells; at smoke scale all numbers of training rows are one."""
PAPER = ["table1", "table2", "table3", "table3-clean", "table4", "table5", "table6", "figure3"]


@pytest.mark.long
def test_every_cell_of_the_demo_runs_a_step(places, session):
    cells = cells_of("demo", [*places, *QUICK, "trainer.max_steps=1"])
    assert run.run_missing(cells) == exits.OK
    for cell in cells:
        made = record.read_record(cell.record)
        assert made["training"] is None or made["training"]["steps"] == 1
    tables, damaged = tabulate.build_tables(load_experiment("demo"), cells)
    assert damaged == []
    assert "a limit cut the set" in render.markdown(tables[0])


@pytest.fixture(scope="module")
def smoke_places(tmp_path_factory):
    """One place for all experiments, so that the cells that they share run once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other
    yield [f"runs={tmp_path_factory.mktemp('smoke')}", "scale=smoke"]
    torch.set_num_threads(threads)


def smoke_cells(name, given, monkeypatch):
    """The cells of an experiment as the verbs plan them; what they set is put back afterwards."""
    monkeypatch.setenv("OSORA_DATA", "nowhere")
    make_up(load_experiment(name), given)
    return cells_of(name, given)


@pytest.mark.long
@pytest.mark.parametrize("name", PAPER)
def test_every_cell_of_the_paper_runs_at_smoke_scale(name, smoke_places, session, monkeypatch):
    cells = smoke_cells(name, smoke_places, monkeypatch)
    full = full_scale(name)
    assert run.run_missing(cells) == exits.OK
    assert [c.label for c in cells] == [c.label for c in full]
    for cell, real in zip(cells, full, strict=True):
        made = record.read_record(cell.record)
        assert made["training"]["steps"] == 1
        assert {s["n"] for s in made["scores"].values()} == {1}
        published = {d.name: d.questions for d in real.config.eval.datasets}
        assert {n: s["questions"] for n, s in made["scores"].items()} == published
        assert cell.run_id != real.run_id
        assert cell.config.method.peft == real.config.method.peft
        tiny = planning_blank.blank(cell.config.model)
        assert type(tiny).__name__ == FAMILIES[real.config.model.architecture["model_type"]]
        rate = real.config.trainer.learning_rate
        assert cell.config.trainer.learning_rate == rate
    strict, _ = tabulate.build_tables(load_experiment(name), cells)
    shown, _ = tabulate.build_tables(load_experiment(name), cells, others=True)
    for table, marked in zip(strict, shown, strict=True):
        scores = [c for c in table.numbers if c != "Params"]
        assert set(table.frame[scores].to_numpy().flatten()) <= {"", "-"}
        filled = Counter(t for t in marked.frame[scores].to_numpy().flatten() if t != "-")
        assert all(text.endswith("†") for text in filled), filled


@pytest.mark.long
@pytest.mark.parametrize("name", TUNED)
def test_an_experiment_that_chooses_its_rates_runs_at_smoke_scale(
    name, smoke_places, session, monkeypatch
):
    smoke_cells(name, smoke_places, monkeypatch)
    assert run.run_experiment(load_experiment(name), smoke_places) == exits.OK
    found = expansion_of(name, smoke_places)
    assert found.waiting == []
    chosen = [c for c in found.cells if c.config.tuning is not None]
    for cell in chosen:
        best = min(cell.config.tuning["tried"], key=lambda point: point["loss"])
        assert best["trainer.learning_rate"] == cell.config.trainer.learning_rate
    assert len(chosen) == len(expansion_of(name).waiting)
    tables, _ = tabulate.build_tables(load_experiment(name), found.cells, others=True)
    for table in tables:
        scores = [c for c in table.numbers if c != "Params"]
        assert "" not in set(table.frame[scores].to_numpy().flatten())


def test_smoke_composition_is_hydras_own(smoke_places, monkeypatch):
    cell = smoke_cells("table4", smoke_places, monkeypatch)[-1]
    with composer():
        own = hydra.compose("config", overrides=[*cell.overrides])
    assert OmegaConf.to_container(own, resolve=True, throw_on_missing=True) == plain(cell.config)


def test_planning_at_smoke_scale_writes_nothing_and_sets_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", "nowhere")
    environment = dict(os.environ)
    given = [f"runs={tmp_path}", "scale=smoke"]
    needed = grid.made_up(load_experiment("table4"), given)
    cells = cells_of("table4", given)
    assert [*tmp_path.iterdir()] == []
    assert dict(os.environ) == environment
    assert {Path(cell.config.model.path) for cell in cells} == {*needed.models}


def test_the_files_of_the_smoke_scale_are_written_and_named(tmp_path, monkeypatch):
    given = [f"runs={tmp_path}", "scale=smoke"]
    for cell in smoke_cells("table4", given, monkeypatch):
        assert (Path(cell.config.model.path) / "config.json").is_file()
        assert "absent:" not in str(identity(cell.config))
    assert paths.data_root() == tmp_path / "data"


def test_nothing_is_made_up_at_another_scale(tmp_path, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", "nowhere")
    make_up(load_experiment("table4"), [f"runs={tmp_path}"])
    make_up(load_experiment("table4"), [f"runs={tmp_path}", "scale=full"])
    assert [*tmp_path.iterdir()] == []
    assert os.environ["OSORA_DATA"] == "nowhere"


def test_a_setting_given_by_hand_wins_over_the_scale(smoke_places, monkeypatch):
    given = [*smoke_places, "trainer.max_steps=3"]
    cell = smoke_cells("table4", given, monkeypatch)[0]
    assert cell.config.trainer.max_steps == 3


def test_made_up_files_cover_every_file_of_tasks_and_suites(tmp_path, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path))
    write_data(tmp_path)
    for name in (*PAPER, *TUNED, *SWEPT):
        for cell in full_scale(name):
            needed = [f for d in cell.config.eval.datasets for f in d.files]
            needed += [f for s in cell.config.task.sources for f in (s.path, s.labels) if f]
            assert all(paths.data_file(f).is_file() for f in needed), needed


def test_an_experiment_that_is_edited_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path)
    for title in ("A", "B"):
        (tmp_path / "edited.yaml").write_text(GRID.replace("title: T", f"title: {title}"))
        experiment = load_experiment("edited")
        assert (experiment.title, experiment.seed) == (title, [0])
        experiment.seed.append(1)  # what a reader does with it is no other's


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: [", "experiments/wrong.yaml: while parsing"),
        ("title: T\nseed: [0]\n", "no blocks with a model and a method"),
        (f"{GRID}tables: {{t: {{layout: method, title: T}}}}\n", "Did you mean 'methods'"),
        (f"{GRID}tables: {{t: {{layout: methods, title: T, columns: [avg]}}}}\n", "unknown column"),
        (
            f"{GRID}tables: {{t: {{layout: methods, title: T, reference: table9}}}}\n",
            "unknown reference 'table9'",
        ),
        (f"{GRID}tables: {{t: {{layout: against, title: T, baseline: x}}}}\n", "unknown baseline"),
        (f"{GRID}figures: {{f: {{kind: bar, title: T}}}}\n", "Did you mean 'bars'"),
    ],
)
def test_a_mistake_in_an_experiment_is_told_before_anything_runs(
    text, message, tmp_path, monkeypatch, places
):
    (tmp_path / "wrong.yaml").write_text(text)
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(run, "run_missing", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(UserError, match=message):
        run_verb(["experiment=wrong", *places])
