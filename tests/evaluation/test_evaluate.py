"""Scores come from OpenCompass; our model class answers as its own wrapper does."""

import dataclasses
import errno
import gzip
import json
import shutil
from dataclasses import replace

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DiffLlamaConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.evaluation import evaluate, judging, tasks
from osora_bench.evaluation import scores as scoring
from osora_bench.evaluation import suites as evaluation_suites
from osora_bench.evaluation.in_memory_model import InMemoryModel, messages
from osora_bench.evaluation.journal import Journal
from osora_bench.evaluation.reading import corrections
from osora_bench.pipeline.session import Session
from osora_bench.planning.config import DatasetConfig, EvalConfig
from osora_bench.records.record import unpack
from tests.evaluation.scoring import scored

TINY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOY = str(paths.resolve("pkg://osora_bench.toy/model"))


@pytest.fixture(scope="module")
def toy():
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    model = LlamaForCausalLM.from_pretrained(TOY).eval()
    return model, tokenizer


def wrapped(toy, batch_size=None, chat=True, **settings):
    return InMemoryModel(*toy, chat=chat, batch_size=batch_size, label="test", **settings)


def prompts(n=24):
    """Prompts of many lengths."""
    return [f"Add {10 + i} and {20 + i}." + " Now." * (i % 7) for i in range(n)]


@pytest.fixture
def stock(monkeypatch):
    """OpenCompass's own wrappers, with the method that they call and transformers 5 lacks."""
    from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
    from transformers import PreTrainedTokenizerBase

    monkeypatch.setattr(
        PreTrainedTokenizerBase,
        "batch_encode_plus",
        lambda self, texts, **settings: self(texts, **settings),
        raising=False,
    )

    def make(chat, folder=TOY):
        kind = HuggingFacewithChatTemplate if chat else HuggingFaceBaseModel
        return kind(path=str(folder), model_kwargs={"torch_dtype": torch.float32}, max_seq_len=256)

    return make


@pytest.mark.parametrize("chat", [True, False])
def test_answers_equal_those_of_opencompass_own_wrappers(toy, stock, chat):
    ours = wrapped(toy, chat=chat).generate(prompts(), max_out_len=24)
    assert ours == stock(chat).generate(prompts(), max_out_len=24)
    assert len(set(ours)) > 12  # answers, not one constant


def test_stop_texts_end_answers_as_in_opencompass_own_wrapper(toy, stock):
    whole = wrapped(toy).generate(prompts(), 24)
    stop = whole[0].split()[-1]
    ours = wrapped(toy).generate(prompts(), 24, stopping_criteria=[stop])
    assert ours == stock(True).generate(prompts(), 24, stopping_criteria=[stop])
    assert ours != whole


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


def test_perplexities_equal_those_of_opencompass_own_wrapper(toy, stock):
    """One text at a time: with several, the stock wrapper adds the loss of the first token after
    the padding, so that its numbers depend on the batch."""
    theirs = stock(False)
    for masks in (None, [1 + i % 4 for i in range(24)]):
        ours = wrapped(toy, chat=False).get_ppl(prompts(), masks)
        one_by_one = [
            theirs.get_ppl([text], None if masks is None else [masks[i]])[0]
            for i, text in enumerate(prompts())
        ]
        assert ours == pytest.approx(one_by_one, abs=1e-5)
    ours = wrapped(toy, chat=False).get_loglikelihood(["Add 1 and 2.", "Now."], ["2.", "."])
    one_by_one = [
        theirs.get_loglikelihood([t], [c])[0] for t, c in (("Add 1 and 2.", "2."), ("Now.", "."))
    ]
    assert ours == pytest.approx(one_by_one, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_answers_do_not_depend_on_how_they_are_batched(toy, batch_size):
    some = wrapped(toy, batch_size)
    assert some.generate(prompts(), 16) == wrapped(toy).generate(prompts(), 16)
    some.dialogues = False
    assert some.get_ppl(prompts()) == pytest.approx(
        wrapped(toy, chat=False).get_ppl(prompts()), abs=1e-5
    )


def test_answers_do_not_depend_on_the_order_of_the_questions_or_on_which_are_asked(toy):
    forward = wrapped(toy, 5).generate(prompts(), 16)
    assert wrapped(toy, 5).generate(prompts()[::-1], 16)[::-1] == forward
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = wrapped(toy, 5).generate([prompts()[i] for i in order], 16)
    assert shuffled == [forward[i] for i in order]
    assert wrapped(toy, 5).generate(prompts()[3:9], 16) == forward[3:9]


def test_answers_do_not_depend_on_what_was_asked_before(toy):
    fresh = wrapped(toy).generate(prompts(), 16)
    model = wrapped((LlamaForCausalLM.from_pretrained(TOY).eval(), toy[1]))
    model.generate(["Now. " * 40, "Add 1 and 2."], 24, stopping_criteria=["4"])
    model.dialogues = False
    losses = model.get_ppl(prompts())
    model.dialogues = True
    assert model.generate(prompts(), 16) == fresh
    model.dialogues = False
    assert list(model.get_ppl(prompts())) == list(losses)


def test_a_prompt_longer_than_the_context_is_counted_not_cut(toy):
    model = wrapped(toy)
    near = ("Now. " * k for k in range(300))
    nearly_full = next(text for text in near if 0 < 256 - model.get_token_len(text) < 16)
    asked = ["Add 1 and 2.", "Now. " * 300, nearly_full]
    made = model.generate(asked, 16)
    assert model.too_long == {1}
    assert made[1] == ""
    assert made[0] == wrapped(toy).generate(asked[:1], 16)[0] != ""
    room = 256 - model.get_token_len(asked[2])
    assert made[2] == wrapped(toy).generate(asked[2:], room)[0]


def test_virtual_tokens_take_room_in_the_context(toy):
    config = peft.PromptTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM")
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(TOY), config).eval()
    assert wrapped((model, toy[1])).max_seq_len == 256 - 7


def test_a_least_length_is_refused_not_ignored(toy):
    with pytest.raises(NotImplementedError, match="min_out_len"):
        wrapped(toy).generate(["Add 1 and 2."], 16, min_out_len=3)


@pytest.mark.parametrize(
    ("settings", "batched"),
    [
        ({"repetition_penalty": 1.3}, True),
        ({"no_repeat_ngram_size": 2, "temperature": 0.6, "do_sample": True}, False),
    ],
)
def test_settings_of_generation_that_lie_beside_a_model_count(
    toy, stock, settings, batched, tmp_path
):
    """Qwen's chat models penalise repetition; the stock wrapper samples nothing, but heeds that."""
    folder = shutil.copytree(TOY, tmp_path / "model")
    place = folder / "generation_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **settings}))
    model = wrapped((LlamaForCausalLM.from_pretrained(folder).eval(), toy[1]))
    assert model.batched == batched
    made = model.generate(prompts(), 24)
    assert made == stock(True, folder).generate(prompts(), 24)
    assert made != wrapped(toy).generate(prompts(), 24)


def test_what_cannot_be_batched_is_answered_one_prompt_at_a_time(toy, stock, tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = DiffLlamaConfig(vocab_size=len(toy[1]), **TINY, max_position_embeddings=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    toy[1].save_pretrained(tmp_path)
    made = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    model = wrapped((made, toy[1]), chat=False)
    assert not model.batched
    theirs = stock(False, tmp_path)
    assert model.generate(prompts(4), 8) == [theirs.generate([p], 8)[0] for p in prompts(4)]
    assert model.get_ppl(prompts(4)) == pytest.approx(
        [theirs.get_ppl([p])[0] for p in prompts(4)], abs=1e-5
    )


def test_an_end_token_that_is_spelt_out_ends_a_dialogue_too(toy):
    begin, rest = toy[1].eos_token[:3], toy[1].eos_token[3:]
    tokens = [t for part in (f"4 {begin}", f"{rest} 5") for t in toy[1](part)["input_ids"]]
    assert toy[1].eos_token_id not in tokens
    assert wrapped(toy)._text(tokens, ()) == "4 "
    assert wrapped(toy, chat=False)._text(tokens, ()) == f"4 {toy[1].eos_token} 5"


def test_an_evaluation_that_dies_goes_on_where_it_stopped(toy, tmp_path):
    expected = wrapped(toy, 3).generate(prompts(), 16)

    class Dies(Journal):
        def put(self, question, answer):
            super().put(question, answer)
            if len(self._answers) == 7:
                raise KeyboardInterrupt

    with Dies(tmp_path / "journal", "me") as journal, pytest.raises(KeyboardInterrupt):
        wrapped(toy, 3, journal=journal).generate(prompts(), 16)
    with (tmp_path / "journal").open("a") as file:
        file.write('["half a line')  # what a crash in the middle of writing leaves
    with Journal(tmp_path / "journal", "me") as journal:
        assert len(journal._answers) == 7
        model = wrapped(toy, 3, journal=journal)
        asked = []
        whole = model._continue
        model._continue = lambda *args: asked.append(len(args[0])) or whole(*args)
        assert model.generate(prompts(), 16) == expected
    assert asked == [24 - 7]
    with Journal(tmp_path / "journal", "me") as journal:
        assert len(journal._answers) == 24
    with Journal(tmp_path / "journal", "another adapter") as journal:
        assert not journal._answers


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path):
    with Journal(tmp_path / "journal", "me") as journal:
        journal.put("first", 1)
    broken = Journal(tmp_path / "journal", "me")
    broken._file.close()
    broken._file = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
    with pytest.raises(UserError, match="No space left on device.*goes on from them"):
        broken.put("second", 2)
    with Journal(tmp_path / "journal", "me") as again:
        assert again.get("first") == 1
        assert again.get("second") is None


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


def test_turns_of_one_role_become_one():
    turns = [
        {"role": "HUMAN", "prompt": "a"},
        {"role": "HUMAN", "prompt": "b"},
        {"role": "BOT", "prompt": ""},
        {"role": "BOT", "prompt": "c"},
    ]
    assert messages(turns) == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
    ]


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


def test_answers_that_end_at_the_length_limit_are_counted(toy, make_cell, tmp_path):
    """Not those that end by themselves with their last token; a resumed evaluation knows it."""
    unbounded = wrapped(toy)
    free = unbounded.generate(prompts(), 64)
    long = [len(toy[1](text, add_special_tokens=False)["input_ids"]) for text in free]
    limit = sorted(long)[len(long) // 2]
    expected = {i for i, length in enumerate(long) if length >= limit}
    assert 0 < len(expected) < len(long)
    with Journal(tmp_path / "journal", "me") as journal:
        model = wrapped(toy, journal=journal)
        model.generate(prompts(), limit)
        assert model.cut == expected
    with Journal(tmp_path / "journal", "me") as journal:
        again = wrapped(toy, journal=journal)
        again._continue = None  # nothing is asked a second time
        again.generate(prompts(), limit)
        assert again.cut == expected
    ended = [length for i, length in enumerate(long) if i not in unbounded.cut]
    one_more = wrapped(toy)
    one_more.generate(prompts(), max(ended) + 1)  # room for every end token
    assert one_more.cut == unbounded.cut < expected


def test_a_journal_that_does_not_say_what_was_cut_is_asked_again(toy, tmp_path):
    with Journal(tmp_path / "journal", "me") as journal:
        model = wrapped(toy, journal=journal)
        expected = model.generate(prompts(4), 16)
        for key, (text, _) in list(journal._answers.items()):
            journal._answers[key] = text  # as it was kept before
        assert model.generate(prompts(4), 16) == expected
        assert all(len(kept) == 2 for kept in journal._answers.values())


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
