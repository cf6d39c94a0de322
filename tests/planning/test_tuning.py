"""Learning rates that an experiment chooses: which cells try them, who waits, what is taken."""

import re

import pytest

from osora_bench.cli.main import main
from osora_bench.common import exits, paths
from osora_bench.common.errors import UserError
from osora_bench.planning import grid
from osora_bench.planning.config import plain
from osora_bench.planning.experiments import load_experiment
from osora_bench.records import record
from osora_bench.sweep import run
from osora_bench.training.callbacks import Diverged
from tests.grids import cells_of, expansion_of

EXPERIMENT = """\
title: Tuned
seed: [3, 4]
set: {task: toy, eval: toy, task.validation_rows: 8, trainer.max_steps: 2, eval.limit: 4}
full: {trainer.max_steps: 5, eval.limit: null}
blocks:
  - {model: [toy], method: [none]}
  - {model: [toy], method: [lora], rank: [4], rates: [0.1, 1e-3, 1e-2], extend: 0}
  - model: [toy]
    method: [lora]
    rank: [4]
    rates: [0.1, 1e-3, 1e-2]
    extend: 0
    set: {eval: toy-validation}
"""
SCHEDULES = "tune: {trainer.schedule: [linear, cosine]}"
RANKS = """\
title: Ranks at the rate of another experiment
seed: [0]
include:
  - {experiment: tuned, method: [lora], rank: [2, 8], seed: [7]}
"""


@pytest.fixture
def experiments(tmp_path, monkeypatch):
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "tuned.yaml").write_text(EXPERIMENT)
    (folder / "ranks.yaml").write_text(RANKS)
    monkeypatch.setattr(paths, "EXPERIMENTS", folder)
    return folder


def told(cell):
    config = cell.config
    rate = config.trainer.learning_rate
    return config.eval.name, config.method.rank, config.seed, rate


def with_loss(trial, loss):
    validation = {"rows": 8, "tokens": 16, "loss": loss}
    made = {
        "run_id": trial.run_id,
        "config": plain(trial.config),
        "provenance": {},
        "parameters": {},
        "training": {"validation": validation},
        "scores": {},
        "measured": {"seconds": {"train": 1.0, "total": 2.0}, "peak_memory_mb": 1000},
    }
    record.write_record(made, trial.ledger)


def test_adaloras_first_ranks_follow_the_one_that_is_tuned(experiments, places):
    """At its own rank they are what they were as a number, and so the run id is."""
    (experiments / "adalora.yaml").write_text(
        "title: t\nseed: [0]\nset: {task.validation_rows: 8}\n"
        "blocks: [{model: [toy], method: [adalora], tune: {method.rank: [8, 16, 33]}}]\n"
    )
    found = expansion_of("adalora", places)
    settings = [cell.config.method.peft for cell in found.cells]
    assert [(s["target_r"], s["init_r"]) for s in settings] == [(8, 12), (16, 24), (33, 50)]
    as_number = expansion_of("adalora", [*places, "method.peft.init_r=24"])
    assert as_number.cells[1].run_id == found.cells[1].run_id


def test_rates_are_tried_once_and_the_rest_waits(experiments, places):
    found = expansion_of("tuned", places)
    assert [told(c) for c in found.cells[1:]] == [
        ("none", 4, 3, 0.1),
        ("none", 4, 3, 1e-3),
        ("none", 4, 3, 1e-2),
    ]
    assert [told(w.cell)[:3] for w in found.waiting] == [
        ("toy", 4, 3),
        ("toy", 4, 4),
        ("toy-validation", 4, 3),
        ("toy-validation", 4, 4),
    ]
    assert [t.run_id for t in found.waiting[0].trials] == [c.run_id for c in found.cells[1:]]
    for trial, loss in zip(found.cells[1:], (2.0, 0.5), strict=False):  # one is missing
        with_loss(trial, loss)
    assert len(expansion_of("tuned", places).waiting) == 4


def test_the_lowest_loss_is_taken_and_the_record_says_what_was_tried(experiments, places):
    trials = expansion_of("tuned", places).cells[1:]
    for trial, loss in zip(trials, (2.0, 0.5, 0.7), strict=True):
        with_loss(trial, loss)
    found = expansion_of("tuned", places)
    assert found.waiting == []
    chosen = found.cells[4:]
    assert [told(c) for c in chosen] == [
        ("toy", 4, 3, 1e-3),
        ("toy", 4, 4, 1e-3),
        ("toy-validation", 4, 3, 1e-3),
        ("toy-validation", 4, 4, 1e-3),
    ]
    for cell in chosen:
        assert cell.config.tuning == {
            "tried": [
                {"trainer.learning_rate": rate, "loss": loss, "run": trial.run_id}
                for rate, loss, trial in zip(
                    (0.1, 1e-3, 1e-2), (2.0, 0.5, 0.7), trials, strict=True
                )
            ],
            "edge": ["trainer.learning_rate"],
        }
    # the first seed's run is the trial, but for what is asked of it
    assert chosen[0].training_id == trials[1].training_id


def test_an_include_takes_the_rates_for_ranks_and_seeds_of_its_own(experiments, places):
    trials = expansion_of("tuned", places).cells[1:]
    found = expansion_of("ranks", places)
    assert [c.run_id for c in found.cells] == [t.run_id for t in trials]
    assert {told(w.cell)[1:3] for w in found.waiting} == {(2, 7), (8, 7)}
    for trial, loss in zip(trials, (2.0, 0.5, 0.7), strict=True):
        with_loss(trial, loss)
    chosen = cells_of("ranks", places)[3:]
    assert {told(c)[1:] for c in chosen} == {(2, 7, 1e-3), (8, 7, 1e-3)}


def test_rates_chosen_at_several_ranks_cannot_be_taken_over(experiments):
    text = EXPERIMENT.replace("rank: [4]", "rank: [4, 8]")
    (experiments / "tuned.yaml").write_text(text)
    with pytest.raises(UserError, match=r"settings are chosen at one rank .* has \[4, 8\]"):
        expansion_of("ranks")


def test_scale_full_adds_what_the_experiment_says_of_it(experiments, places):
    as_it_stands, full = (cells_of("tuned", [*places, *more]) for more in ([], ["scale=full"]))
    assert [c.config.trainer.max_steps for c in (as_it_stands[1], full[1])] == [2, 5]
    assert [c.config.eval.limit for c in (as_it_stands[0], full[0])] == [4, None]
    inherited = expansion_of("ranks", [*places, "scale=full"]).waiting
    assert {w.cell.config.trainer.max_steps for w in inherited} == {5}


def test_a_choice_at_the_end_of_a_grid_waits_for_the_next_value(experiments, places):
    text = EXPERIMENT.replace("extend: 0", "extend: 1")
    (experiments / "tuned.yaml").write_text(text)
    trials = expansion_of("tuned", places).cells[1:]
    for trial, loss in zip(trials, (2.0, 0.5, 0.7), strict=True):
        with_loss(trial, loss)
    found = expansion_of("tuned", places)
    assert [told(c)[-1] for c in found.cells[1:]] == [0.1, 1e-3, 1e-2, 1e-4]
    assert found.waiting[0].why == "for the choice of one of 4 learning rates, 1 not tried yet"
    with_loss(found.cells[4], 0.4)
    chosen = expansion_of("tuned", places)
    assert chosen.waiting == []
    assert {told(c)[-1] for c in chosen.cells[5:]} == {1e-4}
    assert [t["loss"] for t in chosen.cells[5].config.tuning["tried"]] == [2.0, 0.5, 0.7, 0.4]


def test_any_key_of_trainer_and_method_is_tuned(experiments, places):
    text = EXPERIMENT.replace(
        "rates: [0.1, 1e-3, 1e-2]",
        "tune: {method.peft.lora_alpha: [4, 8], trainer.batch_size: [32, 64]}",
    )
    (experiments / "tuned.yaml").write_text(text)
    trials = expansion_of("tuned", places).cells[1:]
    tried = [(c.config.method.peft["lora_alpha"], c.config.trainer.batch_size) for c in trials]
    assert tried == [(4, 32), (4, 64), (8, 32), (8, 64)]
    assert trials[1].label == "toy lora r=4 seed=3 lora_alpha=4 batch_size=64"
    assert len({trial.run_id for trial in trials}) == 4
    waiting = expansion_of("tuned", places).waiting[0]
    assert waiting.why == "for the choice of one of 4 settings, 4 not tried yet"
    for trial, loss in zip(trials, (2.0, 0.5, 0.7, 0.9), strict=True):
        with_loss(trial, loss)
    chosen = expansion_of("tuned", places).cells[5].config
    assert (chosen.method.peft["lora_alpha"], chosen.trainer.batch_size) == (4, 64)


def test_lists_that_do_not_grow_are_told_by_the_plan(experiments, places, capsys):
    text = EXPERIMENT.replace(
        "rates: [0.1, 1e-3, 1e-2]", "tune: {trainer.schedule: [linear, cosine]}"
    )
    (experiments / "tuned.yaml").write_text(text)
    assert main(["plan", "experiment=tuned", *places]) == 0
    told = "trainer.schedule: ['linear', 'cosine'] is not extended where the best is at its end"
    assert capsys.readouterr().out.count(told) == 1


def test_an_untrained_model_has_no_settings_to_choose(experiments, places):
    text = EXPERIMENT.replace("method: [none]}", "method: [none], rates: [1e-3, 1e-2]}")
    (experiments / "tuned.yaml").write_text(text)
    with pytest.raises(UserError, match="toy none: it trains nothing, there is no choice"):
        expansion_of("tuned", places)


def test_a_whole_number_among_rates_is_the_same_cell_as_its_float(experiments, places):
    run_ids = []
    for given in ("[0.5, 1]", "[0.5, 1.0]"):
        text = EXPERIMENT.replace(
            "rates: [0.1, 1e-3, 1e-2]", f"tune: {{trainer.learning_rate: {given}}}"
        )
        (experiments / "tuned.yaml").write_text(text)
        run_ids.append([c.run_id for c in expansion_of("tuned", places).cells])
    assert run_ids[0] == run_ids[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tune: {trainer.learning_rat: [1e-3]}", "unknown key .*Did you mean .*learning_rate"),
        ("tune: {trainer.batch_size: [many]}", "trainer.batch_size takes a whole number"),
        ("tune: {model.dtype: [float32]}", "cannot be tuned, only trainer"),
        ("draws: 3", "nothing to draw from"),
        ("rates: [1e-3, 1e-2], extend: -1", "extend=-1: a whole number of at least 0"),
        ("rates: [1e-3, 1e-2], extend: 0.5", "extend"),
        ("rates: [1e-3, a]", "rates"),
        ("tune: {trainer.learning_rate: {low: a, high: 1}}, draws: 2", "low and high are numbers"),
        ("rates: [1e-3], tune: {trainer.learning_rate: [1e-3]}", "both name"),
    ],
)
def test_what_cannot_be_tuned_is_told(experiments, places, given, message):
    text = EXPERIMENT.replace("rates: [0.1, 1e-3, 1e-2], extend: 0", given)
    (experiments / "tuned.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        expansion_of("tuned", places)


@pytest.mark.parametrize("override", ["trainer.learning_rate=1e-4", "+trainer.learning_rate=1e-4"])
def test_what_the_experiment_chooses_cannot_be_given(experiments, places, override):
    with pytest.raises(UserError, match="chooses trainer.learning_rate by the loss"):
        expansion_of("tuned", [*places, override])


def test_what_it_does_not_choose_can(experiments, places):
    cells = expansion_of("tuned", [*places, "trainer.max_steps=1"]).everything
    assert {cell.config.trainer.max_steps for cell in cells} == {1}


@pytest.mark.long
def test_one_run_tries_chooses_and_goes_on(experiments, places, session, capsys):
    assert run.run_experiment(load_experiment("tuned"), places) == exits.OK
    found = expansion_of("tuned", places)
    assert found.waiting == []
    assert {c.state for c in found.cells} == {"done"}
    lines = capsys.readouterr().out
    assert "4 cells wait for the choice of their settings" in lines
    trials, first = found.cells[1:4], found.cells[4]
    losses = {grid.validation_loss(t): t for t in trials}
    best = losses[min(losses)]
    trained, tried = (record.read_record(c.record)["training"] for c in (first, best))
    assert trained == tried


def diverging(session, monkeypatch, rates):
    """Let cells of some rates diverge; the rates of all that are begun."""
    whole, begun = session._run, []

    def run_one(cell, tracker):
        rate = cell.config.trainer.learning_rate
        begun.append(rate)
        if cell.config.trains and rate in rates:
            raise Diverged("the loss is nan at step 1 of 2")
        return whole(cell, tracker)

    monkeypatch.setattr(session, "_run", run_one)
    return begun


@pytest.mark.long
def test_a_rate_that_diverges_has_a_record_and_is_not_taken(
    experiments, places, session, monkeypatch, capsys
):
    diverging(session, monkeypatch, {0.1})
    assert run.run_experiment(load_experiment("tuned"), places) == exits.OK
    assert "rate=0.1: diverged, the loss is nan at step 1 of 2" in capsys.readouterr().out
    found = expansion_of("tuned", places)
    chosen = record.read_record(found.cells[4].record)["config"]
    tried = {t["trainer.learning_rate"]: t["loss"] for t in chosen["tuning"]["tried"]}
    assert tried[0.1] is None
    assert tried[1e-3] > 0
    assert chosen["trainer"]["learning_rate"] in (1e-3, 1e-2)
    (experiments / "tuned.yaml").write_text(
        EXPERIMENT + "tables:\n  rates: {layout: tuning, title: Rates, eval: none}\n"
        "  all: {layout: methods, title: All, params: true}\n"
    )
    assert main(["tables", "experiment=tuned", f"out={experiments}/made", *places]) == 0
    assert re.search(r"\| LoRA, r = 4 \| \*?\*?[\d.]+.* \| diverged \|", capsys.readouterr().out)


def test_a_diverged_cell_that_is_to_be_scored_has_failed(make_cell, session, monkeypatch):
    cell = make_cell("trainer.max_steps=2")
    diverging(session, monkeypatch, {cell.config.trainer.learning_rate})
    assert run.run_missing([cell]) == exits.FAILED
    assert cell.error == "Diverged: the loss is nan at step 1 of 2"


def test_where_every_rate_diverges_the_rest_is_told_to_wait(
    experiments, places, session, monkeypatch, capsys
):
    diverging(session, monkeypatch, {0.1, 1e-3, 1e-2})
    assert run.run_experiment(load_experiment("tuned"), places) == exits.FAILED
    told = capsys.readouterr().out
    assert told.count(": all 3 learning rates that were tried diverged: name smaller ones") == 4
    assert "8 cells: 4 done, 4 waiting" in told


@pytest.mark.long
def test_a_trial_that_fails_is_tried_once_a_start(
    experiments, places, session, monkeypatch, capsys
):
    """Its method waits, with a word on why; another start tries it again."""
    (experiments / "tuned.yaml").write_text(
        EXPERIMENT
        + "  - {model: [toy], method: [osora], rank: [4], rates: [0.2, 0.3], extend: 0}\n"
    )
    whole, begun = session._run, []

    def run_one(cell, tracker):
        begun.append(cell.config.trainer.learning_rate)
        if begun[-1] == 0.1:
            raise RuntimeError("a broken disk")
        return whole(cell, tracker)

    monkeypatch.setattr(session, "_run", run_one)
    for start in (1, 2):
        assert run.run_experiment(load_experiment("tuned"), places) == exits.FAILED
        assert begun.count(0.1) == start
    told = capsys.readouterr().out
    assert "for the choice of one of 3 learning rates, 1 not tried yet" in told
    assert "12 cells: 7 done, 1 failed, 4 waiting" in told


def test_what_waits_is_checked_before_anything_runs(experiments, places, session):
    (experiments / "ranks.yaml").write_text(
        RANKS.replace("method: [lora]", "method: [osora]").replace("[2, 8]", "[2, 1000]")
    )
    (experiments / "tuned.yaml").write_text(EXPERIMENT.replace("lora", "osora"))
    with pytest.raises(UserError, match="rank 1000 is above"):
        run.run_experiment(load_experiment("ranks"), places)
    assert {c.state for c in expansion_of("ranks", places).cells} == {"missing"}
