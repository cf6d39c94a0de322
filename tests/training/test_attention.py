"""The attention that a CPU trains with: the same mathematics, where a model has it."""

import math

import peft
import pytest
import torch
import transformers as tf

from osora_bench.common.errors import UserError
from osora_bench.training import attention
from osora_bench.training.attention import GROUPED, LONGEST, grouped_attention, trained_with
from osora_bench.training.checks import check_attention

SHAPE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": lambda: tf.LlamaConfig(**SHAPE, intermediate_size=48),
    "grouped heads": lambda: tf.Qwen2Config(**SHAPE, intermediate_size=48, num_key_value_heads=2),
    "window": lambda: tf.MistralConfig(
        **SHAPE, intermediate_size=48, num_key_value_heads=2, sliding_window=4
    ),
    "gpt2": lambda: tf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4),
}


def made(config):
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config)


def naive(query, key, value, mask, scaling):
    """Each query by itself, in float64."""
    query, key, value, mask = (t.double() for t in (query, key, value, mask))
    batch, heads, tokens, size = query.shape
    out = torch.zeros(batch, tokens, heads, size, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            shared = h * key.shape[1] // heads
            for t in range(tokens):
                scores = [
                    float(query[b, h, t] @ key[b, shared, s] * scaling + mask[b, 0, t, s])
                    for s in range(tokens)
                ]
                weights = [math.exp(s - max(scores)) for s in scores]
                out[b, t, h] = sum(
                    w / sum(weights) * value[b, shared, s] for s, w in enumerate(weights)
                )
    return out


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tokens", [5, 9])
def test_it_is_the_softmax_of_masked_products(dtype, error, tokens, monkeypatch):
    """Also where torch's own fused attention takes over, for long sequences."""
    monkeypatch.setitem(LONGEST, dtype, 6)
    torch.manual_seed(0)
    query = torch.randn(2, 6, tokens, 8).to(dtype)
    key, value = (torch.randn(2, 2, tokens, 8).to(dtype) for _ in range(2))
    mask = torch.full((2, 1, tokens, tokens), torch.finfo(torch.float32).min).triu(1)
    mask[1, 0, :, 3] = torch.finfo(torch.float32).min  # of another type than the rest
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    found, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    expected = naive(query, key, value, mask, 0.3)
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_model_s_own(family):
    model = made(FAMILIES[family]()).train()
    ids = torch.randint(3, 50, (3, 12))
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 9 + [0] * 3])
    labels = torch.where(mask.bool(), ids, -100)

    def step():
        model.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters()]

    model.eval()  # GPT-2 has dropout
    expected, gradients = step()
    with trained_with(model, "auto", on_cpu=True):
        assert model.config._attn_implementation == GROUPED
        loss, others = step()
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)


def test_random_numbers_that_follow_are_those_that_would_have_followed():
    model = peft.get_peft_model(
        made(FAMILIES["llama"]()), peft.LoraConfig(target_modules="all-linear", lora_dropout=0.5)
    ).train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with trained_with(model, "auto", on_cpu=True):
        assert torch.equal(torch.rand(3), expected)
        assert model.training


@pytest.mark.parametrize(
    "config",
    [
        tf.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4),
        tf.Gemma2Config(**SHAPE, intermediate_size=48, num_key_value_heads=2, head_dim=8),
    ],
    ids=["of its own", "bounded scores"],
)
def test_a_model_of_another_kind_keeps_its_own(config):
    model = made(config)
    own = model.config._attn_implementation
    with trained_with(model, "auto", on_cpu=True):
        assert model.config._attn_implementation == own


def test_a_base_model_is_tried_once_for_a_kind_of_adapter(monkeypatch):
    tried = []
    losses = attention.trial_losses
    monkeypatch.setattr(attention, "trial_losses", lambda m: tried.append(m) or losses(m))
    base = made(FAMILIES["llama"]())
    for settings in (
        peft.LoraConfig(target_modules="all-linear", r=2),
        peft.LoraConfig(target_modules="all-linear", r=4),
        peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    ):
        model = peft.get_peft_model(base, settings)
        with trained_with(model, "auto", on_cpu=True):
            assert base.config._attn_implementation == GROUPED
        base = model.unload() if hasattr(model, "unload") else base
    assert len(tried) == 2 * 2  # with its own attention and with the other


def test_scores_that_are_changed_on_the_way_are_refused():
    tensors = [torch.zeros(1, 2, 3, 4)] * 3
    with pytest.raises(NotImplementedError, match="softcap"):
        grouped_attention(torch.nn.Module(), *tensors, None, softcap=30.0)


def test_a_gpu_and_shared_weights_keep_the_model_s_own():
    model = made(FAMILIES["llama"]())
    with trained_with(model, "auto", on_cpu=False):
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["auto", "eager", "sdpa"])
def test_an_attention_that_the_model_has_is_taken(make_cell, name):
    check_attention(make_cell("method=lora", f"trainer.attention={name}"))


@pytest.mark.parametrize("name", ["flash_attention_2", "spda", "paged|eager"])
def test_one_that_the_model_or_the_machine_lacks_is_told(make_cell, name):
    with pytest.raises(UserError, match=r"attention .*Valid: auto, eager, flex_attention, sdpa"):
        check_attention(make_cell("method=lora", f"trainer.attention='{name}'"))
