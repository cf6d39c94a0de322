"""Starts of PEFT's own: done and coming back from the folder, or refused."""

import pytest

from osora_bench.common.errors import UserError
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from tests.conftest import QUICK
from tests.more_methods import LAYERS, RANK, add_method, more_methods, started  # noqa: F401

pytestmark = pytest.mark.usefixtures("more_methods")


@pytest.mark.parametrize("how", ["lora_ga", "eva", "corda"])
def test_a_start_whose_data_step_is_missing_is_refused(make_cell, how):
    add_method("one", started(how))
    with pytest.raises(UserError, match=f"init_lora_weights={how} starts from .* plain LoRA"):
        preflight.check_cells([make_cell("method=one", *QUICK)])


@pytest.mark.parametrize("how", ["pissa_niter_4", "pissa_niter_16"])
def test_a_start_that_draws_what_it_takes_off_the_base_is_refused(make_cell, how):
    add_method("one", started(how))
    with pytest.raises(UserError, match=f"init_lora_weights={how} draws .* method=pissa"):
        preflight.check_cells([make_cell("method=one", *QUICK)])


@pytest.mark.long
@pytest.mark.parametrize("how", ["pissa", "olora", "orthogonal", "gaussian", "mica"])
def test_what_comes_back_from_the_folder_is_let_through(make_cell, session, how):
    add_method("one", started(how))
    cell = make_cell("method=one", *QUICK)
    preflight.check_cells([cell])
    assert attempt(cell) == "done"


@pytest.mark.parametrize("name", ["niter", "drawn"])
def test_an_adapter_that_is_not_what_was_trained_leaves_no_record(
    make_cell, session, monkeypatch, name
):
    """Whatever is not refused by name: PEFT's own start, and one that a package brings."""
    if name == "niter":
        add_method("one", started("pissa_niter_4"))
    else:
        from peft.tuners.lora import layer

        def draw(self, adapter, weights):
            self.get_base_layer().weight.data.normal_(std=0.1)

        monkeypatch.setattr(layer.LoraLayer, "reset_lora_parameters", draw)
        add_method("one", ("LoraConfig", RANK, LAYERS))
    cell = make_cell("method=one", *QUICK)
    assert attempt(cell) == "failed"
    assert "method one: the adapter in" in cell.error
    assert "is not the model that was trained" in cell.error
    assert not cell.record.exists()
