"""OpenCompass asks for one label's texts after the other's; all are scored together before."""

import json
from pathlib import Path

import pytest

from osora_bench.evaluation import evaluate, suites
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.evaluation.journal import Journal
from osora_bench.evaluation.scorer import Scorer
from tests.evaluation.test_judging import asking, gpt2, siqa_files  # noqa: F401

SIQA = {"name": "siqa", "config": "siqa_ppl_ced5f6", "questions": 4}
WINOGRANDE = {"name": "winogrande", "config": "winogrande_ll_c5cf57", "questions": 3}


def winogrande_files():
    rows = [
        {"qID": "", "sentence": f"Kim gave {i} to Lee since _ was {i} years old.",
         "option1": "Kim", "option2": "Lee", "answer": "1"}
        for i in range(3)
    ]  # fmt: skip
    return {"winogrande/dev.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows)}


SETS = {"by perplexity": (SIQA, siqa_files), "by log-likelihood": (WINOGRANDE, winogrande_files)}


@pytest.fixture
def run(asking, gpt2, tmp_path, monkeypatch):  # noqa: F811
    """OpenCompass's predictions on a set, and the numbers of texts that each call scored."""

    def run(dataset, files, journal=None):
        cfg = asking(dataset, files())
        (config,) = suites.prepare(cfg.eval, Path(cfg.runs)).values()
        calls = []
        whole = Scorer.losses
        with monkeypatch.context() as patch:
            patch.setattr(
                Scorer, "losses", lambda s, texts, f: calls.append(len(texts)) or whole(s, texts, f)
            )
            model = InMemoryModel(*gpt2, chat=False, label="test", journal=journal)
            assert model.batched
            calls.clear()  # that it is was tried
            with evaluate._work(tmp_path / "evaluation") as work:
                return evaluate._run(model, config, 16, work), calls

    return run


def numbers(predictions):
    """Every loss that OpenCompass was told."""
    return [
        told.get("PPL", told.get("Loglikelihood"))
        for question in predictions.values()
        for label, told in question.items()
        if label.startswith("label: ")
    ]


@pytest.mark.parametrize(("dataset", "files"), SETS.values(), ids=SETS)
def test_all_labels_are_scored_in_one_call_and_are_what_they_were(dataset, files, run, monkeypatch):
    predictions, calls = run(dataset, files)
    monkeypatch.setattr(InMemoryModel, "look_ahead", lambda self, dry_run: None)
    label_by_label, several = run(dataset, files)
    labels, n = len(several), dataset["questions"]
    assert calls == [labels * n]
    assert several == [n] * labels
    assert len(numbers(predictions)) == labels * n
    assert numbers(predictions) == pytest.approx(numbers(label_by_label), abs=1e-5)
    for place, question in predictions.items():
        assert question["prediction"] == label_by_label[place]["prediction"]
        assert question["gold"] == label_by_label[place]["gold"]


def test_answers_are_kept_as_they_come_and_only_the_rest_is_asked_for(run, tmp_path, monkeypatch):
    expected, _ = run(SIQA, siqa_files)
    put, kept = Journal.put, []

    def full_after_five(self, question, answer):
        if len(kept) == 5:
            raise KeyboardInterrupt
        kept.append(question)
        put(self, question, answer)

    with monkeypatch.context() as patch, Journal(tmp_path / "journal", "me") as journal:
        patch.setattr(Journal, "put", full_after_five)
        with pytest.raises(KeyboardInterrupt):
            run(SIQA, siqa_files, journal)
    with Journal(tmp_path / "journal", "me") as journal:
        predictions, calls = run(SIQA, siqa_files, journal)
    assert calls == [12 - 5]
    assert numbers(predictions) == pytest.approx(numbers(expected), abs=1e-5)


def test_what_was_not_foreseen_is_scored_when_it_is_asked_for(gpt2):  # noqa: F811
    model = InMemoryModel(*gpt2, chat=False, label="test")
    model.look_ahead(lambda: model.get_ppl(["Add 1.", "Add 1. Now."]))
    texts = ["Add 1.", "Add 22."]
    plain = InMemoryModel(*gpt2, chat=False, label="test").get_ppl(texts)
    assert list(model.get_ppl(texts)) == pytest.approx(list(plain), abs=1e-5)
    assert list(model.get_ppl(texts, [1, 1])) != list(plain)
