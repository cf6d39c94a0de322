"""What a training step computes: the loss of the places that have a label, and no others."""

import peft
import pytest
import torch
import transformers as tf

from osora_bench.training.collator import Collator, takes_places
from osora_bench.training.data import IGNORED_LABEL
from osora_bench.training.train import arguments

SHAPE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": lambda: tf.LlamaConfig(**SHAPE, intermediate_size=48),
    "qwen2": lambda: tf.Qwen2Config(**SHAPE, intermediate_size=48, num_key_value_heads=2),
    "gpt2": lambda: tf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4),
}
PROMPT_LEARNING = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")


def adapted(family, config):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(FAMILIES[family]()).double()
    return peft.get_peft_model(model, config or peft.LoraConfig(target_modules="all-linear")).eval()


def row(length, answer):
    """Tokens of which the last `answer` are labels."""
    tokens = torch.randint(3, 50, (length,)).tolist()
    return {"input_ids": tokens, "labels": [IGNORED_LABEL] * (length - answer) + tokens[-answer:]}


def step(model, batch, **more):
    model.zero_grad()
    out = model(**batch, **more)
    out.loss.backward()
    return out, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("count", [None, 7])
@pytest.mark.parametrize("answers", [(1, 2, 3), (9, 14, 5)], ids=["answers", "whole texts"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_labelled_places_is_the_loss(family, answers, count):
    """In float64, its gradients too; `count`: of the labels of all micro-batches of a step."""
    model = adapted(family, None)
    assert takes_places(model)
    rows = [row(length, answer) for length, answer in zip((9, 14, 5), answers, strict=True)]
    more = {} if count is None else {"num_items_in_batch": count}
    whole, expected = step(model, Collator(0)(rows), **more)
    few, gradients = step(model, Collator(0, labelled_only=True)(rows), **more)
    torch.testing.assert_close(few.loss, whole.loss, rtol=1e-6, atol=0)  # summed as float32
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-8)


def test_logits_are_computed_where_a_row_has_a_label_only():
    rows = [row(9, 1), row(14, 2), row(13, 1)]
    places = Collator(0, labelled_only=True)(rows)
    assert places["logits_to_keep"].tolist() == [7, 11, 12]  # each one before its label
    assert adapted("llama", None)(**places).logits.shape == (3, 3, 50)


def test_rows_without_a_label_have_no_loss():
    filler = {"input_ids": [0, 1], "labels": [IGNORED_LABEL] * 2}
    batch = Collator(0, labelled_only=True)([filler])
    out, gradients = step(adapted("llama", None), batch, num_items_in_batch=3)
    assert out.loss == 0
    assert not gradients.any()


def test_virtual_tokens_move_the_places():
    assert not takes_places(adapted("llama", PROMPT_LEARNING))


def test_a_loss_of_the_model_s_own_is_left_alone():
    model = adapted("llama", None)
    model.get_base_model().loss_function = lambda **_: None
    assert not takes_places(model)


def test_a_machine_with_several_gpus_does_not_make_batches_larger(make_cell, monkeypatch, tmp_path):
    monkeypatch.setattr(tf.TrainingArguments, "_setup_devices", torch.device("cpu"))
    monkeypatch.setattr(tf.TrainingArguments, "_n_gpu", 4, raising=False)
    cell = make_cell("trainer.batch_size=8", "trainer.micro_batch_size=8")
    made = arguments(cell.config, tmp_path, torch.device("cpu"))
    assert made.train_batch_size == 8
