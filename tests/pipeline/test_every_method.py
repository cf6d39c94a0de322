"""Every file of conf/method that puts an adapter on a model: trained, changed, saved, come back."""

import pytest
import torch

from osora_bench.evaluation import evaluate
from osora_bench.models.adapters import with_saved_adapter
from osora_bench.models.trial import plain_losses
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.pipeline.session import Session
from osora_bench.records import record
from tests.more_methods import EVERY

TEXT = [5, 9, 13, 21, 33, 7, 8, 30, 11]
SMALL = [
    "trainer.max_steps=2", "trainer.batch_size=8", "trainer.micro_batch_size=8", "eval.limit=2",
]  # fmt: skip
PEFT_SAVES_LESS = ("adalora", "cpt")
"""AdaLoRA the ranks that it kept alone (fewer zeros in its sums), CPT the sum of its embeddings."""


def losses(model):
    model.eval()
    return plain_losses(model, TEXT)


@pytest.fixture
def seen(monkeypatch):
    """The losses of a text by a cell's model: before its training, and where it is evaluated."""
    found = []
    trained, evaluated = Session._train, evaluate.evaluate

    def train(self, cell, base, model, *others):
        found.append(losses(model))
        model.train()
        return trained(self, cell, base, model, *others)

    def score(model, *args, **kwargs):
        found.append(losses(model))
        return evaluated(model, *args, **kwargs)

    monkeypatch.setattr(Session, "_train", train)
    monkeypatch.setattr(evaluate, "evaluate", score)
    return found


@pytest.mark.long
@pytest.mark.parametrize("method", EVERY)
def test_a_method_trains_changes_the_model_and_comes_back_from_its_folder(
    method, make_cell, session, seen
):
    cell = make_cell(f"method={method}", *SMALL)
    preflight.check_cells([cell])
    assert attempt(cell) == "done", cell.error
    before, after = seen
    assert (after - before).abs().max() > 1e-4
    base = session.workspace.base(cell.config)
    saved = with_saved_adapter(base, cell.paths.adapter, cell.config)
    close = 1e-5 if method in PEFT_SAVES_LESS else 0
    torch.testing.assert_close(losses(saved), after, rtol=close, atol=close)
    session.workspace.release(saved)
    made = record.read_record(cell.record)
    assert made["parameters"]["trainable"] > 0
    assert [score["n"] for score in made["scores"].values()] == [2, 2]
