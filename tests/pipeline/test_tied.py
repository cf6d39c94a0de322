"""Layers that share their weight with the embeddings: nothing is written into it."""

import pytest
import torch

from osora_bench.common.errors import UserError
from osora_bench.models import counting, skeleton
from osora_bench.models.base import Workspace
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.pipeline.session import Session
from osora_bench.planning import blank as planning_blank
from osora_bench.records import record
from tests.conftest import QUICK
from tests.more_methods import add_method, more_methods, started  # noqa: F401

TIED = "model.target_modules=[q_proj,lm_head]"
OWN = "model.target_modules=[q_proj,v_proj]"


@pytest.mark.parametrize("method", ["lora", "dora", "vera"])
def test_merging_into_a_tied_weight_is_refused(make_cell, session, method):
    cell = make_cell(f"method={method}", "method.rank=4", *QUICK, TIED, "eval.merge=true")
    with pytest.raises(UserError, match="cannot be merged: another module reads .*lm_head"):
        preflight.check_cells([cell])
    assert attempt(cell) == "failed"  # also where nothing has looked before
    assert "cannot be merged" in cell.error


@pytest.mark.usefixtures("more_methods")
@pytest.mark.parametrize("method", ["pissa", "peft", "olora"])
def test_a_start_that_writes_into_a_tied_weight_is_refused(make_cell, method):
    if method != "pissa":
        add_method(method, started("pissa" if method == "peft" else method))
    chosen = [f"method={method}", "method.rank=4", *QUICK]
    with pytest.raises(UserError, match="start takes a part off the weight of .*lm_head"):
        preflight.check_cells([make_cell(*chosen, TIED)])
    preflight.check_cells([make_cell(*chosen, OWN)])


def test_what_writes_into_no_tied_weight_is_let_through(make_cell, session):
    cell = make_cell("method=lora", *QUICK, TIED)
    preflight.check_cells([cell, make_cell("method=lora", *QUICK, OWN, "eval.merge=true")])
    assert attempt(cell) == "done"
    assert record.read_record(cell.record)["training"]["steps"] == 2


def test_tied_layers_are_seen_without_weights_and_with_them(make_cell):
    for modules, found in ((TIED, ["base_model.model.lm_head"]), (OWN, [])):
        cell = make_cell("method=lora", modules)
        blank = counting.adapt(cell.config, planning_blank.blank(cell.config.model))
        assert skeleton.tied_layers(blank) == found
        model = Session()._started(cell, Workspace().base(cell.config))
        assert skeleton.tied_layers(model) == found
        assert isinstance(model, torch.nn.Module)
