"""Choices at the end of what was tried: which are the last there is, which are marked."""

import pytest

from osora_bench.cli.main import main
from osora_bench.planning import bounds
from osora_bench.planning.experiments import load_experiment
from osora_bench.reporting import tabulate
from tests.grids import expansion_of
from tests.planning import test_tuning
from tests.planning.test_tuning import EXPERIMENT, with_loss

experiments = test_tuning.experiments

HEAD = "\n".join([*EXPERIMENT.splitlines()[:6], ""])
ENDS = (
    HEAD.replace("trainer.max_steps: 2", "trainer.max_steps: 2, trainer.micro_batch_size: 4")
    + """\
  - {model: [toy], method: [osora], extend: 1, tune: {method.rank: [8, 48]}}
  - {model: [toy], method: [lora], rank: [4], extend: 1, tune: {trainer.batch_size: [8, 12]}}
tables:
  tuned: {layout: tuning, title: Tuned, eval: none}
"""
)


def tried_all(experiment, places, loss_of):
    """Give every trial its loss until none is added; the expansion then."""
    done = set()
    while True:
        found = expansion_of(experiment, places)
        new = [c for c in found.cells if c.is_trial and c.run_id not in done]
        if not new:
            return found
        for trial in new:
            with_loss(trial, loss_of(trial.config))
            done.add(trial.run_id)


def smaller_for_larger(config):
    """Losses that fall with the setting that a block of ENDS tunes."""
    return 1 / (config.method.rank if config.method.name == "osora" else config.trainer.batch_size)


def test_a_value_that_the_model_or_the_configuration_refuses_ends_the_choice(experiments, places):
    text = (
        "\n".join(EXPERIMENT.splitlines()[:6])
        + """
  - {model: [toy], method: [osora], tune: {method.rank: [32, 64]}}
  - {model: [toy], method: [lora], rank: [4], tune: {trainer.batch_size: [16, 8]}}
tables:
  tuned: {layout: tuning, title: Tuned, eval: none}
"""
    )
    (experiments / "tuned.yaml").write_text(
        text.replace("trainer.max_steps: 2", "trainer.max_steps: 2, trainer.micro_batch_size: 8")
    )
    found = tried_all(
        "tuned",
        places,
        lambda config: (
            1 / config.method.rank if config.method.name == "osora" else config.trainer.batch_size
        ),
    )
    assert found.waiting == []
    chosen = {c.config.method.name: c.config for c in found.cells if not c.is_trial}
    assert (chosen["osora"].method.rank, chosen["lora"].trainer.batch_size) == (64, 8)
    assert "edge" not in chosen["osora"].tuning
    assert "edge" not in chosen["lora"].tuning
    told = [line for cell in found.cells for line in cell.ended]
    assert told == [
        "rank=64: the largest rank for osora here is 64",
        "batch_size=8: a batch is a multiple of trainer.micro_batch_size=8",
    ]
    table = tabulate.build_tables(load_experiment("tuned"), found.everything)[0][0]
    assert (
        "OSoRA r=64: chosen, the last there is: rank=64: the largest rank for osora here is 64."
        in (table.notes)
    )


def test_a_step_that_cannot_be_becomes_one_that_can(experiments, places, capsys):
    (experiments / "tuned.yaml").write_text(ENDS)
    found = tried_all("tuned", places, smaller_for_larger)
    chosen = {c.config.method.name: c.config for c in found.cells if not c.is_trial}
    assert chosen["osora"].method.rank == 64
    assert "edge" not in chosen["osora"].tuning
    assert chosen["lora"].trainer.batch_size == 16
    assert chosen["lora"].tuning["edge"] == ["trainer.batch_size"]
    assert main(["plan", "experiment=tuned", *places]) == 0
    told = capsys.readouterr().out
    assert "chosen, the last there is: rank=64: the largest rank for osora here is 64" in told
    assert "chosen, batch_size at the end of what was tried" in told


def test_a_refused_step_is_told_and_the_choice_is_marked(experiments, places, capsys, monkeypatch):
    """Where the configuration refuses what no bound that is known says."""
    monkeypatch.setattr(bounds, "IN_CONFIG", ())
    (experiments / "tuned.yaml").write_text(ENDS)
    found = tried_all("tuned", places, smaller_for_larger)
    chosen = {c.config.method.name: c.config for c in found.cells if not c.is_trial}
    assert chosen["lora"].trainer.batch_size == 12
    assert chosen["lora"].tuning["edge"] == ["trainer.batch_size"]
    refused = "batch_size=18: trainer.batch_size=18 is no multiple of trainer.micro_batch_size=4"
    table = tabulate.build_tables(load_experiment("tuned"), found.everything)[0][0]
    assert f"LoRA r=4: next, but refused: {refused}." in table.notes
    assert any("at the end of what was tried (batch_size: LoRA r=4" in n for n in table.notes)
    assert main(["plan", "experiment=tuned", *places]) == 0
    told = f"batch_size at the end of what was tried  (next, but refused: {refused})"
    assert told in capsys.readouterr().out


def test_the_models_layers_are_asked_only_for_a_rank_that_is_tuned(
    experiments, places, monkeypatch
):
    monkeypatch.setattr(bounds, "largest_rank", lambda cfg: pytest.fail("it was asked"))
    block = "{model: [toy], method: [lora], rank: [4], tune: {method.peft.lora_alpha: [8, 16]}}"
    (experiments / "tuned.yaml").write_text(f"{HEAD}  - {block}\n")
    found = tried_all("tuned", places, lambda config: 1 / config.method.peft["lora_alpha"])
    (trial,) = [c for c in found.cells if c.edges]
    assert (trial.tries, trial.edges, trial.ended) == (("lora_alpha=64",), ("lora_alpha",), ())


def test_a_choice_at_the_end_is_marked_in_the_plan_and_the_tuning_table(
    experiments, places, capsys
):
    (experiments / "tuned.yaml").write_text(
        EXPERIMENT + "tables:\n  rates: {layout: tuning, title: Rates, eval: none}\n"
    )
    tried_all("tuned", places, lambda config: config.trainer.learning_rate)
    assert main(["plan", "experiment=tuned", *places]) == 0
    assert "chosen, rate at the end of what was tried" in capsys.readouterr().out
    assert main(["tables", "experiment=tuned", f"out={experiments}/made", *places]) == 0
    told = capsys.readouterr().out
    assert "**0.0010**‡" in told or "**0.0010‡**" in told
    assert "‡: chosen at the end of what was tried (rate: LoRA r=4)" in told
