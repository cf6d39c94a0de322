"""What a cell's record says that its training cost."""

import json

import pytest

from osora_bench.models import counting
from osora_bench.records import record

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
    assert 1 < costs["memory_mb"] < made["measured"]["peak_memory_mb"]
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
        found.append(json.loads(cell.record.read_text())["measured"]["training"]["memory_mb"])
    assert found[1] < found[0] / 2
