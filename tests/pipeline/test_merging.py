"""eval.merge=true: the same model merged as unmerged, or refused before anything is trained."""

import pytest
import torch

from osora_bench.common.errors import UserError
from osora_bench.evaluation import evaluate
from osora_bench.models import merge_trial, merging
from osora_bench.models.trial import trial_losses
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.pipeline.session import Session
from tests.conftest import QUICK
from tests.more_methods import EVERY, SETTINGS, UNMERGEABLE, more_methods  # noqa: F401

MERGE = "eval.merge=true"
MERGED = [m for m in (*EVERY, *SETTINGS) if m not in UNMERGEABLE]
pytestmark = pytest.mark.usefixtures("more_methods")


@pytest.mark.parametrize("method", UNMERGEABLE)
def test_what_cannot_be_merged_is_refused_before_a_model_is_loaded(make_cell, method):
    asked = rf"method {method}: eval.merge=true: .* cannot be merged.*eval.merge=false evaluates"
    with pytest.raises(UserError, match=asked):
        preflight.check_cells([make_cell(f"method={method}", *QUICK, MERGE)])
    preflight.check_cells([make_cell(f"method={method}", *QUICK)])


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", MERGED)
def test_what_is_let_through_is_merged_into_the_same_model(make_cell, session, method, dtype):
    chosen = [*QUICK, "trainer.max_steps=8", MERGE, f"model.dtype={dtype}"]
    cell = make_cell(f"method={method}", *chosen)
    preflight.check_cells([cell])
    session.workspace.clear()
    session._check_merge(cell)
    model = session._started(cell, session.workspace.base(cell.config))
    model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    beside = trial_losses(model)
    with evaluate._merged(model, True):
        merged = trial_losses(model)
    session.workspace.release(model)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(merged, beside, **close)


@pytest.mark.parametrize("fault", ["twice", "not at all", "replicated"])
def test_a_merge_into_another_model_is_refused_before_training(
    make_cell, session, monkeypatch, fault
):
    """PEFT's own fault with replicated layers, and two of the kind that a package may bring."""
    from peft.tuners.lora.layer import Linear

    real = Linear.get_delta_weight
    method = "layer_replication" if fault == "replicated" else "lora"
    monkeypatch.setattr(merging, "tied_layers", lambda adapted: [])
    if fault != "replicated":
        times = 2 if fault == "twice" else 0
        monkeypatch.setattr(Linear, "get_delta_weight", lambda *a: times * real(*a))
    cell = make_cell(f"method={method}", *QUICK, MERGE)
    monkeypatch.setattr(session, "_merges", set())
    monkeypatch.setattr(session, "_train", lambda *a: pytest.fail("trained"))
    assert attempt(cell) == "failed"
    assert f"method {method}: eval.merge=true: PEFT merges it into another model" in cell.error


def test_the_trial_leaves_a_training_what_it_is(make_cell, session, tmp_path, monkeypatch):
    """The same adapter and scores as without the trial, on base weights as they were loaded."""
    monkeypatch.setattr(session, "_merges", set())
    first = session.run(make_cell("method=dora", *QUICK, MERGE))
    monkeypatch.setattr(Session, "_check_merge", lambda *a: None)
    places = [f"ledger={tmp_path}/2", f"runs={tmp_path}/2"]
    second = session.run(make_cell("method=dora", *QUICK, MERGE, *places))
    assert first["scores"] == second["scores"]
    assert first["training"] == second["training"]


def test_the_trial_is_made_once_for_a_model_and_method(make_cell, session, monkeypatch):
    made = []
    monkeypatch.setattr(session, "_merges", set())
    monkeypatch.setattr(merge_trial, "check_equal", lambda model, method: made.append(method))
    for method, seed in (("lora", 0), ("lora", 1), ("vera", 0)):
        session._check_merge(make_cell(f"method={method}", *QUICK, MERGE, f"seed={seed}"))
    session._check_merge(make_cell("method=dora", *QUICK))
    assert made == ["lora", "vera"]
