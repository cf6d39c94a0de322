"""A model that computes no numbers has no score, however it is asked."""

import math

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from osora_bench.common import paths
from osora_bench.evaluation.batched_model import NoNumbers
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.evaluation.journal import Journal

TOY = str(paths.resolve("pkg://osora_bench.toy/model"))
TEXTS = ["Add 12 and 30.", "Add 5 and 7. Now."]


def spoilt(value, layer):
    model = LlamaForCausalLM.from_pretrained(TOY).eval()
    with torch.no_grad():
        weight = model.get_parameter(layer)
        weight.copy_(torch.full_like(weight, value))
    return model


def asked(model, batched, chat, **more):
    made = InMemoryModel(model, AutoTokenizer.from_pretrained(TOY), chat=chat, label="test", **more)
    made.batched = batched
    return made


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    ("value", "layer"),
    [
        (math.nan, "model.norm.weight"),
        (math.inf, "model.norm.weight"),
        (math.nan, "model.layers.1.mlp.down_proj.weight"),
        (3e38, "model.norm.weight"),  # a finite weight, and logits that overflow
    ],
)
def test_neither_answers_nor_perplexities_are_had_of_it(value, layer, batched):
    model = spoilt(value, layer)
    with pytest.raises(NoNumbers, match="NaN or infinite numbers; it cannot be scored"):
        asked(model, batched, chat=True).generate(TEXTS, 8)
    with pytest.raises(NoNumbers, match="NaN or infinite numbers; it cannot be scored"):
        asked(model, batched, chat=False).get_ppl(TEXTS)


def test_losses_of_before_that_are_no_numbers_are_asked_again(tmp_path):
    model = LlamaForCausalLM.from_pretrained(TOY).eval()
    fresh = asked(model, True, chat=False).get_ppl(TEXTS)
    with Journal(tmp_path / "journal", "owner") as journal:
        one = asked(model, True, chat=False, journal=journal)
        journal.put(["ppl", one._encode(TEXTS[0]), 0], math.nan)
        assert one.get_ppl(TEXTS).tolist() == pytest.approx(fresh.tolist(), rel=1e-5)
