"""The embedded model and tasks: formats, disjointness, reproducibility, quality."""

import json
import random
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from osora_bench.toy import __main__ as toy_main
from osora_bench.toy import pretrain, tasks

FLOOR = 90.0  # percent of held-out questions, for each skill
REBUILD_TOLERANCE = 2.0  # points: four of the 200 held-out questions


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(pretrain.MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(pretrain.MODEL)


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (tasks.DATA / name).read_text().splitlines()]


def splits(task: str) -> dict[str, list[dict]]:
    train, scored = {
        "gsm8k": ("train", "test"),
        "commonsenseqa": ("train_rand_split", "dev_rand_split"),
    }[task]
    return {
        "train": read(f"{task}/{train}.jsonl"),
        "validation": read(f"{task}-validation/{scored}.jsonl"),
        "test": read(f"{task}/{scored}.jsonl"),
    }


def test_committed_data_is_what_the_seed_gives(tmp_path):
    tasks.write_data(tmp_path)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    committed = (p for p in tasks.DATA.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(tasks.DATA)) for p in committed)
    for name in names:
        assert (tmp_path / name).read_bytes() == (tasks.DATA / name).read_bytes(), name


def test_another_seed_gives_other_data():
    assert tasks.gsm8k_rows(1) != tasks.gsm8k_rows(2)
    assert tasks.commonsenseqa_rows(1) != tasks.commonsenseqa_rows(2)


def test_data_is_below_a_megabyte():
    assert sum(p.stat().st_size for p in tasks.DATA.rglob("*") if p.is_file()) < 1e6


@pytest.mark.parametrize("task", ["gsm8k", "commonsenseqa"])
def test_rows_per_split(task):
    assert {split: len(rows) for split, rows in splits(task).items()} == tasks.ROWS


def assert_disjoint(keys: dict[str, list]) -> None:
    together = [key for split in keys.values() for key in split]
    assert len(set(together)) == len(together)


def test_arithmetic_splits_share_no_operands():
    """By sign and unordered operand pair, read back from the answers in the files."""

    def key(row: dict) -> tuple[str, frozenset[str] | str]:
        left = row["answer"].split("=")[0]
        return ("+", frozenset(left.split("+"))) if "+" in left else ("-", left)

    # 12+30 and 30+12 are one instance; 15+15 is a set of one.
    found = {split: {key(row) for row in rows} for split, rows in splits("gsm8k").items()}
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]


def test_choice_splits_share_no_set_of_options():
    assert_disjoint(
        {
            split: [frozenset(c["text"] for c in row["question"]["choices"]) for row in rows]
            for split, rows in splits("commonsenseqa").items()
        }
    )


@pytest.mark.parametrize(("task", "field"), [("gsm8k", "question"), ("commonsenseqa", "question")])
def test_no_question_stands_in_two_splits(task, field):
    texts = {s: {json.dumps(row[field]) for row in rows} for s, rows in splits(task).items()}
    assert not texts["train"] & (texts["validation"] | texts["test"])
    assert not texts["validation"] & texts["test"]


def test_arithmetic_answers_are_right():
    for rows in splits("gsm8k").values():
        for row in rows:
            sum_, final = row["answer"].split("\n#### ")
            left, result = sum_.split("=")
            a, b = (int(number) for number in left.replace("-", "+").split("+"))
            assert int(result) == int(final) == (a - b if "-" in left else a + b)
            assert {str(a), str(b)} <= set(re.findall(r"\d+", row["question"]))


def test_exactly_one_choice_is_right():
    for rows in splits("commonsenseqa").values():
        for row in rows:
            concept = row["question"]["question_concept"]
            right = [
                c["label"] for c in row["question"]["choices"] if c["text"] in tasks.WORDS[concept]
            ]
            assert right == [row["answerKey"]]


def test_answers_are_spread_over_the_letters():
    keys = [row["answerKey"] for row in splits("commonsenseqa")["test"]]
    assert all(60 <= keys.count(letter) <= 140 for letter in tasks.LETTERS)


def test_pretraining_text_holds_nothing_that_is_asked_later():
    pool = pretrain.pools()
    arithmetic, choices = tasks.split_arithmetic(), tasks.split_choices()
    asked = {*arithmetic["validation"], *arithmetic["test"], *pool.held_out_arithmetic}
    assert not asked & set(pool.arithmetic)
    asked_options = {c.key for c in choices["validation"] + choices["test"]}
    held_out = {choice.key for choice in pool.held_out_choices}
    assert asked_options | held_out == pool.reserved
    rng = random.Random(0)
    assert all(pool.sample_choice(rng).key not in pool.reserved for _ in range(2000))


def test_opencompass_reads_the_data_through_our_configurations():
    configs = pytest.importorskip("osora_bench.toy.opencompass_configs")
    for suffix, count in (("", 500), ("_validation", 200)):
        (math,) = getattr(configs, f"gsm8k{suffix}_datasets")
        rows = math["type"].load(path=math["path"])["test"]
        assert len(rows) == count
        evaluation = math["eval_cfg"]
        answers = [evaluation["dataset_postprocessor"]["type"](row["answer"]) for row in rows]
        found = [evaluation["pred_postprocessor"]["type"](row["answer"]) for row in rows]
        assert evaluation["evaluator"]["type"]().score(found, answers)["accuracy"] == 100
        (choice,) = getattr(configs, f"commonsenseqa{suffix}_datasets")
        rows = choice["type"].load(path=choice["path"])["validation"]
        assert len(rows) == count
        evaluation = choice["eval_cfg"]
        found = [evaluation["pred_postprocessor"]["type"](row["answerKey"]) for row in rows]
        evaluator = evaluation["evaluator"]["type"]()
        assert evaluator.score(found, rows["answerKey"])["accuracy"] == 100


def test_prompts_are_those_of_the_generator():
    configs = pytest.importorskip("osora_bench.toy.opencompass_configs")
    row = splits("commonsenseqa")["test"][0]
    (choice,) = configs.commonsenseqa_datasets
    loaded = choice["type"].load(path=choice["path"])["validation"][0]
    (turn,) = choice["infer_cfg"]["prompt_template"]["template"]["round"]
    expected = tasks.COMMONSENSEQA_PROMPT.format(**tasks.commonsenseqa_fields(row))
    assert turn["prompt"].format(**loaded) == expected


def test_answers_fit_their_limits(tokenizer):
    for task, key in (("gsm8k", "answer"), ("commonsenseqa", "answerKey")):
        longest = max(
            len(tokenizer(row[key], add_special_tokens=False).input_ids) + 1
            for rows in splits(task).values()
            for row in rows
        )
        assert longest <= tasks.MAX_ANSWER_TOKENS[task]


def test_model_size_and_adapted_shapes(model):
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    assert (pretrain.MODEL / "model.safetensors").stat().st_size < 5_000_000
    for layer in model.model.layers:
        assert layer.self_attn.q_proj.out_features >= 128
        assert min(layer.self_attn.v_proj.weight.shape) >= 64


def test_tokenizer_round_trip(tokenizer):
    every_ascii = "".join(map(chr, range(128)))
    texts = [
        "",
        "  two  spaces\n\n",
        "1234 -56.7",
        " dog , cat .",
        every_ascii,
        "na\u00efve \u2713",
    ]
    texts += [row["question"] for row in splits("gsm8k")["test"]]
    for text in texts:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_every_digit_is_a_token(tokenizer):
    assert len(tokenizer("9876543210", add_special_tokens=False).input_ids) == 10


def test_special_tokens_are_distinct(tokenizer):
    ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(ids) == 3
    assert None not in ids


def test_chat_template(tokenizer):
    turns = [{"role": "user", "content": "Add 1"}, {"role": "assistant", "content": "2"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert whole == prompt + "2" + tokenizer.eos_token == pretrain.render([("Add 1", "2")])
    assert prompt.startswith(tokenizer.bos_token)
    encoded = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    answer = [
        token
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        if mask
    ]
    assert tokenizer.decode(answer) == "2" + tokenizer.eos_token


def test_chat_template_refuses_other_roles(tokenizer):
    with pytest.raises(Exception, match="the roles are user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_shipped_model_has_its_skills():
    scores = pretrain.quality()
    assert set(scores) == {"arithmetic", "choice"}
    assert min(scores.values()) >= FLOOR, scores


def test_an_untrained_model_has_none(tmp_path):
    """The measure of quality can fail."""
    pretrain.pretrain(tmp_path, steps=0)
    assert max(pretrain.quality(tmp_path).values()) < 5


@pytest.mark.slow
def test_a_rebuild_reaches_the_same_quality(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["toy", "--output", str(tmp_path)])
    toy_main.main()
    rebuilt, shipped = pretrain.quality(tmp_path / "model"), pretrain.quality()
    for skill, score in shipped.items():
        assert rebuilt[skill] >= FLOOR
        assert abs(rebuilt[skill] - score) <= REBUILD_TOLERANCE, (skill, rebuilt, shipped)
