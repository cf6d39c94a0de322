"""A cell's scores are those of what it saved, evaluated from its folder."""

import json
from dataclasses import replace

import pytest
import torch

from osora_bench.cli.main import main
from osora_bench.evaluation import evaluate
from osora_bench.evaluation.decoder_support import supports
from osora_bench.models.adapters import with_saved_adapter
from osora_bench.models.base import Workspace
from osora_bench.models.trial import plain_losses
from osora_bench.records import record
from osora_bench.training import train
from tests.conftest import QUICK
from tests.more_methods import MORE, PAPER, more_methods  # noqa: F401

TEXT = [5, 9, 13, 21, 33, 7, 8, 30, 11]
SHORT = ["trainer.batch_size=8", "trainer.micro_batch_size=8", "trainer.max_steps=8"]
COUNT = "eval.datasets.2.questions=40"
SIQA = [
    "eval=commonsense-ppl", COUNT,
    "eval.without=[BoolQ,piqa,hellaswag,winogrande,ARC-e,ARC-c,openbookqa]",
]  # fmt: skip


@pytest.fixture
def siqa(tmp_path, monkeypatch):
    """Made-up questions in SIQA's files, each another one."""
    folder = tmp_path / "data" / "siqa"
    folder.mkdir(parents=True)
    rows = [
        {
            "context": f"Add {i} and {3 * i % 17}.",
            "question": f"What is {i % 7}?",
            **{
                f"answer{letter}": f"{i + step} {step * i % 23}"
                for step, letter in enumerate("ABC")
            },
        }
        for i in range(10, 50)
    ]
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{split}-labels.lst").write_text("".join(f"{i % 3 + 1}\n" for i in range(40)))
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))


def scored(session, cell, monkeypatch):
    """Run a cell; the losses of a text by the model that its scores are taken of, and whether
    that is answered in batches."""
    found = []
    real = evaluate.evaluate

    def watched(model, *args, **kwargs):
        model.eval()
        found.append((plain_losses(model, TEXT), supports(model)))
        return real(model, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", watched)
        session.run(cell)
    return found[0]


def from_folder(cell):
    """The same by what the cell left in its folder, on the base model as it is on disk."""
    cfg, folder = cell.config, cell.paths.adapter
    if cfg.method.full:
        model = replace(cfg.model, path=str(folder), revision=None)
        loaded = Workspace().base(replace(cfg, model=model)).model
    else:
        loaded = with_saved_adapter(Workspace().base(cfg), folder, cfg)
    loaded.eval()
    return plain_losses(loaded, TEXT), supports(loaded)


@pytest.mark.long
@pytest.mark.usefixtures("more_methods")
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", ["full", *PAPER, *MORE])
def test_what_is_scored_is_what_was_saved(session, make_cell, monkeypatch, method, precision):
    """To the last bit or two: MKL sums in an order that depends on where in memory a matrix begins,
    as was seen of PiSSA's on a processor of AVX2. Closely where PEFT saves less than it trains
    with: AdaLoRA the ranks that it kept alone (fewer zeros in its sums), CPT the sum of its two
    embeddings."""
    chosen = [*QUICK, *SHORT, f"trainer.precision={precision}"]
    cell = make_cell(f"method={method}", *chosen)
    (losses, batched), (saved, also) = scored(session, cell, monkeypatch), from_folder(cell)
    if method in ("adalora", "cpt"):
        torch.testing.assert_close(losses, saved, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(losses, saved, rtol=2.5e-7, atol=0)
    assert batched == also


@pytest.mark.long
@pytest.mark.usefixtures("siqa")
@pytest.mark.parametrize("method", ["lora", "full", "pissa"])
def test_perplexities_of_a_cell_are_those_of_its_folder(
    session, make_cell, tmp_path, capsys, method
):
    cell = make_cell(f"method={method}", *SHORT, "trainer.precision=bfloat16", *SIQA)
    made = session.run(cell)
    folder, place = str(cell.paths.adapter), tmp_path / "again"
    given = ["--model", folder] if method == "full" else ["--model", "toy", "--adapter", folder]
    told = ["--suite", "commonsense-ppl", "--sets", "siqa", "--output", str(place)]
    assert main(["evaluate", *given, *told, COUNT, f"runs={tmp_path}"]) == 0
    assert json.loads((place / "scores.json").read_text())["scores"] == made["scores"]


@pytest.mark.long
@pytest.mark.usefixtures("siqa")
def test_a_training_that_is_taken_over_gives_the_losses_of_the_one_that_was_done(
    session, make_cell, tmp_path, monkeypatch
):
    chosen = ["method=lora", *SHORT, "trainer.precision=bfloat16"]
    session.run(make_cell(*chosen, *QUICK))
    second = make_cell(*chosen, *SIQA)
    taken = scored(session, second, monkeypatch)
    places = [f"ledger={tmp_path}/alone", f"runs={tmp_path}/alone"]
    alone = make_cell(*chosen, *SIQA, *places)
    own = scored(session, alone, monkeypatch)
    assert torch.equal(taken[0], own[0])
    assert taken[1] == own[1]
    first, other = (record.read_record(c.record) for c in (second, alone))
    assert first["scores"] == other["scores"]


def test_validation_is_in_the_trainings_precision_and_what_follows_in_the_models(
    session, make_cell, monkeypatch
):
    wrapped = []
    real = train._validate

    def watched(trainer, rows):
        wrapped.append("_original_forward" in vars(trainer.model))
        return real(trainer, rows)

    monkeypatch.setattr(train, "_validate", watched)
    cell = make_cell(
        "method=lora", *QUICK, "trainer.precision=bfloat16", "task.validation_rows=8",
    )  # fmt: skip
    session.run(cell)
    assert wrapped == [True]
