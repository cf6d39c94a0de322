"""The loss that goes from hidden states to gradients without the logits of all tokens."""

import peft
import pytest
import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode

from osora_bench.training import linear_loss
from osora_bench.training.collator import Collator
from osora_bench.training.data import IGNORED_LABEL

GEMMA = {"num_key_value_heads": 2, "head_dim": 8}
CPT = {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1] * 3, "cpt_tokens_type_mask": [1, 2, 3]}
SHAPE = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = tf.LlamaConfig(**SHAPE, intermediate_size=48)
TIED = tf.LlamaConfig(**SHAPE, intermediate_size=48, tie_word_embeddings=True)


def adapted(config, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).to(dtype)
    return peft.get_peft_model(model, peft.LoraConfig(**{"target_modules": ["q_proj"]} | settings))


def rows(*answers):
    """Rows of 9 to 14 tokens, of which the last few are labels."""
    made = []
    for length, answer in zip((9, 14, 5), answers, strict=True):
        tokens = torch.randint(3, 300, (length,)).tolist()
        labels = [IGNORED_LABEL] * (length - answer) + tokens[length - answer :]
        made.append({"input_ids": tokens, "labels": labels})
    return made


def step(model, batch, **more):
    model.zero_grad()
    loss = model(**batch, **more).loss
    loss.backward()
    return loss.detach(), torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    )


def is_taken(model):
    own = model.get_base_model().loss_function
    with linear_loss.linear_loss(model):
        taken = model.get_base_model().loss_function is not own
    assert model.get_base_model().loss_function is own
    assert "forward" not in vars(model.get_base_model().get_output_embeddings())
    return taken


@pytest.mark.parametrize("count", [None, 40, torch.tensor(40)], ids=["mean", "of all", "tensor"])
@pytest.mark.parametrize("answers", [(9, 14, 5), (1, 2, 3)], ids=["whole texts", "answers"])
@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize("config", [LLAMA, TIED], ids=["own", "tied"])
def test_loss_and_gradients_are_transformers_own(config, answers, places, count, monkeypatch):
    monkeypatch.setattr(linear_loss, "PRODUCT_ROWS", 7)
    monkeypatch.setattr(linear_loss, "SOFTMAX_BYTES", 3 * 4 * 300)
    model = adapted(config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    batch = Collator(0, labelled_only=places)(rows(*answers))
    more = {} if count is None else {"num_items_in_batch": count}
    expected = step(model, batch, **more)
    with linear_loss.linear_loss(model):
        found = step(model, batch, **more)
        with torch.no_grad():
            assert model(**batch, **more).loss == pytest.approx(float(expected[0]), rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_autocast_it_is_as_exact_as_transformers_own(dtype):
    """Beside the same in float64; a likely label too, whose gradient is a small difference."""
    model = adapted(TIED, dtype)
    with torch.no_grad():
        model.get_base_model().get_output_embeddings().weight.mul_(20)
    batch = Collator(0)(rows(9, 14, 5))
    exact, gradient = step(model.double(), batch)
    model.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        plain, others = step(model, batch)
        with linear_loss.linear_loss(model):
            loss, found = step(model, batch)
    assert abs(loss - exact) < 1.5 * abs(plain - exact) + 1e-4 * exact
    error, allowed = ((g - gradient).norm() / gradient.norm() for g in (found, others))
    assert error < 1.3 * allowed


def test_no_logits_of_all_tokens_are_made():
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() and out.shape[-1] == 300:
                seen.append(out.shape[:-1].numel())
            return out

    model = adapted(LLAMA)
    batch = Collator(0)(rows(9, 14, 5))
    with linear_loss.linear_loss(model), Watch():
        linear_loss_rows = linear_loss.PRODUCT_ROWS
        step(model, batch)
    assert max(seen) <= min(
        linear_loss_rows, 25
    )  # 28 labels, the first of each row has none before


def test_the_output_layer_is_multiplied_once_for_all_rows():
    """Not by a batched product, which would copy the vocabulary's matrix for each of them."""
    products = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() and out.shape[-1] == 300:
                products.append(func.overloadpacket.__name__)
            return out

    model = adapted(LLAMA)
    with Watch():
        step(model, Collator(0, labelled_only=True)(rows(1, 2, 3)))
    assert "mm" in products
    assert not {"bmm", "baddbmm"} & set(products)
    with Watch():  # the trap itself: the last places as a slice
        model(input_ids=torch.ones(3, 14, dtype=torch.long), logits_to_keep=4)
    assert "bmm" in products


@pytest.mark.parametrize(
    "model",
    [
        lambda: adapted(LLAMA, target_modules=["lm_head"]),
        lambda: adapted(LLAMA, modules_to_save=["lm_head"]),
        lambda: adapted(tf.GraniteConfig(**SHAPE, intermediate_size=48, logits_scaling=3.0)),
        lambda: adapted(tf.CohereConfig(**SHAPE, intermediate_size=48, logit_scale=0.5)),
        lambda: adapted(tf.Gemma2Config(**SHAPE, intermediate_size=48, **GEMMA)),
        lambda: peft.get_peft_model(
            tf.AutoModelForCausalLM.from_config(LLAMA),
            peft.CPTConfig(**CPT, task_type="CAUSAL_LM"),
        ),
    ],
    ids=["adapted layer", "trained layer", "scaled", "scaled, too", "bounded", "a loss of its own"],
)  # fmt: skip
def test_what_is_no_frozen_last_product_is_left_alone(model):
    assert not is_taken(model())


def test_a_frozen_one_is_taken_and_given_back():
    assert is_taken(adapted(LLAMA))
