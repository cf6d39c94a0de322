"""Layers that are not one weight for one place: tied, shared, replicated, of experts, transposed.
Each works, or is refused by name before anything is changed."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import nn

from osora_bench.osora import OsoraConfig, save_lora, save_merged
from osora_bench.osora.older_peft import BEFORE_20
from tests.osora.conftest import LLAMA, disturb, logits, make_base, make_inputs
from tests.osora.test_bad_input import refuse
from tests.osora.test_peft_features import config


def tied() -> Any:
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA, tie_word_embeddings=True)).eval()


def test_a_tied_output_layer_is_adapted_alone(tmp_path: Path) -> None:
    """Its update is the head's: the embedding, whose weight it shares, stays. Merged it would not,
    so that is refused."""
    base, inputs = tied(), make_inputs("llama")
    weight = base.model.embed_tokens.weight
    before, kept = logits(base, inputs), weight.data.clone()
    hidden = base.model(inputs["input_ids"]).last_hidden_state.detach()
    model = peft.get_peft_model(base, config(target_modules=["lm_head"])).eval()
    assert torch.equal(logits(model, inputs), before)
    disturb(model)
    delta = base.lm_head.get_delta_weight("default")
    torch.testing.assert_close(logits(model, inputs), before + hidden @ delta.T)
    after = logits(model, inputs)
    folder = [] if BEFORE_20 else [partial(save_merged, model, tmp_path / "merged")]
    for merge in (model.merge_adapter, model.merge_and_unload, *folder):
        with pytest.raises(ValueError, match=r"lm_head shares its weight with model.embed_tokens"):
            merge()
    assert torch.equal(weight.data, kept)
    assert torch.equal(logits(model, inputs), after)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(tied(), tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, inputs), after)
    save_lora(model, tmp_path / "lora")
    as_lora = peft.PeftModel.from_pretrained(tied(), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(as_lora, inputs), after, rtol=1e-4, atol=1e-5)
    assert logits(model.unload(), inputs).equal(before)


def test_an_adapter_beside_one_on_a_tied_layer_is_merged() -> None:
    inputs = make_inputs("llama")
    model = peft.get_peft_model(tied(), config()).eval()
    disturb(model)
    after = logits(model, inputs)
    model.add_adapter("head", config(target_modules=["lm_head"]))
    for names in (["default"], None):  # by name, and as the active one
        model.merge_adapter(names)
        torch.testing.assert_close(logits(model, inputs), after, rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()
    for names in (["head"], ["default", "head"]):
        with pytest.raises(ValueError, match="lm_head shares its weight"):
            model.merge_adapter(names)
    model.set_adapter("head")
    with pytest.raises(ValueError, match="lm_head shares its weight"):
        model.merge_adapter()
    model.set_adapter("default")
    torch.testing.assert_close(
        logits(model.merge_and_unload(), inputs), after, rtol=1e-4, atol=1e-5
    )


def test_an_output_layer_of_its_own_is_merged() -> None:
    base, inputs = make_base("llama"), make_inputs("llama")
    model = peft.get_peft_model(base, config(target_modules=["lm_head"])).eval()
    disturb(model)
    after = logits(model, inputs)
    torch.testing.assert_close(logits(model.merge_and_unload(), inputs), after)


def test_embeddings_are_refused() -> None:
    for base in (tied(), make_base("llama")):
        refuse(base, "embed_tokens is no linear layer", target_modules=["embed_tokens"])


def mixtral() -> Any:
    torch.manual_seed(0)
    sizes = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
    return tf.MixtralForCausalLM(tf.MixtralConfig(**sizes)).eval()


@pytest.mark.skipif(int(tf.__version__.split(".")[0]) < 5, reason="experts are linear layers there")
def test_fused_experts_are_refused_and_what_is_around_them_works() -> None:
    inputs = make_inputs("llama")
    refuse(
        mixtral(), "experts is no linear layer but a .*MixtralExperts", target_modules=["experts"]
    )
    told = r"'{}' is a parameter of model.layers.0.mlp.experts \(.*MixtralExperts\), no module"
    for names in (["gate_up_proj"], ["q_proj", "gate_up_proj"], ["experts.down_proj"]):
        refuse(mixtral(), told.format(names[-1]), target_modules=names)
    base = mixtral()
    before = logits(base, inputs)
    model = peft.get_peft_model(base, config(target_modules="all-linear", clip_rank=True)).eval()
    assert torch.equal(logits(model, inputs), before)
    adapted = {n.rpartition(".")[2] for n in model.targeted_module_names}
    assert adapted >= {"q_proj", "k_proj", "v_proj", "o_proj"}
    disturb(model)
    after = logits(model, inputs)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(
        logits(model.merge_and_unload(), inputs), after, rtol=1e-3, atol=1e-4
    )


def test_parameters_without_a_module_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match="target_parameters is no option of OsoraConfig: OSoRA adapts linear"
    ):
        OsoraConfig(target_parameters=["experts.gate_up_proj"])


def test_replication_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match="layer_replication is no option of OsoraConfig: OSoRA repeats no layers"
    ):
        OsoraConfig(layer_replication=[(0, 2), (1, 2)])
    nothing = OsoraConfig(target_parameters=None, layer_replication=None)
    assert not set(nothing.to_dict()) & {"target_parameters", "layer_replication"}


class Twice(nn.Module):
    """One layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.second = self.first
        self.other = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.second(self.first(x)))


def test_a_layer_at_two_places_is_refused() -> None:
    model = Twice()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="first and second are one layer"):
        peft.get_peft_model(model, OsoraConfig(r=2, target_modules=["first", "second"]))
    with pytest.raises(ValueError, match="first and second are one layer"):
        peft.get_peft_model(model, OsoraConfig(r=2, target_modules=["first"]))
    assert model.first is model.second
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    peft.get_peft_model(model, OsoraConfig(r=2, target_modules=["other"]))


def test_layers_that_share_a_weight_have_adapters_of_their_own() -> None:
    """As a transformer that repeats its blocks; one merge would change both."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    x = torch.randn(3, 8)
    adapted = peft.get_peft_model(model, OsoraConfig(r=2, target_modules=["a", "b"]))
    a, b = (adapted.base_model.model[name] for name in "ab")
    before = b(x)
    with torch.no_grad():
        a.osora_S["default"].mul_(2)
    assert torch.equal(b(x), before)
    with pytest.raises(ValueError, match="a shares its weight with b; b shares its weight with a"):
        adapted.merge_adapter()


def test_a_layer_that_a_model_calls_again_and_again_is_one_adapter() -> None:
    """ALBERT's blocks are one, called for each of its layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    base = tf.AlbertModel(
        tf.AlbertConfig(vocab_size=64, embedding_size=8, num_hidden_layers=3, **sizes)
    ).eval()
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        before = base(ids).last_hidden_state
        cfg = OsoraConfig(r=4, target_modules=["query", "value"])
        model = peft.get_peft_model(base, cfg).eval()
        assert len(model.targeted_module_names) == 2
        assert torch.equal(model(ids).last_hidden_state, before)
        disturb(model)
        after = model(ids).last_hidden_state
        assert (after - before).abs().max() > 1e-3
        torch.testing.assert_close(
            model.merge_and_unload()(ids).last_hidden_state, after, rtol=1e-4, atol=1e-5
        )
