"""Scores come from OpenCompass; our model class answers as its own wrapper does."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from osora_bench import evaluate, paths
from osora_bench.errors import UserError
from osora_bench.opencompass_model import InMemoryModel, messages
from osora_bench.record import unpack

TOY = str(paths.resolve("pkg://osora_bench.toy/model"))


@pytest.fixture(scope="module")
def toy():
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    model = LlamaForCausalLM.from_pretrained(TOY).eval()
    return model, tokenizer


def wrapped(toy, batch_tokens=4096, chat=True):
    return InMemoryModel(*toy, chat=chat, batch_tokens=batch_tokens, label="test")


def prompts(n=24):
    """Prompts of many lengths."""
    return [f"Add {10 + i} and {20 + i}." + " Now." * (i % 7) for i in range(n)]


def test_answers_equal_those_of_opencompass_own_wrapper(toy, monkeypatch):
    from opencompass.models import HuggingFacewithChatTemplate
    from transformers import PreTrainedTokenizerBase

    # the method that its wrapper calls and transformers 5 no longer has
    monkeypatch.setattr(
        PreTrainedTokenizerBase,
        "batch_encode_plus",
        lambda self, texts, **settings: self(texts, **settings),
        raising=False,
    )
    stock = HuggingFacewithChatTemplate(
        path=TOY, model_kwargs={"torch_dtype": torch.float32}, max_seq_len=256
    )
    ours = wrapped(toy).generate(prompts(), max_out_len=24)
    assert ours == stock.generate(prompts(), max_out_len=24)
    assert len(set(ours)) > 12  # answers, not one constant


@pytest.mark.parametrize("batch_tokens", [1, 100, 400])
def test_answers_do_not_depend_on_how_they_are_batched(toy, batch_tokens):
    assert wrapped(toy, batch_tokens).generate(prompts(), 16) == wrapped(toy).generate(
        prompts(), 16
    )


def test_answers_keep_the_order_of_the_questions(toy):
    forward = wrapped(toy).generate(prompts(), 16)
    backward = wrapped(toy).generate(prompts()[::-1], 16)
    assert backward[::-1] == forward


def test_a_prompt_longer_than_the_context_is_refused_not_cut(toy):
    with pytest.raises(UserError, match=r"1 of 2 prompts .* do not fit the context of 256"):
        wrapped(toy).generate(["Add 1 and 2.", "word " * 300], 16)


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
    config = evaluate.dataset_config(
        {"name": "gsm8k", "config": "gsm8k_gen_1d7fe4", "max_out_len": 7, "limit": 5}
    )
    assert config.infer_cfg.inferencer.max_out_len == 7
    assert config.reader_cfg.test_range == "[0:5]"


def test_a_score_that_its_verdicts_do_not_add_up_to_is_an_error():
    dataset = {"name": "x", "questions": 2}
    details = [{"correct": [True]}, {"correct": [False]}]
    assert evaluate._score({"accuracy": 50.0, "details": details}, dataset).k == 1
    with pytest.raises(RuntimeError, match="OpenCompass says 60.0, its verdicts say 1/2"):
        evaluate._score({"accuracy": 60.0, "details": details}, dataset)
    with pytest.raises(RuntimeError, match="returned no accuracy"):
        evaluate._score({"error": "different length"}, dataset)


def test_a_model_that_knows_the_answers_scores_full_marks(toy, make_cell, monkeypatch):
    """The whole way through OpenCompass with answers that are right, then wrong for every third."""
    cell = make_cell("eval.datasets.0.limit=30", "eval.datasets.1.limit=30")
    suite = cell.config["eval"]
    configs = evaluate.prepare(suite, cell.paths.runs)
    known = []  # what a prompt contains, and its right answer, in the order of the questions
    for config in configs.values():
        for row in evaluate._build(config).test:
            right = row.get("answerKey") or row["answer"].split("#### ")[1]
            known.append(
                ([row["question"], *(f"{c}. {row[c]}" for c in "ABCDE" if c in row)], right)
            )

    def answer(self, inputs, max_out_len, **_):
        replies = []
        for prompt in inputs:
            text = prompt[0]["prompt"]
            (index,) = (i for i, (parts, _) in enumerate(known) if all(p in text for p in parts))
            replies.append("no idea" if index % 3 == 0 else known[index][1])
        return replies

    monkeypatch.setattr(InMemoryModel, "generate", answer)
    scores = evaluate.evaluate(*toy, cell.config, cell.paths.opencompass, "test")
    for score in scores.values():
        assert (score.k, score.n, score.questions) == (20, 30, 500)
        assert unpack(score.right, 30) == [i % 3 != 0 for i in range(30)]


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
    scores = evaluate.evaluate(
        model, AutoTokenizer.from_pretrained(TOY), cell.config, cell.paths.opencompass, "test"
    )
    assert {name: score.n for name, score in scores.items()} == {
        "gsm8k-toy": 8,
        "commonsenseqa-toy": 8,
    }
