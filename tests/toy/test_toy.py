"""The embedded model and tasks: formats, disjointness, reproducibility, quality."""

import itertools
import json
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


def assert_disjoint(keys: dict[str, set]) -> None:
    assert sum(len(split) for split in keys.values()) == len(set().union(*keys.values()))


def test_arithmetic_splits_share_no_operands():
    """By sign and operands, read back from the files; 12+30 and 30+12 are one instance."""

    def key(row: dict) -> tuple[str, tuple[str, ...]]:
        a, sign, b = re.match(r"(\d+)([-+])(\d+)=", row["answer"]).groups()
        return sign, tuple(sorted((a, b)))

    found = {split: {key(row) for row in rows} for split, rows in splits("gsm8k").items()}
    assert {split: len(keys) for split, keys in found.items()} == tasks.ROWS
    assert_disjoint(found)


def test_choice_splits_share_no_word():
    assert_disjoint(
        {
            split: {row["question"]["question_concept"] for row in rows}
            for split, rows in splits("commonsenseqa").items()
        }
    )


@pytest.mark.parametrize("task", ["gsm8k", "commonsenseqa"])
def test_no_question_stands_twice(task):
    texts = [json.dumps(row["question"]) for rows in splits(task).values() for row in rows]
    assert len(set(texts)) == len(texts)


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
            word = row["question"]["question_concept"]
            assert word in row["question"]["stem"]
            choices = row["question"]["choices"]
            right = [c["label"] for c in choices if word in tasks.WORDS[c["text"]]]
            assert [c["label"] for c in choices] == list(tasks.LETTERS)
            assert right == [row["answerKey"]]


def test_answers_are_spread_over_the_letters():
    keys = [row["answerKey"] for row in splits("commonsenseqa")["test"]]
    assert all(60 <= keys.count(letter) <= 140 for letter in tasks.LETTERS)


def test_pretraining_text_has_no_sum_that_is_asked_later():
    trained, held_out = pretrain.arithmetic_pool()
    asked = tasks.split_arithmetic()
    later = {*asked["validation"], *asked["test"], *held_out}
    assert len(held_out) == pretrain.HELD_OUT
    assert len(later) == tasks.ROWS["validation"] + tasks.ROWS["test"] + pretrain.HELD_OUT
    assert not later & set(trained)
    sums = re.compile(r"(\d+)([-+])(\d+)=")
    seen = set()
    for conversation in itertools.islice(pretrain.corpus(), 5000):
        for a, sign, b in sums.findall(pretrain.render(conversation)):
            seen.add(tasks.Arithmetic(sign, int(a), int(b)))
    assert len(seen) > 1000
    assert not seen & later


def test_pretraining_text_has_no_question_of_the_tasks():
    asked = {
        json.dumps(row["question"] if task == "gsm8k" else row["question"]["stem"])[1:-1]
        for task in ("gsm8k", "commonsenseqa")
        for rows in splits(task).values()
        for row in rows
    }
    for conversation in itertools.islice(pretrain.corpus(), 5000):
        for said, _ in conversation:
            lines = said.removeprefix("Question: ").split("\n")
            assert not asked & set(lines)


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
    assert set(scores) == {"arithmetic", "category"}
    assert min(scores.values()) >= FLOOR, scores


def test_an_untrained_model_has_none(tmp_path):
    """The measure of quality can fail."""
    pretrain.pretrain(tmp_path, steps=1)
    assert max(pretrain.quality(tmp_path).values()) < 5


@pytest.mark.slow
def test_a_rebuild_reaches_the_same_quality(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["toy", "--output", str(tmp_path)])
    toy_main.main()
    rebuilt, shipped = pretrain.quality(tmp_path / "model"), pretrain.quality()
    for skill, score in shipped.items():
        assert rebuilt[skill] >= FLOOR
        assert abs(rebuilt[skill] - score) <= REBUILD_TOLERANCE, (skill, rebuilt, shipped)
