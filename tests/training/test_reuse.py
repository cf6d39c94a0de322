"""One training, several suites: the second cell's record is what it would be by itself."""

import json

import peft
import pytest
import torch

from osora_bench.pipeline.attempt import attempt
from osora_bench.records import record
from osora_bench.training import reuse, train
from tests.pipeline.test_session import numbers

STEPS = ["trainer.max_steps=3", "method.rank=4"]
FIRST = [*STEPS, "eval.datasets.0.limit=2", "eval.datasets.1.limit=2"]
SECOND = [*STEPS, "eval=toy-validation", "eval.limit=6"]
METHODS = ["lora", "pissa", "vera", "osora_g", "osora_dora"]


@pytest.fixture
def trainings(monkeypatch):
    """Labels of the cells that really trained."""
    seen = []
    real = train.train

    def counted(model, setup):
        seen.append(setup.label)
        return real(model, setup)

    monkeypatch.setattr(train, "train", counted)
    return seen


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_a_second_suite_trains_nothing_and_records_the_same(
    method, make_cell, session, tmp_path, trainings
):
    alone = make_cell(f"method={method}", *SECOND, f"runs={tmp_path}/x", f"ledger={tmp_path}/x/l")
    first, second = (make_cell(f"method={method}", *chosen) for chosen in (FIRST, SECOND))
    assert first.run_id != second.run_id
    assert first.training_id == second.training_id
    for cell in (alone, first, second):
        assert attempt(cell) == "done"
    assert len(trainings) == 2  # alone, and first
    assert numbers(second) == numbers(alone)
    taken, own = (peft.load_peft_weights(str(c.paths.adapter)) for c in (second, alone))
    assert all(torch.equal(taken[name], own[name]) for name in own)
    assert record.read_record(second.record)["measured"]["seconds"]["train"] > 0


def test_a_method_that_saves_less_than_it_learns_trains_again(
    make_cell, session, trainings, capsys
):
    """AdaLoRA counts its ranks in a tensor that PEFT does not save."""
    schedule = {"init_r": "${method.rank}", "target_r": 2, "total_step": 3}
    schedule |= dict.fromkeys(("tinit", "tfinal", "deltaT"), 1)
    adalora = ["method=lora", "method.peft._target_=peft.AdaLoraConfig", "~method.peft.r"]
    adalora += ["~method.peft.lora_alpha", *(f"+method.peft.{k}={v}" for k, v in schedule.items())]
    first, second = (make_cell(*chosen, *adalora) for chosen in (FIRST, SECOND))
    assert [attempt(first), attempt(second)] == ["done", "done"]
    assert len(trainings) == 2
    assert "trained before, but not to be had from its adapter" in capsys.readouterr().out
    one, two = (record.read_record(c.record)["training"] for c in (first, second))
    assert one == two


@pytest.mark.parametrize("harm", ["adapter", "versions", "code"])
def test_what_is_not_the_same_any_more_is_trained_again(harm, make_cell, session, trainings):
    first, second = make_cell("method=osora", *FIRST), make_cell("method=osora", *SECOND)
    assert attempt(first) == "done"
    note = first.paths.trained(first.training_id) / f"{first.run_id}.json"
    if harm == "adapter":
        file = first.paths.adapter / "adapter_model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif harm == "versions":
        told = json.loads(note.read_text())
        told["provenance"]["versions"]["torch"] = "2.0"
        note.write_text(json.dumps(told))
    else:
        told = json.loads(note.read_text())
        told["provenance"]["code"]["commit"] = "0" * 40
        note.write_text(json.dumps(told))
    assert attempt(second) == "done"
    assert len(trainings) == 2


def test_the_loss_on_held_out_rows_is_that_of_each_row_by_itself(make_cell, session):
    """Independently: one row at a time, logits in float64; no row of it was trained on."""
    cell = make_cell(
        "method=lora", "eval=none", "task.validation_rows=20", "task.max_rows=64", *STEPS
    )
    assert attempt(cell) == "done"
    told = record.read_record(cell.record)["training"]["validation"]
    assert record.read_record(cell.record)["scores"] == {}
    base = session.workspace.base(cell.config)
    rows = session.held_out(cell, base.tokenizer).rows
    assert told["rows"] == len(rows) == 20
    trained_on = session.tokenised(cell, base.tokenizer).rows
    assert not [r for r in rows if r in trained_on]
    model = peft.PeftModel.from_pretrained(base.model, str(cell.paths.adapter))
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids, labels = (torch.tensor([row[k]]) for k in ("input_ids", "labels"))
            logits = model(input_ids=ids).logits[0, :-1].double()
            learnt = labels[0, 1:] != -100
            picked = torch.log_softmax(logits, -1)[learnt, labels[0, 1:][learnt]]
            total, tokens = total - float(picked.sum()), tokens + int(learnt.sum())
    session.workspace.release(model)
    assert told["tokens"] == tokens
    assert told["loss"] == pytest.approx(total / tokens, abs=2e-5)


def test_a_suite_without_sets_needs_held_out_rows(make_cell):
    with pytest.raises(Exception, match="no set to score; name one in eval.datasets"):
        make_cell("method=lora", "eval=none")


def test_a_damaged_note_is_passed_over(make_cell, capsys):
    cell = make_cell(*FIRST)
    place = cell.paths.trained(cell.training_id) / "0123456789ab.json"
    place.parent.mkdir(parents=True)
    place.write_text('{"files": ')
    assert reuse.find_training(cell, {}) is None
    assert f"{place}: damaged, passed over" in capsys.readouterr().out
