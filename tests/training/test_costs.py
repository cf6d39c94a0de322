"""What a cell's record says that its training cost."""

import json
import time

import pytest
import torch
from transformers import TrainerState

from osora_bench.common import interruption
from osora_bench.models import counting
from osora_bench.pipeline.attempt import attempt
from osora_bench.records import record
from osora_bench.training import checkpoint, train
from osora_bench.training import costs as costs_module
from osora_bench.training.costs import CostMeter, Meter
from tests.training.test_checkpoint import run_to_the_end, stop_at

SHORT = ["trainer.max_steps=3", "eval.datasets.0.limit=4", "eval.datasets.1.limit=4"]


def test_a_training_says_its_costs(make_cell, session):
    cell = make_cell("method=osora", "method.rank=16", *SHORT)
    session.run(cell)
    made = record.read_record(cell.record)
    costs = made["measured"]["training"]
    tokens = made["training"]["tokens"]
    assert costs["tokens_per_second"] == pytest.approx(tokens / costs["seconds"], rel=0.01)
    assert 0 < costs["seconds"] <= made["measured"]["seconds"]["train"]
    assert 0 < costs["start_seconds"] < made["measured"]["seconds"]["train"]
    assert costs["frozen_bytes"] == counting.count(cell.config).frozen_bytes
    assert 1e6 < costs["memory_bytes"] < made["measured"]["peak_memory_mb"] * 2**20
    again = make_cell("method=osora", "method.rank=16", *SHORT[:2], "eval.datasets.1.limit=3")
    session.run(again)  # trains nothing: the costs are those of the training that it takes over
    assert record.read_record(again.record)["measured"]["training"] == costs


def test_a_later_cell_does_not_inherit_an_earlier_ones_memory(make_cell, session):
    """One after another in a process, a long batch first."""
    large = make_cell(
        "method=lora", "trainer.batch_size=256", "trainer.micro_batch_size=256", *SHORT
    )
    small = make_cell("method=lora", "trainer.batch_size=4", "trainer.micro_batch_size=4", *SHORT)
    found = []
    for cell in (large, small):
        session.run(cell)
        found.append(json.loads(cell.record.read_text())["measured"]["training"]["memory_bytes"])
    assert found[1] < found[0] / 2


def small(*size):
    return torch.nn.Linear(*size, bias=False)


def test_frozen_bytes_are_what_was_added_and_is_not_trained():
    """Whether the base's own weights are trained or not."""
    for base_trains in (False, True):
        base = torch.nn.Sequential(small(3, 5))
        base.requires_grad_(base_trains)
        meter = CostMeter(base, torch.device("cpu"))

        def start(base=base):
            base.append(small(5, 7))  # trained
            base.append(small(7, 2).requires_grad_(False))
            return base

        assert meter.started(start) is base
        with meter.training():
            pass
        assert meter.costs()["frozen_bytes"] == 4 * 7 * 2
    meter = CostMeter(base, torch.device("cpu"))
    meter.started(lambda: base.requires_grad_(True))  # as with method=full
    assert meter.costs()["frozen_bytes"] == 0


class Clock:
    """A training loop in steps of known length; `Meter` reads `monotonic`."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(costs_module.time, "monotonic", lambda: self.now)

    def part(self, meter, state, seconds, tokens):
        meter.on_train_begin(None, state, None)
        self.now += seconds
        state.num_input_tokens_seen += tokens
        state.global_step += 1


def test_an_interrupted_training_costs_all_its_parts(monkeypatch, tmp_path):
    clock, place = Clock(monkeypatch), tmp_path / "trainer_state.json"
    first = Meter(lambda: 70)
    state = TrainerState(stateful_callbacks=[first])
    clock.part(first, state, 4.0, 100)
    state.stateful_callbacks["Meter"] = first.state()  # as the Trainer does in a checkpoint
    state.save_to_json(place)
    clock.now += 50  # nothing is trained
    second = Meter(lambda: 30)
    state = TrainerState.load_from_json(place)
    clock.part(second, state, 2.0, 60)
    second.on_train_end(None, state, None)
    assert (second.seconds, second.tokens, second.memory) == (6.0, 160, 70)
    # a checkpoint of before says nothing of its part
    state = TrainerState(global_step=3)
    third = Meter(lambda: 30)
    clock.part(third, state, 2.0, 60)
    third.on_train_end(None, state, None)
    assert (third.seconds, third.memory) == (None, 30)
    meter = CostMeter(torch.nn.Sequential(), torch.device("cpu"))
    meter.loop = third
    assert (meter.costs()["seconds"], meter.costs()["tokens_per_second"]) == (None, None)


def test_the_record_of_an_interrupted_cell_counts_both_parts(make_cell, session, monkeypatch):
    """Stopped after about a second of steps that are made to last."""
    cell = make_cell("method=lora", "trainer.max_steps=6", *SHORT[1:])
    stepped = train.WholeTrainer.training_step

    def slowly(self, *args, **kwargs):
        time.sleep(0.2)
        return stepped(self, *args, **kwargs)

    monkeypatch.setattr(train.WholeTrainer, "training_step", slowly)
    run_to_the_end(cell, monkeypatch, [4])
    made = record.read_record(cell.record)
    costs = made["measured"]["training"]
    assert made["measured"]["starts"] == 2
    assert costs["seconds"] > 6 * 0.2
    speed = made["training"]["tokens"] / costs["seconds"]
    assert costs["tokens_per_second"] == pytest.approx(speed, rel=0.01)


def test_a_checkpoint_that_kept_no_costs_leaves_seconds_blank(make_cell, session, monkeypatch):
    """One of an earlier release, from which training goes on to another checkpoint."""
    cell = make_cell("method=lora", "trainer.max_steps=6", *SHORT[1:])
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(interruption.Interrupted):
            attempt(cell)
    place = checkpoint.newest(cell.paths.trainer) / "trainer_state.json"
    state = json.loads(place.read_text())
    del state["stateful_callbacks"]["Meter"]
    place.write_text(json.dumps(state))
    checkpoint.seal(place.parent)
    run_to_the_end(cell, monkeypatch, [4])
    made = record.read_record(cell.record)
    assert made["measured"]["starts"] == 3
    costs = made["measured"]["training"]
    assert (costs["seconds"], costs["tokens_per_second"]) == (None, None)
    assert costs["memory_bytes"] > 0
