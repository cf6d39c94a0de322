"""Bad input gets an error that names the valid choices, before anything is changed."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils.hotswap import hotswap_adapter
from torch import nn

from osora_bench.osora import OsoraConfig, commands, targets
from tests.osora.conftest import make_base
from tests.osora.test_peft_features import config, same_weights


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"r": 0}, "r must be a whole number of at least 1, not 0"),
        ({"r": -3}, "at least 1, not -3"),
        ({"r": 2.0}, "at least 1, not 2.0"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] must be .* not 0"),
        ({"rank_pattern": None}, "rank_pattern must map names to ranks, not None"),
        ({"rank_pattern": [3]}, r"rank_pattern must map names to ranks, not \[3\]"),
        ({"o_init": "gaussian", "o_init_std": True}, "o_init_std must be a positive number"),
        ({"format_version": "1"}, "format_version must be a whole number of at least 1, not '1'"),
        ({"o_init": "zeros"}, "o_init must be one of ones, gaussian, not 'zeros'"),
        ({"o_side": "left"}, "o_side must be one of output, input, not 'left'"),
        ({"bias": "some"}, "bias must be one of none, all, osora_only, not 'some'"),
        ({"train_s": "yes"}, "train_s must be true or false, not 'yes'"),
        ({"o_init": "gaussian", "o_init_std": 0.0}, "o_init_std must be a positive number"),
        ({"o_init_std": 0.1}, "o_init_std has no effect with o_init='ones'"),
        ({"train_s": False, "train_o": False}, "train_s and train_o are both false"),
        ({"o_side": "input", "train_o": False}, "o_side='input' has no effect"),
        ({"dora_detach_norm": False}, "dora_detach_norm=False has no effect without use_dora"),
        ({"init_weights": None}, "init_weights must be true or false, not None"),
        ({"layers_pattern": "layers"}, "layers_pattern needs layers_to_transform"),
        ({"layers_to_transform": 1, "target_modules": "all-linear"}, "needs target_modules as a"),
        ({"format_version": 3}, "written by a newer version"),
        ({"projection_dtype": "int8"}, "projection_dtype must be one of None, base, not 'int8'"),
        ({"decomposition": "other"}, "decomposition must be one of base, original, not 'other'"),
        ({"task_type": "POETRY"}, "Invalid task type: 'POETRY'"),
    ],
)
def test_configuration(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        OsoraConfig(**options)


def refuse(base: Any, match: str, error: type[Exception] = ValueError, **options: Any) -> None:
    state = copy.deepcopy(base.state_dict())
    flags = [p.requires_grad for p in base.parameters()]
    kinds = [type(m) for m in base.modules()]
    with pytest.raises(error, match=match):
        peft.get_peft_model(base, config(**options))
    assert [type(m) for m in base.modules()] == kinds
    assert [p.requires_grad for p in base.parameters()] == flags
    assert same_weights(base, state)


def test_rank_above_a_layers_size() -> None:
    refuse(
        make_base("llama"),
        r"rank 20 is too large for model.layers.0.self_attn.v_proj of shape \(16, 32\): at most 16",
        r=20,
    )


def test_targets_that_match_nothing_or_are_not_linear() -> None:
    refuse(make_base("llama"), "nothing_here", target_modules=["nothing_here"])
    refuse(make_base("llama"), "embed_tokens is no linear layer", target_modules=["embed_tokens"])
    refuse(make_base("opt"), "self_attn is no linear layer", target_modules=["self_attn"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target_modules": ["q_proj", "querry"]}, "target_modules 'querry' matches nothing"),
        ({"exclude_modules": ["w_proj"]}, "exclude_modules 'w_proj' matches nothing"),
        ({"modules_to_save": ["lm_head", "head"]}, "modules_to_save 'head' matches nothing"),
        ({"rank_pattern": {"k_proj": 3}}, "rank_pattern 'k_proj' matches no adapted layer"),
    ],
)
def test_names_that_would_silently_do_nothing(options: dict[str, Any], match: str) -> None:
    refuse(make_base("llama"), match, **options)


def test_fan_in_fan_out_on_a_linear_layer_is_said_to_do_nothing() -> None:
    with pytest.warns(UserWarning, match=r"no effect on .*q_proj, a torch.nn.Linear"):
        peft.get_peft_model(make_base("llama"), config(fan_in_fan_out=True))


def test_methods_of_peft_that_osora_has_no_part_in_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'OSORA' is not compatible with the `PeftMixedModel`"):
        peft.get_peft_model(make_base("llama"), config(), mixed=True)
    model = peft.get_peft_model(make_base("llama"), config())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="OSORA"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default")


def test_each_adapter_has_a_configuration_of_its_own() -> None:
    given = config()
    model = peft.get_peft_model(make_base("llama"), given)
    model.add_adapter("two", given)
    other = peft.get_peft_model(make_base("llama"), given)
    found = [model.peft_config["default"], model.peft_config["two"], other.peft_config["default"]]
    assert len(set(map(id, found))) == 3
    assert found[0] == found[1] == found[2]
    with pytest.raises(ValueError, match="r must"):
        model.add_adapter("three", dataclasses.replace(given, r=0))
    failing = config(r=20)
    with pytest.raises(ValueError, match="rank 20 is too large"):
        model.add_adapter("three", failing)
    assert not failing.serves


def test_merging_an_unknown_adapter() -> None:
    model = peft.get_peft_model(make_base("llama"), config())
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="unknown adapter_names: nope; there are default"):
            merge(adapter_names=["nope"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    base = make_base("llama")
    base.model.layers[1].self_attn.q_proj.weight.data[2, 3] = bad
    with pytest.raises(ValueError, match=r"weight of model.layers.1.self_attn.q_proj holds NaN"):
        peft.get_peft_model(base, config())
    assert not any(".osora_" in n for n, _ in base.named_parameters())


class Linear4bit(nn.Linear):
    """Stands for bitsandbytes' layer, which is a subclass of Linear with packed weights."""

    def __init__(self, inner: int, out: int) -> None:
        super().__init__(inner, out)
        packed = torch.zeros(inner * out // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)


class Linear8bitLt(nn.Linear):
    """Stands for bitsandbytes' layer before it is moved to a GPU: the weights are still float."""


def test_quantised_layers_are_refused_by_name() -> None:
    Linear8bitLt.__module__ = "bitsandbytes.nn.modules"
    for layer in (Linear4bit(32, 32), Linear8bitLt(32, 32)):
        base = make_base("llama")
        base.model.layers[0].self_attn.q_proj = layer
        with pytest.raises(ValueError, match=f"layers.0.self_attn.q_proj.*{type(layer).__name__}"):
            peft.get_peft_model(base, config())


def test_a_second_adapter_that_fails_leaves_the_first() -> None:
    model = peft.get_peft_model(make_base("llama"), config())
    kinds = [type(m) for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match="rank 17 is too large"):
        model.add_adapter("two", config(r=17, target_modules=["k_proj"]))
    assert set(model.peft_config) == {"default"}
    assert [type(m) for m in model.modules()] == kinds
    assert [p.requires_grad for p in model.parameters()] == flags


def test_a_failure_in_the_middle_takes_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from osora_bench.osora import layer as osora_layer

    count = iter(range(10))

    def fail(weight: torch.Tensor, r: int) -> Any:
        if next(count) == 2:
            raise MemoryError("third layer")
        return decompose(weight, r)

    decompose = osora_layer.decompose
    monkeypatch.setattr(osora_layer, "decompose", fail)
    refuse(make_base("llama"), "third layer", error=MemoryError)


def test_mixed_batches_need_one_name_a_row_and_no_training() -> None:
    model = peft.get_peft_model(make_base("llama"), config())
    ids = torch.ones(3, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="inference only"):
        model.train()(input_ids=ids, adapter_names=["default"] * 3)
    with pytest.raises(ValueError, match="for each of the 3 inputs, not 2"):
        model.eval()(input_ids=ids, adapter_names=["default"] * 2)
    model.merge_adapter()
    with pytest.raises(ValueError, match="while adapters are merged"):
        model(input_ids=ids, adapter_names=["default"] * 3)


def test_safe_merge_refuses_a_broken_adapter_and_changes_nothing() -> None:
    base = make_base("llama")
    weight = base.model.layers[0].self_attn.q_proj.weight
    before = weight.data.clone()
    model = peft.get_peft_model(base, config())
    model.base_model.model.model.layers[0].self_attn.q_proj.osora_S["default"].data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or inf in the merged weight"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(weight, before)
    model.add_adapter("sound", config())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with pytest.raises(ValueError, match="adapter 'default' seems to be broken"):
        layer.merge(safe_merge=True, adapter_names=["sound", "default"])
    assert torch.equal(weight, before)
    assert layer.merged_adapters == []


def test_bitsandbytes_that_is_missing_is_named_with_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install = 'bitsandbytes is not installed: pip install "osora-bench[quantised]"'
    for module in (commands, targets):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    peft.get_peft_model(make_base("llama"), config()).save_pretrained(tmp_path / "adapter")
    written = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(written.read_text())
    written.write_text(json.dumps({**values, "base_quantization": "nf4"}))
    with pytest.raises(ValueError, match=re.escape(install)):
        peft.PeftModel.from_pretrained(make_base("llama"), tmp_path / "adapter")
    make_base("llama").save_pretrained(tmp_path / "base")
    written = tmp_path / "base" / "config.json"
    how = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    written.write_text(json.dumps({**json.loads(written.read_text()), "quantization_config": how}))
    argv = ["build", "--store", str(tmp_path / "store"), "--model", str(tmp_path / "base")]
    assert commands.svd_main(argv) == 2
    assert f"base is quantised, and {install}" in capsys.readouterr().err
