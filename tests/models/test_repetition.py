"""Counts of two layers of each kind are those of the whole model, or the whole model is counted."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from osora_bench.common.errors import UserError
from osora_bench.models import counting, repetition
from osora_bench.planning import blank as planning_blank
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.planning.config import Config, ModelConfig
from tests.more_methods import PAPER

SPARSE = {  # a mixture of experts in every second layer, an MLP in the others
    "model_type": "qwen2_moe", "num_hidden_layers": 7, "hidden_size": 64, "intermediate_size": 96,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts": 4, "vocab_size": 128, "decoder_sparse_step": 2,
}  # fmt: skip
PROJECTIONS = "[q_proj,down_proj]"


def configured(*overrides: str, **peft) -> Config:
    """The cell with more settings of the method's PEFT class."""
    with composer():
        cfg = resolve(compose(overrides, "test"), "test")
    return replace(cfg, method=replace(cfg.method, peft={**cfg.method.peft, **peft}))


def of_two_kinds(cfg: Config) -> Config:
    return replace(cfg, model=replace(cfg.model, name="sparse", architecture=SPARSE))


def count_whole(cfg: Config, monkeypatch) -> counting.Count:
    with monkeypatch.context() as patched:
        patched.setattr(counting, "is_layerwise", lambda method: False)
        return counting.count(cfg)


def refuse_the_whole_model(monkeypatch):
    """Make counting without thinning an error."""
    monkeypatch.setattr(counting, "_blank", lambda cfg: pytest.fail("the whole model is counted"))


@pytest.mark.parametrize("method", PAPER)
@pytest.mark.parametrize("model", ["smollm2-135m", "qwen2.5-32b-instruct", "sparse"])
def test_every_method_counts_as_on_the_whole_model(method, model, monkeypatch):
    if model == "sparse":
        chosen = ("model=toy", f"model.target_modules={PROJECTIONS}")
    else:
        chosen = (f"model={model}",)
    cfg = configured(*chosen, f"method={method}", "method.rank=8")
    cfg = of_two_kinds(cfg) if model == "sparse" else cfg
    whole = count_whole(cfg, monkeypatch)
    assert whole.trainable > 0
    refuse_the_whole_model(monkeypatch)
    assert counting.count(cfg) == whole


def test_a_model_that_is_trained_whole_is_counted_whole(monkeypatch):
    cfg = of_two_kinds(configured("model=toy", "method=lora"))
    cfg = replace(cfg, method=replace(cfg.method, peft=None, full=True))
    parameters = dict(planning_blank.blank(cfg.model).named_parameters())
    counted = counting.count(cfg)
    assert counted.trainable == sum(p.numel() for p in parameters.values())
    assert counted.adapter_bytes == counting._file_size(parameters, torch.float32)
    thin = repetition.thinned(cfg.model)
    assert set(thin.whole(dict(thin.model.named_parameters()))) == set(parameters)


def test_layers_of_two_kinds_leave_two_of_each():
    thin = repetition.thinned(of_two_kinds(configured("model=toy", "method=lora")).model)
    assert thin.stands_for == {
        "model.layers.0": ["model.layers.0"],
        "model.layers.2": ["model.layers.2", "model.layers.4", "model.layers.6"],
        "model.layers.1": ["model.layers.1"],
        "model.layers.3": ["model.layers.3", "model.layers.5"],
    }
    assert thin.like == {"model.layers.2": "model.layers.0", "model.layers.3": "model.layers.1"}


@pytest.mark.parametrize(
    ("settings", "trainable"),
    [
        ({"layers_to_transform": [3]}, 8 * (576 + 576) + 8 * (576 + 192)),
        ({"rank_pattern": {"layers.7.self_attn.q_proj": 2}}, 460_800 - 6 * (576 + 576)),
        ({"target_modules": ["layers.5.self_attn.q_proj"]}, 8 * (576 + 576)),
        ({"target_modules": r".*\.29\.self_attn\.q_proj"}, 8 * (576 + 576)),
    ],
)
def test_settings_that_tell_layers_apart_are_counted_on_the_whole_model(settings, trainable):
    cfg = configured("model=smollm2-135m", "method=lora", "method.rank=8", **settings)
    assert not repetition.is_layerwise(cfg.method)
    assert counting.count(cfg).trainable == trainable


def test_a_class_that_is_not_known_is_counted_on_the_whole_model():
    cfg = configured("model=toy", "method=lora", _target_="peft.AdaLoraConfig")
    assert not repetition.is_layerwise(cfg.method)


def test_like_layers_that_got_unlike_adapters_are_noticed(monkeypatch):
    unlike = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}}
    cfg = configured("model=smollm2-135m", "method=lora", "method.rank=8", **unlike)
    whole = count_whole(cfg, monkeypatch)
    known = repetition.LAYERWISE["peft.LoraConfig"] | {"rank_pattern"}
    monkeypatch.setitem(repetition.LAYERWISE, "peft.LoraConfig", known)
    assert repetition.is_layerwise(cfg.method)
    with pytest.raises(repetition.Unlike):
        counting._counted(cfg, repetition.thinned(cfg.model))
    assert counting.count(cfg) == whole


def test_what_is_refused_is_refused_of_the_whole_model():
    cfg = configured("model=smollm2-135m", "method=osora", "method.rank=193")
    with pytest.raises(UserError, match=r"of model\.layers\.0\.self_attn\.v_proj \(192 x 576\)"):
        counting.count(cfg)


def test_layers_that_share_a_tensor_are_all_kept(monkeypatch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))
            for number in (1, 4):
                self.blocks[number].weight = self.blocks[0].weight

    monkeypatch.setattr(repetition, "blank", lambda model: Model())
    thin = repetition.thinned(ModelConfig(name="shared", architecture={"shared": True}))
    assert thin.stands_for == {
        **{f"blocks.{number}": [f"blocks.{number}"] for number in (0, 1, 2, 4)},
        "blocks.3": ["blocks.3", "blocks.5"],
    }
    whole = Model()
    assert set(thin.whole(dict(thin.model.named_parameters()))) == {
        name for name, _ in whole.named_parameters()
    }


def test_a_models_file_that_changes_is_read_again(tmp_path):
    model = configured("model=toy", "method=lora").model
    folder = tmp_path / "model"
    folder.mkdir()
    told = '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": %d}'
    model = replace(model, path=str(folder))
    for layers in (3, 5):
        (folder / "config.json").write_text(told % layers)
        assert sum(map(len, repetition.thinned(model).stands_for.values())) == layers
