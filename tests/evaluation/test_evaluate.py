"""Scores come from OpenCompass: from a suite's configuration to its scores."""

import dataclasses
import errno
import gzip
import json
from dataclasses import replace

import peft
import pytest
import torch
from peft.tuners.lora.dora import DoraLinearLayer, cache_decorator
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from osora_bench.common.errors import UserError
from osora_bench.evaluation import evaluate, judging, tasks
from osora_bench.evaluation import scores as scoring
from osora_bench.evaluation import suites as evaluation_suites
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.evaluation.reading import corrections
from osora_bench.models import memory
from osora_bench.pipeline.session import Session
from osora_bench.planning.config import DatasetConfig, EvalConfig
from osora_bench.records.record import unpack
from tests.evaluation.scoring import scored
from tests.evaluation.toy_model import TOY, wrapped


def test_every_question_of_the_toy_sets_is_answered_and_judged_as_by_the_stock_wrapper(
    toy, stock, make_cell, tmp_path
):
    """Four sets, both kinds of evaluator, through OpenCompass's own tasks."""
    theirs = stock(True)
    for suite in ("toy", "toy-validation"):
        cell = make_cell(f"eval={suite}", "eval.datasets.0.limit=60", "eval.datasets.1.limit=60")
        for name, config in evaluation_suites.prepare(cell.config.eval, tmp_path).items():
            found = []
            for who, model in (("ours", wrapped(toy)), ("stock", theirs)):
                work = tmp_path / name / who
                made = evaluate._run(model, config, 32, work)
                found.append(scoring.collect(judging.judge(config, work, "accuracy"), made))
            assert len(found[0]) == 60
            for one, other in zip(*found, strict=True):
                assert (one.output, one.read, one.right) == (other.output, other.read, other.right)


@pytest.mark.parametrize(
    ("override", "lengths"),
    [
        ("eval.max_out_len=32", {24, 4}),
        ("eval.max_out_len=8", {8, 4}),
        ("eval.datasets.0.max_out_len=20", {20, 4}),
    ],
)
def test_the_suites_answer_length_bounds_that_of_each_set(override, lengths, make_cell):
    cell = make_cell(override)
    configs = evaluation_suites.prepare(cell.config.eval, cell.paths.runs).values()
    assert {c.infer_cfg.inferencer.max_out_len for c in configs} == lengths


def test_data_sets_are_built_once_a_process_not_once_a_cell(toy, make_cell, monkeypatch):
    """OpenCompass's two tasks would build each set anew, for every cell, one of them twice."""
    built = []
    whole = tasks.build_dataset_from_cfg
    monkeypatch.setattr(tasks, "_built", {})
    monkeypatch.setattr(
        tasks, "build_dataset_from_cfg", lambda cfg: built.append(cfg.abbr) or whole(cfg)
    )
    session, read = Session(), []
    shipped = evaluation_suites.dataset_config
    monkeypatch.setattr(
        evaluation_suites, "dataset_config", lambda d: read.append(d.name) or shipped(d)
    )
    for name in ("one", "two", "three"):
        cell = make_cell("eval.datasets.0.limit=3", "eval.datasets.1.limit=3")
        sets = session.sets(cell)
        evaluate.evaluate(*toy, cell.config, sets, cell.paths.folder / name, label=name)
    assert built == read == ["gsm8k-toy", "commonsenseqa-toy"]


def test_a_set_that_is_left_out_is_told(toy, make_cell):
    cell = make_cell("eval.datasets.0.limit=3", "eval.without=[commonsenseqa-toy]")
    scores = scored(*toy, cell.config, cell.paths.evaluation, "test")
    assert list(scores) == ["gsm8k-toy"]
    long = dataclasses.replace(scores["gsm8k-toy"], too_long=2)
    assert scoring.not_run(cell.config.eval, {"gsm8k-toy": long}) == {
        "gsm8k-toy": "497 of 500 questions: limited; 2 prompts: longer than the model's context",
        "commonsenseqa-toy": "left out by eval.without",
    }
    assert cell.run_id != make_cell("eval.datasets.0.limit=3").run_id


def test_a_disk_that_opencompass_fills_is_named(toy, make_cell, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cell = make_cell("eval.datasets.0.limit=3", "eval.datasets.1.limit=3")
    monkeypatch.setattr(evaluate.infer_task.OpenICLInferTask, "run", lambda self, **_: full())
    with pytest.raises(UserError, match=f"{cell.paths.evaluation}: cannot write .No space left"):
        scored(*toy, cell.config, cell.paths.evaluation, "test")
    assert not (cell.paths.evaluation / "opencompass").exists()  # its files hold every prompt


def test_shipped_configurations_are_found_by_their_name():
    config = evaluation_suites.dataset_config(GSM8K)
    assert config.infer_cfg.inferencer.max_out_len == 7
    assert "test_range" not in config.reader_cfg


GSM8K = DatasetConfig(name="gsm8k", config="gsm8k_gen_1d7fe4", questions=1319, max_out_len=7)


@pytest.mark.parametrize(
    ("own", "suites", "asked"), [(5, None, "[0:5:1]"), (None, 5, "[0:1315:263]"), (2, 5, "[0:2:1]")]
)
def test_a_limit_asks_the_first_questions_and_a_suites_spreads_them(own, suites, asked):
    dataset, suite = replace(GSM8K, limit=own), EvalConfig(limit=suites, max_out_len=9)
    config = evaluation_suites._bounded(evaluation_suites.dataset_config(dataset), dataset, suite)
    assert config.reader_cfg.test_range == asked
    assert len(range(1319)[slice(*map(int, asked[1:-1].split(":")))]) == (own or suites)


def judged(*verdicts):
    return [scoring.Answer("q", "o", "o", right) for right in verdicts]


def test_a_score_that_its_verdicts_do_not_add_up_to_is_an_error():
    dataset = DatasetConfig(name="x", questions=2)
    assert scoring.score_of({"accuracy": 50.0}, judged(True, False), dataset, 0, None).k == 1
    third = replace(dataset, questions=3)
    verdicts = judged(True, False, False)
    assert scoring.score_of({"accuracy": 33.33}, verdicts, third, 0, None).accuracy == 33.33
    with pytest.raises(UserError, match="x: OpenCompass says 33.34, its verdicts say 1/3"):
        scoring.score_of({"accuracy": 33.34}, verdicts, third, 0, None)
    with pytest.raises(UserError, match="x: OpenCompass says 60.0, its verdicts say 1/2"):
        scoring.score_of({"accuracy": 60.0}, judged(True, False), dataset, 0, None)


def test_a_model_that_knows_the_answers_scores_full_marks(toy, make_cell, monkeypatch):
    """The whole way through OpenCompass with answers that are right, then wrong for every third."""
    cell = make_cell("eval.datasets.0.limit=30", "eval.datasets.1.limit=30")
    suite = cell.config.eval
    configs = evaluation_suites.prepare(suite, cell.paths.runs)
    known = []  # what a prompt contains, and its right answer, in the order of the questions
    for config in configs.values():
        for row in tasks.build_dataset(config).test:
            right = row.get("answerKey") or row["answer"].split("#### ")[1]
            known.append(
                ([row["question"], *(f"{c}. {row[c]}" for c in "ABCDE" if c in row)], right)
            )

    def answer(self, inputs, max_out_len, **_):
        replies = []
        for prompt in inputs:
            text = prompt[0]["prompt"]
            (index,) = (i for i, (parts, _) in enumerate(known) if all(p in text for p in parts))
            replies.append("?" if index % 3 == 0 else f"it is {known[index][1]}")
        return replies

    monkeypatch.setattr(InMemoryModel, "generate", answer)
    scores = scored(*toy, cell.config, cell.paths.evaluation, "test")
    for score in scores.values():
        assert (score.k, score.n, score.questions) == (20, 30, 500)
        assert unpack(score.right, 30) == [i % 3 != 0 for i in range(30)]
        assert (score.unread, score.too_long) == (10, 0)
    kept = cell.paths.evaluation / "answers" / "gsm8k-toy.jsonl.gz"
    with gzip.open(kept, "rt") as file:
        lines = [json.loads(line) for line in file]
    assert [line["right"] for line in lines] == [i % 3 != 0 for i in range(30)]
    assert lines[0]["output"] == "?"
    assert lines[0]["read"] is None
    assert lines[1]["read"] == known[1][1]
    assert known[1][0][0] in str(lines[1]["prompt"])
    evaluate.forget(cell.paths.evaluation)
    left = {p.name for p in cell.paths.evaluation.iterdir()}
    assert left == {"answers", "opencompass.log"}


def test_a_number_with_separators_is_corrected_beside_the_official_score(
    toy, make_cell, monkeypatch
):
    """OpenCompass reads "0,021" as 021."""
    cell = make_cell("eval.datasets.0.limit=9", "eval.datasets.1.limit=9")
    config = evaluation_suites.prepare(cell.config.eval, cell.paths.runs)["gsm8k-toy"]
    golds = [row["answer"].split("#### ")[1] for row in tasks.build_dataset(config).test]

    def answer(self, inputs, max_out_len, **_):
        # right; right, in thousands that are set apart; wrong
        return [(g, f"0,{int(g):03d}", "5 apples, 6")[i % 3] for i, g in enumerate(golds[:9])]

    monkeypatch.setattr(InMemoryModel, "generate", answer)
    work = cell.paths.folder
    evaluate._run(wrapped(toy), config, 32, work)
    judged = judging.judged(config, work, "accuracy")
    official = [a.right for a in judged.answers]
    corrected = unpack(judged.corrected["right"], 9)
    assert corrected[::3] == official[::3] == [True] * 3
    assert corrected[1::3] == [True] * 3
    differ = sum(a != b for a, b in zip(official, corrected, strict=True))
    assert judged.corrected["differ"] == differ
    assert judged.corrected["k"] == sum(corrected)


@pytest.mark.parametrize(
    ("config", "abbr", "kind"),
    [
        ("siqa_gen_18632c", "siqa", "an option"),
        ("ARC_c_gen_1e0de5", "ARC-c", "an option"),
        ("SuperGLUE_BoolQ_gen_883d50", "BoolQ", "an option"),
        ("gsm8k_gen_1d7fe4", "gsm8k", "the number"),
        ("math_gen_265cce", "math", "the formula"),
        ("math_gen_a58d9d", "math", "the formula"),
        ("race_gen_69ee4f", "race-middle", "an option"),
        ("ARC_c_ppl_a450bd", "ARC-c", None),
        ("siqa_gen_e78df3", "siqa", None),
        ("triviaqa_gen_2121ce", "triviaqa", None),
    ],
)
def test_a_sets_reader_is_what_its_configuration_asks_for(config, abbr, kind):
    """Also of a set that no suite of ours has."""
    dataset = DatasetConfig(name=abbr, config=config)
    reader = corrections.reader_of(evaluation_suites.dataset_config(dataset))
    assert (reader is None) == (kind is None)
    assert kind is None or reader.rule.startswith(kind)


def test_cut_answers_are_in_the_score_and_said(toy, make_cell, capsys):
    cell = make_cell("eval.datasets.0.limit=6", "eval.datasets.1.limit=6", "eval.max_out_len=1")
    scores = scored(*toy, cell.config, cell.paths.evaluation, "test")
    assert [score.cut for score in scores.values()] == [6, 6]
    assert "WARNING: gsm8k-toy: 6 of 6 answers were cut" in capsys.readouterr().out
    kept = cell.paths.evaluation / "answers" / "gsm8k-toy.jsonl.gz"
    with gzip.open(kept, "rt") as file:
        assert [json.loads(line)["cut"] for line in file] == [True] * 6


def test_an_adapter_may_be_merged_for_evaluation(toy, make_cell):
    cell = make_cell("eval.datasets.0.limit=12", "eval.datasets.1.limit=12")
    merged = replace(cell.config, eval=replace(cell.config.eval, merge=True))
    base = LlamaForCausalLM.from_pretrained(TOY).eval()
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    before = {n: p.clone() for n, p in base.named_parameters()}
    one, other = (
        scored(adapted, toy[1], cfg, cell.paths.evaluation, "test") for cfg in (cell.config, merged)
    )
    assert one == other
    for name, parameter in base.named_parameters():
        torch.testing.assert_close(parameter, before[name], atol=1e-6, rtol=0)
    virtual = peft.get_peft_model(
        LlamaForCausalLM.from_pretrained(TOY),
        peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    )
    with pytest.raises(UserError, match="eval.merge=true: PromptTuningConfig cannot be merged"):
        scored(virtual, toy[1], merged, cell.paths.evaluation, "test")


def test_doras_norms_are_computed_once_an_evaluation_and_not_kept(toy, make_cell, monkeypatch):
    """Another adapter in the same layers is not scored with the norms of the one before."""
    cell = make_cell("eval.datasets.0.limit=6", "eval.datasets.1.limit=6")
    norms = DoraLinearLayer.get_weight_norm.__wrapped__
    calls = []
    monkeypatch.setattr(
        DoraLinearLayer,
        "get_weight_norm",
        cache_decorator("weight-norm")(lambda *a, **k: calls.append(1) or norms(*a, **k)),
    )
    base = LlamaForCausalLM.from_pretrained(TOY)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    )

    def answers():
        scored(adapted, toy[1], cell.config, cell.paths.evaluation, "test")
        kept = cell.paths.evaluation / "answers" / "gsm8k-toy.jsonl.gz"
        with gzip.open(kept, "rt") as file:
            return [json.loads(line)["output"] for line in file]

    adapted.eval()
    first, layers = answers(), base.config.num_hidden_layers
    in_all = len(calls) - layers  # as many at the start, of the magnitudes
    assert in_all == layers
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-3)
    other = answers()
    assert other != first
    monkeypatch.setattr(memory, "for_batches", lambda device: 2 * 4 * 128 * 128 * layers - 2)
    assert answers() == other
    assert len(calls) > 4 * layers


def test_an_untrained_model_is_scored_too(make_cell):
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(TOY)),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    cell = make_cell("eval.datasets.0.limit=8", "eval.datasets.1.limit=8")
    scores = scored(
        model, AutoTokenizer.from_pretrained(TOY), cell.config, cell.paths.evaluation, "test"
    )
    assert {name: score.n for name, score in scores.items()} == {
        "gsm8k-toy": 8,
        "commonsenseqa-toy": 8,
    }
