"""What a training forgets: the loss on plain text before and after, token by token."""

import math

import pytest
import torch

from osora_bench.common.errors import UserError
from osora_bench.common.paths import resolve
from osora_bench.records import record
from osora_bench.toy import pretrain
from osora_bench.training import retention

TEXT = "pkg://osora_bench.toy/pretraining.txt"
SHORT = ["trainer.max_steps=3", "eval.datasets.0.limit=4", "eval.datasets.1.limit=4"]


def test_the_toys_text_is_what_it_was_trained_on():
    assert resolve(TEXT).read_text() == pretrain.sample_text()


def test_a_record_says_the_loss_before_and_after(make_cell, session, monkeypatch):
    cells = [
        make_cell(f"method={method}", f"task.retained={TEXT}", *SHORT)
        for method in ("lora", "osora")
    ]
    found, read = [], []
    pieces = retention.pieces
    monkeypatch.setattr(retention, "pieces", lambda *told: read.append(told) or pieces(*told))
    for cell in cells:
        session.run(cell)
        found.append(record.read_record(cell.record)["forgetting"])
    assert len(read) <= 1  # tokenised once for all cells that share it
    assert found[0]["before"] == found[1]["before"]
    assert found[0]["after"] != found[1]["after"]
    base = session.workspace.base(cells[0].config)
    texts = retention.pieces(cells[0].config.task, base.tokenizer)
    assert found[0]["tokens"] == sum(len(text) - 1 for text in texts)
    total = 0.0
    for text in texts:  # each token by itself, in double precision
        logits = base.model(torch.tensor([text])).logits[0].double()
        total -= sum(float(logits[i].detach().log_softmax(0)[t]) for i, t in enumerate(text[1:]))
    assert found[0]["before"] == pytest.approx(total / found[0]["tokens"], abs=2e-6)
    assert found[0]["before"] < 1.5 < math.log(922)  # it knows this text


def test_without_a_text_nothing_is_said_and_the_run_id_stays(make_cell, session):
    plain, asked = make_cell(*SHORT), make_cell(f"task.retained={TEXT}", *SHORT)
    assert plain.run_id != asked.run_id
    session.run(plain)
    assert "forgetting" not in record.read_record(plain.record)


@pytest.mark.parametrize(("text", "told"), [(None, "no such file"), ("", "holds no text")])
def test_a_text_that_is_none_is_told(make_cell, session, tmp_path, text, told):
    if text is not None:
        (tmp_path / "text.txt").write_text(text)
    task = make_cell(f"task.retained={tmp_path}/text.txt").config.task
    with pytest.raises(UserError, match=told):
        retention.pieces(task, session.workspace.base(make_cell().config).tokenizer)


def test_long_paragraphs_are_cut_and_no_more_than_needed_is_read(make_cell, session, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(["add " * 600] * 100))
    task = make_cell(f"task.retained={tmp_path}/text.txt").config.task
    tokenizer = session.workspace.base(make_cell().config).tokenizer
    lengths = [len(piece) for piece in retention.pieces(task, tokenizer)]
    assert len(lengths) == retention.PIECES
    assert max(lengths) == retention.LONGEST
