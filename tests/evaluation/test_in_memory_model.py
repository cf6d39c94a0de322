"""Our model class answers as OpenCompass's own wrapper does, however it is asked."""

import json
import shutil

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DiffLlamaConfig,
    LlamaForCausalLM,
)

from osora_bench.evaluation.in_memory_model import messages
from tests.evaluation.toy_model import TOY, prompts, wrapped

TINY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


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
