"""EVA's start on rows, against singular vectors in double precision."""

import pytest
import torch

from osora_bench.common.errors import UserError
from osora_bench.models import adapter_config
from osora_bench.pipeline import session as sessions

SHORT = ["trainer.max_steps=2", "eval.datasets.0.limit=4", "eval.datasets.1.limit=4"]


def test_a_starts_from_the_singular_vectors_of_the_layers_inputs(make_cell, session):
    cell = make_cell("method=eva", "method.rank=4", "task.max_rows=256", *SHORT)
    base = session.workspace.base(cell.config)
    inputs = []
    hook = base.model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(
        lambda _, given: inputs.append(given[0].detach())
    )
    batches = session._batches(cell, base)
    assert sum(len(batch["labels"]) for batch in batches) == sessions.START_ROWS
    with torch.no_grad():
        for batch in batches:
            base.model(**batch)
    hook.remove()
    learnt = [b["labels"] != -100 for b in batches]  # what the loss is on, as EVA's paper has it
    rows = torch.cat([x[m] for x, m in zip(inputs, learnt, strict=True)]).double()
    vectors = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False).Vh

    model = session._started(cell, base)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert not b.any()
    rank = len(a)
    unit = a.detach().double() / a.detach().double().norm(dim=1, keepdim=True)
    inside = (unit @ vectors[: 2 * rank].T).norm(dim=1)  # what lies in the leading directions

    assert rank > 0
    assert inside.min() > 0.9
    session.workspace.release(model)
    plain = session._started(make_cell("method=lora", *SHORT), session.workspace.base(cell.config))
    drawn = plain.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight
    drawn = drawn.detach().double()
    assert (drawn @ vectors[: 2 * rank].T).norm() / drawn.norm() < 0.5  # those of LoRA do not
    model = plain
    session.workspace.release(model)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("method.start_on_rows=nobody.start", "start_on_rows=nobody.start: no module 'nobody'"),
        ("method.start_on_rows=math.pi", "start_on_rows=math.pi is no function"),
    ],
)
def test_a_start_on_rows_that_is_none_is_told(make_cell, given, told):
    with pytest.raises(UserError, match=told):
        adapter_config.start_on_rows(make_cell("method=eva", given).config.method)
