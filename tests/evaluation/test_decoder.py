"""Decoding and scoring of batches gives what the model itself gives, one prompt at a time."""

import contextlib
from collections import deque

import peft
import pytest
import torch
import transformers as tf

from osora_bench.evaluation.batched_model import _shared
from osora_bench.evaluation.decoder import Decoder
from osora_bench.evaluation.decoder_support import supports
from osora_bench.osora import OsoraConfig
from osora_bench.planning.compose import compose, composer, group_choices, resolve
from tests.evaluation.families import FAMILIES, SHAPE, family

END = 7


@pytest.fixture(params=FAMILIES, scope="module")
def model(request):
    return family(request.param)


def prompts(begin=(5, 9, 4, 11), n=12):
    """Prompts of many lengths that begin alike."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 20, (n,), generator=generator).tolist()
    return [[*begin, *torch.randint(8, 50, (k,), generator=generator).tolist()] for k in lengths]


def decode(model, asked, most=16, stopped=None, **settings):
    decoder = Decoder(
        model, eos_ids=[END], pad_id=0, **{"memory": 1 << 30, "most_rows": 64, **settings}
    )
    made = {}
    decoder.generate(asked, [most] * len(asked), made.__setitem__, stopped)
    return [made[i] for i in range(len(asked))]


def reference(model, asked, most=16):
    """Greedy decoding by the plain forward pass: one prompt, no cache, no padding."""
    made = []
    for prompt in asked:
        ids = list(prompt)
        while len(ids) < len(prompt) + most and (len(ids) == len(prompt) or ids[-1] != END):
            with torch.inference_mode():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        made.append(ids[len(prompt) :])
    return made


def test_outputs_are_those_of_one_prompt_at_a_time(model):
    assert supports(model)
    made = decode(model, prompts())
    assert made == reference(model, prompts())
    assert len({tuple(m) for m in made}) > 6
    assert any(m[-1] == END for m in made)  # some end early and leave the batch
    assert any(len(m) == 16 for m in made)


@pytest.mark.parametrize("settings", [{"most_rows": 1}, {"most_rows": 5}, {"memory": 1}])
def test_outputs_do_not_depend_on_the_batches(model, settings):
    assert decode(model, prompts(), **settings) == decode(model, prompts())


@pytest.mark.parametrize("asked", [prompts(begin=()), [[5, 9, 4], [5, 9, 4]], [[3]], []])
def test_prompts_without_a_common_beginning_alike_or_single(model, asked):
    assert decode(model, asked) == reference(model, asked)


def test_each_prompt_has_its_own_room(model):
    asked = prompts(n=3)
    made = {}
    decoder = Decoder(model, eos_ids=[], pad_id=0, memory=1 << 30, most_rows=64)
    decoder.generate(asked, [1, 40, 70], made.__setitem__)  # beyond one growth of the cache
    assert [len(made[i]) for i in range(3)] == [1, 40, 70]
    assert made[2] == reference(model, asked[2:], 70)[0] or END in made[2]


def test_a_stop_ends_its_row_alone(model):
    whole = decode(model, prompts())
    made = decode(model, prompts(), stopped=lambda tokens: len(tokens) == 2 and tokens[0] % 2 == 0)
    assert made == [m[:2] if m[0] % 2 == 0 else m for m in whole]


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        OsoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    ],
)
def test_an_adapter_takes_part(config):
    torch.manual_seed(0)
    base = FAMILIES["llama"]().eval()
    without = decode(base, prompts())
    adapted = peft.get_peft_model(base, config).eval()
    for name, parameter in adapted.named_parameters():
        if "osora_S" in name or "lora_B" in name:
            parameter.data += 1.0
    assert decode(adapted, prompts()) == reference(adapted, prompts()) != without


def test_the_models_own_attention_comes_back(model):
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError):
        decode(model, prompts(), stopped=lambda tokens: 1 / 0)
    assert model.config._attn_implementation == before


def tiny(kind, **settings):
    torch.manual_seed(0)
    config = getattr(tf, f"{kind}Config")(**{**SHAPE, **settings})
    return tf.AutoModelForCausalLM.from_config(config).eval()


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
OTHERS = {
    "frequencies that depend on the longest row": lambda: tiny(
        "Llama", rope_parameters={**LONGROPE, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    ),
    "a difference of two attentions": lambda: tiny("DiffLlama"),
    "nothing handed to the attention function": lambda: tiny("StableLm"),
    "a window that the attention function is not told": lambda: tiny(
        "Phimoe", sliding_window=100, num_local_experts=2
    ),
    "virtual tokens": lambda: peft.get_peft_model(
        tiny("Llama"), peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    ),
    "a token that switches the adapter on": lambda: peft.get_peft_model(
        tiny("Llama"),
        peft.LoraConfig(
            target_modules=["q_proj"], alora_invocation_tokens=[9], task_type="CAUSAL_LM"
        ),
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_supported_is_known(kind):
    assert not supports(OTHERS[kind]().eval())


@pytest.mark.parametrize("name", group_choices("model"))
def test_every_model_of_conf_is_supported(name):
    with composer():
        cfg = resolve(compose([f"model={name}"], "test"), "test")
    architecture = cfg.model.architecture or {"model_type": "llama"}
    # what the hub's configurations of Qwen hold besides, and switch off
    window = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28}
    more = window if architecture["model_type"] == "qwen2" else {}
    made = tf.AutoConfig.for_model(**{**architecture, **SHAPE, **more})
    assert supports(tf.AutoModelForCausalLM.from_config(made).eval())


def test_a_penalty_on_repetition_is_that_of_transformers():
    base = FAMILIES["llama"]().eval()
    made = decode(base, prompts(), most_rows=5, penalty=1.3)
    expected = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        settings = {"max_new_tokens": 16, "do_sample": False, "repetition_penalty": 1.3}
        tokens = base.generate(ids, eos_token_id=END, pad_token_id=0, **settings)
        expected.append(tokens[0, len(prompt) :].tolist())
    assert made == expected != decode(base, prompts())


def test_rows_that_are_finished_make_room_for_others(monkeypatch):
    """One long answer among short ones: no batch waits for it."""
    base = FAMILIES["llama"]().eval()
    passes = []
    whole = Decoder._forward
    monkeypatch.setattr(
        Decoder,
        "_forward",
        lambda self, ids, *rest, **k: passes.append(ids.shape) or whole(self, ids, *rest, **k),
    )
    decoder = Decoder(base, eos_ids=[], pad_id=0, memory=1 << 30, most_rows=2)
    made = {}
    longest = max(range(12), key=lambda i: len(prompts()[i]))
    room = [40 if i == longest else 4 for i in range(12)]
    decoder.generate(prompts(), room, made.__setitem__)
    assert [len(made[i]) for i in range(12)] == room
    assert sum(1 for _, tokens in passes if tokens == 1) <= 40 + 4


def test_what_all_prompts_begin_with():
    assert _shared([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert _shared([[1, 2], [1, 2, 3]]) == 1  # a token is left to each
    assert _shared([[1], [2]]) == 0
    assert _shared([[1, 2, 3]]) == 0  # alone: read in one go


def test_a_batch_that_is_too_large_for_the_gpu_is_halved(monkeypatch):
    base = FAMILIES["llama"]().eval()
    expected = decode(base, prompts())
    whole = Decoder._forward
    sizes = []

    def fail_above_three(self, ids, cache, keep):
        sizes.append(len(cache.padding))
        if sizes[-1] > 3 and len(sizes) > 4:  # some answers are finished by then
            raise torch.OutOfMemoryError
        return whole(self, ids, cache, keep)

    monkeypatch.setattr(Decoder, "_forward", fail_above_three)
    told = []
    decoder = Decoder(base, eos_ids=[END], pad_id=0, memory=1 << 30, most_rows=64)
    room = [1 if i % 3 == 0 else 16 for i in range(12)]
    decoder.generate(prompts(), room, lambda *found: told.append(found))
    assert sorted(told) == [(i, m[: room[i]]) for i, m in enumerate(expected)]
    assert max(sizes) == 12
    assert sizes[-1] <= 3


def test_a_model_that_keeps_its_own_attention_is_noticed(monkeypatch):
    """A wrong answer would be worse than none."""
    base = FAMILIES["llama"]().eval()
    monkeypatch.setattr(base, "set_attn_implementation", lambda name: None)
    monkeypatch.setattr(Decoder, "_exchanged_attention", contextlib.nullcontext)
    with pytest.raises(RuntimeError, match="handed 0 of its 2 layers"):
        decode(base, prompts())


def test_a_gpu_that_one_sequence_does_not_fit_is_told_of(monkeypatch):
    """It would be tried for ever."""
    tries = []

    def fail(*_, **__):
        tries.append(1)
        assert len(tries) < 10
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Decoder, "_forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        decode(FAMILIES["llama"]().eval(), [[5, 9, 4], [8, 7, 7, 1]])
    assert len(tries) == 2  # two sequences, then one


def test_a_batch_may_fill_the_memory_to_the_byte():
    decoder = Decoder(FAMILIES["llama"]().eval(), eos_ids=[END], pad_id=0, memory=0, most_rows=64)
    # 2 layers, keys and values of 2 heads of 8 float32; 50 logits, as they are and as float32
    one = 20 * (2 * 2 * 2 * 8 * 4) + 50 * (4 + 4)
    for memory, rows in ((3 * one, 3), (3 * one - 1, 2), (0, 1)):
        decoder.memory = memory
        assert len(decoder._entering(deque(range(5)), [], lambda _: 20)) == rows
