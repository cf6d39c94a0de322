"""Every question has a verdict, also where OpenCompass's evaluator states a mean only."""

import gzip
import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from opencompass.openicl.icl_evaluator import BaseEvaluator
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from osora_bench.common import interruption
from osora_bench.common.errors import UserError
from osora_bench.evaluation import evaluate, judging, scores, suites, tasks
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.evaluation.reading import solver
from osora_bench.planning.config import DatasetConfig
from osora_bench.records.record import unpack
from tests.evaluation.scoring import scored

REST = {"files": [], "limit": None, "max_out_len": None, "abbr": None, "metric": "accuracy"}
SIQA = {"name": "siqa", "config": "siqa_gen_e78df3", "questions": 4}
RACE = {"name": "race", "abbr": "race-middle", "config": "race_ppl_a138cd", "questions": 3}


@pytest.fixture
def asking(make_cell, tmp_path, monkeypatch):
    """A configuration of one set, made from OpenCompass's own, on made-up files of it."""

    def make(dataset, files):
        for name, text in files.items():
            place = tmp_path / "data" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))
        cfg = make_cell().config
        return replace(cfg, eval=replace(cfg.eval, datasets=[DatasetConfig(files=[], **dataset)]))

    return make


@pytest.fixture(scope="module")
def gpt2():
    """Random weights, with positions that are learned: beyond its context it has none."""
    from osora_bench.common import paths

    tokenizer = AutoTokenizer.from_pretrained(str(paths.resolve("pkg://osora_bench.toy/model")))
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 1, "n_positions": 256}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def siqa_files():
    """Four questions, whose right answers are the first, second, third and first."""
    rows = [
        {"context": f"Kim saw {i}.", "question": "Why?", "answerA": "to rest", "answerB": "to sing",
         "answerC": "to run away"}
        for i in range(4)
    ]  # fmt: skip
    labels = "1\n2\n3\n1\n"
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    return {
        f"siqa/{split}{kind}": text if kind == ".jsonl" else labels
        for split in ("train", "dev")
        for kind in (".jsonl", "-labels.lst")
    }


def test_an_evaluator_without_verdicts_is_asked_about_each_question(asking, gpt2, monkeypatch):
    """By the edit distance to three answers; expected are those of a look at the texts."""
    cfg = asking(SIQA, siqa_files())
    outputs = ["to restt", "to run awa", "to run away!", "too sing"]  # near to A, C, C, B
    monkeypatch.setattr(InMemoryModel, "generate", lambda self, inputs, *_, **__: outputs)
    runs = evaluate.Path(cfg.runs)
    (score,) = scored(*gpt2, cfg, runs / "evaluation", "test").values()
    assert unpack(score.right, 4) == [True, False, True, False]
    assert (score.k, score.accuracy, score.unread) == (2, 50.0, 0)


class Graded(BaseEvaluator):
    """Gives half of the points to every answer."""

    def score(self, predictions, references):
        return {"accuracy": 50.0}


class Named(BaseEvaluator):
    """Has another name for its number."""

    def score(self, predictions, references):
        return {"f1": 50.0, "recall": 1.0}


@pytest.mark.parametrize(
    ("evaluator", "told"),
    [
        (Graded, "siqa: OpenCompass gives an answer 50 of 100 points of accuracy"),
        (Named, "siqa: OpenCompass returned no accuracy, but f1, recall; the set's `metric`"),
    ],
)
def test_what_is_neither_right_nor_wrong_is_refused(evaluator, told, asking, tmp_path):
    cfg = asking(SIQA, siqa_files())
    (config,) = suites.prepare(cfg.eval, tmp_path).values()
    config = evaluate.copy.deepcopy(config)
    config.eval_cfg.evaluator = {"type": evaluator}
    made = {str(i): {"origin_prompt": "?", "prediction": "to rest"} for i in range(4)}
    tasks.rewrite(made, config, tmp_path / "work")
    with pytest.raises(UserError, match=told):
        judging.judge(config, tmp_path / "work", "accuracy")


def test_a_metric_that_is_not_stated_is_told_before_any_question_is_asked(asking, tmp_path):
    cfg = asking({**SIQA, "metric": "f1"}, siqa_files())
    with pytest.raises(UserError, match="siqa: OpenCompass returned no f1, but accuracy; the set"):
        suites.prepare(cfg.eval, tmp_path)


def test_an_evaluator_that_says_nothing_of_single_questions_is_refused(asking, tmp_path):
    cfg = asking(SIQA, siqa_files())
    (config,) = suites.prepare(cfg.eval, tmp_path).values()
    made = {str(i): {"prediction": "to rest"} for i in range(4)}  # without a prompt: no details
    tasks.rewrite(made, config, tmp_path / "work")
    with pytest.raises(UserError, match="siqa: OpenCompass's evaluator judges no single question"):
        judging.judge(config, tmp_path / "work", "accuracy")


def race_files(*longest):
    """Three questions; those named have a fourth option of 300 words."""
    text = ""
    for i in range(3):
        options = ["one", "two", "three", "four " * (300 if i in longest else 1)]
        text += json.dumps({"article": "1, 2.", "question": "Next?", "options": options,
                            "answer": "A"}) + "\n"  # fmt: skip
    return {
        f"race/{split}/{part}.jsonl": text
        for split in ("test", "validation")
        for part in ("middle", "high")
    }


@pytest.mark.parametrize("own", [None, 2])
def test_a_question_whose_texts_exceed_the_context_is_not_asked_and_not_right(
    own, asking, gpt2, capsys, monkeypatch
):
    """Of four alike losses the first label would win: it is the right one of every question. The
    configuration may name a batch size of its own."""
    cfg = asking(RACE, race_files(1))
    runs = evaluate.Path(cfg.runs)
    (config,) = suites.prepare(cfg.eval, runs).values()
    if own is not None:
        monkeypatch.setitem(config.infer_cfg.inferencer, "batch_size", own)
    (score,) = scored(*gpt2, cfg, runs / "evaluation", "test").values()
    assert (score.n, score.too_long, score.unread) == (3, 1, 1)
    assert unpack(score.right, 3)[1] is False
    assert "1 of 3 prompts do not fit the model's context of 256" in capsys.readouterr().out
    (kept,) = (runs / "evaluation" / "answers").iterdir()
    with gzip.open(kept, "rt") as file:
        assert [json.loads(line)["too_long"] for line in file] == [False, True, False]
    wrapped = InMemoryModel(*gpt2, chat=False, label="test")
    losses = wrapped.get_ppl(["one two", "one " * 300, "one"])
    assert [bool(torch.isfinite(torch.tensor(x))) for x in losses] == [True, False, True]
    again = InMemoryModel(*gpt2, chat=False, label="test").get_ppl(["one two", "one"])
    assert losses[[0, 2]] == pytest.approx(again, abs=1e-6)


def test_too_long_counts_questions_whichever_of_their_texts_it_is(gpt2):
    """OpenCompass asks label by label: a text of an earlier label counts as one of the last."""
    model = InMemoryModel(*gpt2, chat=False, label="test")
    for texts in (
        ["one " * 300, "one", "one"],
        ["one", "one", "one " * 300],
        ["one", "one", "one"],
    ):
        model.get_ppl(texts)
    assert model.too_long == {0, 2}


def test_another_number_of_verdicts_than_of_questions_is_an_error():
    made = {"0": {"prediction": "a"}, "1": {"prediction": "b"}}
    with pytest.raises(RuntimeError, match="judged 1 questions and has predictions for 2"):
        scores.collect({"details": [{"correct": True}]}, made)


VERIFIED = {"name": "math", "config": "math_gen_a58d9d", "questions": 4}


def math_files(*golds):
    rows = {
        str(i): {"problem": "What?", "solution": rf"\boxed{{{g}}}"} for i, g in enumerate(golds)
    }
    return {"math/math.json": json.dumps(rows)}


def hanging(monkeypatch, *outputs):
    monkeypatch.setattr(InMemoryModel, "generate", lambda self, inputs, *_, **__: [*outputs])
    monkeypatch.setattr(solver._solver, "seconds", 2)


TOWER = r"\boxed{5^{5^{5^{5^5}}-4}-5}"


def test_an_answer_on_which_the_solver_hangs_is_wrong_unread_and_counted(
    asking, gpt2, capsys, monkeypatch
):
    cfg = asking(VERIFIED, math_files("3", "3", "3", "3"))
    hanging(monkeypatch, r"\boxed{3}", TOWER, "I do not know.", r"\boxed{4}")
    folder = evaluate.Path(cfg.runs) / "evaluation"
    with interruption.current():  # as in a cell: its handlers are not the child's
        (score,) = scored(*gpt2, cfg, folder, "test").values()
    assert unpack(score.right, 4) == [True, False, False, False]
    assert (score.k, score.unread, score.unjudged) == (1, 2, 1)
    assert (score.corrected["k"], score.corrected["unread"]) == (1, 2)
    assert "math: 1 of 4 answers have no verdict in time" in capsys.readouterr().out
    with gzip.open(folder / "answers" / "math.jsonl.gz", "rt") as file:
        kept = [json.loads(line) for line in file]
    assert [a["read"] for a in kept] == ["[3, '3']", None, None, "[4, '4']"]
    assert kept[1]["unjudged"] == "not within 10 s"
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_evaluation_whose_solver_hangs_can_be_ended(number, asking, gpt2, monkeypatch):
    cfg = asking(VERIFIED, math_files("3", "3", "3", "3"))
    suites.prepare(cfg.eval, evaluate.Path(cfg.runs))
    hanging(monkeypatch, *[TOWER] * 4)
    monkeypatch.setattr(solver._solver, "seconds", 60)
    threading.Timer(3, os.kill, (os.getpid(), number)).start()
    started = time.monotonic()
    with interruption.current(), pytest.raises(interruption.Interrupted, match=number.name):
        scored(*gpt2, cfg, evaluate.Path(cfg.runs) / "evaluation", "test")
    assert time.monotonic() - started < 20
    assert multiprocessing.active_children() == []


def test_references_that_cannot_be_parsed_are_told_before_any_question(
    asking, gpt2, capsys, monkeypatch
):
    cfg = asking(VERIFIED, math_files("3", "", "3", "3"))
    suites.prepare(cfg.eval, evaluate.Path(cfg.runs))
    told = capsys.readouterr().out
    assert "WARNING: math: 1 of 4 reference answers cannot be parsed" in told
    assert told.strip().endswith(": 1")
    hanging(monkeypatch, *[r"\boxed{3}"] * 4)
    folder = evaluate.Path(cfg.runs) / "evaluation"
    (score,) = scored(*gpt2, cfg, folder, "test").values()
    assert (score.k, score.n, score.accuracy, score.unjudged) == (3, 4, 75.0, 1)


def test_one_process_gives_the_verdicts_of_opencompass_own_for_each_question():
    """OpenCompass's function forks a process for every question."""
    golds = [r"\frac{1}{2}", "3", "(2,3)", r"x^2+1", r"\text{east}", "10", r"[2,5)", "1,2"]
    outputs = [r"\boxed{0.5}", r"$3$", r"\boxed{(2, 3)}", r"The answer is $1+x^2$.", "east",
               r"\boxed{10\%}", r"\boxed{[2,5]}", r"\boxed{2} and \boxed{1}"]  # fmt: skip
    for gold in golds:
        for output in outputs:
            one, other = (f(output, gold) for f in (solver.verify_with_timeout, solver.FORKED))
            assert one == other, (output, gold)
    solver.close()
