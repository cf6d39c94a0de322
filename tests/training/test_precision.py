"""What a training leaves is numbers, in the precision that its record says."""

import pytest

from osora_bench.common.errors import UserError
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.training import callbacks
from tests.conftest import QUICK

HALF = "trainer.precision=float16"


@pytest.mark.parametrize("method", ["lora", "full", "vera"])
def test_float16_is_refused_without_a_gpu(make_cell, method):
    cell = make_cell(f"method={method}", *QUICK, HALF, "device=cpu")
    with pytest.raises(UserError, match="float16: needs a GPU, on a CPU it would be float32"):
        preflight.check_cells([cell])
    preflight.check_cells([cell], here=False)
    preflight.check_cells([make_cell("method=none", *QUICK, HALF, "device=cpu")])


def test_a_cell_that_was_planned_elsewhere_is_refused_too(make_cell, session):
    cell = make_cell("method=lora", *QUICK, HALF, "device=cpu")
    assert attempt(cell) == "failed"
    assert "trainer.precision=float16: needs a GPU" in cell.error


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("rate", ["1e30", "1e36"])
def test_weights_that_are_no_numbers_leave_no_record(make_cell, session, monkeypatch, method, rate):
    """Also where no guard has watched the steps, as none can with float16's scaling."""
    monkeypatch.setattr(callbacks.LossGuard, "on_log", lambda *_, **__: None)
    chosen = [f"trainer.learning_rate={rate}", "trainer.schedule=constant", "trainer.max_steps=6",
              "trainer.attention=sdpa"]  # plain products give gradients of zero there  # fmt: skip
    cell = make_cell(f"method={method}", *QUICK, *chosen)
    assert attempt(cell) == "failed"
    assert "NaN or infinite numbers" in cell.error
    assert not cell.record.exists()
