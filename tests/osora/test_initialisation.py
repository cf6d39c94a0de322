"""What PEFT asks of every method when an adapter is made or loaded: names that clash, the way by
the meta device, wrapped constructors, the base model's name, complete files."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from osora_bench.osora import OsoraConfig, OsoraModel
from osora_bench.osora.older_peft import BEFORE_18
from tests.osora.conftest import VARIANTS, disturb, logits, make_base, make_inputs
from tests.osora.test_peft_features import config

CLASH = r"Adapter name '?{}'? should not be contained in the prefix '?osora_"


@pytest.fixture
def said() -> Iterator[Callable[[], str]]:
    """All warnings of a test so far, as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: "\n".join(str(one.message) for one in caught)


@pytest.mark.skipif(BEFORE_18, reason="PEFT 0.17 takes such a name out of the tensors' as well")
def test_a_name_within_the_prefix_is_warned_of_and_works(tmp_path: Path) -> None:
    """State dicts tell an adapter's name from the method's by their place alone."""
    inputs = make_inputs("llama")
    with pytest.warns(UserWarning, match=CLASH.format("osora")):
        model = peft.get_peft_model(make_base("llama"), config(), adapter_name="osora")
    with pytest.warns(UserWarning, match=CLASH.format("sora")):
        model.add_adapter("sora", config(r=3, use_dora=True))
    for seed, name in enumerate(("osora", "sora")):
        model.set_adapter(name)
        disturb(model, name, seed)
        after = logits(model.eval(), inputs)
        model.save_pretrained(tmp_path, selected_adapters=[name])
        loaded = PeftModel.from_pretrained(make_base("llama"), tmp_path / name, name)
        torch.testing.assert_close(logits(loaded, inputs), after)


def test_another_name_is_not_warned_of(tmp_path: Path, said: Callable[[], str]) -> None:
    model = peft.get_peft_model(make_base("llama"), config(), adapter_name="adapter")
    model.add_adapter("other", config())
    model.save_pretrained(tmp_path, selected_adapters=["other"])
    PeftModel.from_pretrained(make_base("llama"), tmp_path / "other", "other")
    assert "should not be contained" not in said()


def test_each_of_several_adapters_is_saved_for_itself(tmp_path: Path) -> None:
    """Before 0.21 PEFT writes the tensors of all of them into each file."""
    inputs = make_inputs("llama")
    model = peft.get_peft_model(make_base("llama"), config(), adapter_name="one")
    model.add_adapter("other", config(r=3, target_modules=["q_proj", "k_proj"]))
    after = {}
    for seed, name in enumerate(("one", "other")):
        model.set_adapter(name)
        disturb(model, name, seed)
        after[name] = logits(model.eval(), inputs)
    model.save_pretrained(tmp_path)
    for name, output in after.items():
        for here in ("default", "one"):
            loaded = PeftModel.from_pretrained(make_base("llama"), tmp_path / name, here)
            torch.testing.assert_close(logits(loaded, inputs), output)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """An adapter on all linear layers, and the logits with it."""
    options = config(target_modules="all-linear", r=4, use_dora=True)
    model = peft.get_peft_model(make_base("llama"), options).eval()
    disturb(model)
    model.save_pretrained(tmp_path)
    return tmp_path, logits(model, make_inputs("llama"))


def devices(model: nn.Module) -> set[str]:
    return {p.device.type for n, p in model.named_parameters() if ".osora_" in n}


def test_loading_beside_another_adapter_by_the_meta_device(
    trained: tuple[Path, torch.Tensor],
) -> None:
    folder, after = trained
    model = peft.get_peft_model(make_base("llama"), config())
    model.load_adapter(str(folder), "other", low_cpu_mem_usage=True)
    assert devices(model) == {"cpu"}
    model.set_adapter("other")
    torch.testing.assert_close(logits(model.eval(), make_inputs("llama")), after)


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_what_is_not_loaded_stays_on_the_meta_device(task: str | None) -> None:
    options = OsoraConfig(r=4, target_modules=["q_proj"], task_type=task, use_dora=True)
    model = peft.get_peft_model(make_base("llama"), options, low_cpu_mem_usage=True)
    assert devices(model) == {"meta"}


def test_injecting_and_then_loading_by_the_meta_device(
    trained: tuple[Path, torch.Tensor],
) -> None:
    """As other libraries do it, without a PeftModel."""
    folder, after = trained
    options = config(target_modules="all-linear", r=4, use_dora=True)
    model = peft.inject_adapter_in_model(options, make_base("llama"), low_cpu_mem_usage=True)
    assert devices(model) == {"meta"}
    state = load_file(folder / "adapter_model.safetensors")
    state = {name.removeprefix("base_model.model."): t for name, t in state.items()}
    result = peft.set_peft_model_state_dict(model, state, low_cpu_mem_usage=True)
    assert not result.unexpected_keys
    assert devices(model) == {"cpu"}
    torch.testing.assert_close(logits(model.eval(), make_inputs("llama")), after)


@pytest.mark.parametrize(
    "kind",
    [
        OsoraModel,
        peft.PeftModel,
        peft.PeftModelForSequenceClassification,
        peft.PeftModelForQuestionAnswering,
        peft.PeftModelForTokenClassification,
        peft.PeftModelForCausalLM,
        peft.PeftModelForSeq2SeqLM,
        peft.PeftModelForFeatureExtraction,
    ],
)
def test_a_wrapped_constructor_may_ask_for_attributes_before_there_are_any(
    kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed wraps them, and what a model lacks is looked for in the model that it has."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.prepare_inputs_for_generation = None
            self._prepare_encoder_decoder_kwargs_for_generation = None

    made = kind.__init__

    def asking(self: Any, *args: Any, **kwargs: Any) -> None:
        assert not hasattr(self, "no_such_name")
        made(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__init__", asking)
    options = OsoraConfig(r=2, target_modules=["linear"])
    built = kind(Model(), options, adapter_name="default")
    assert any(".osora_S." in name for name, _ in built.named_parameters())


@pytest.mark.parametrize("own", [None, "here"])
def test_a_base_models_name_that_is_overridden_is_said(own: str | None) -> None:
    base = nn.ModuleDict({"a": nn.Linear(8, 8)})
    if own is not None:
        base.name_or_path = own
    options = OsoraConfig(r=2, target_modules=["a"], base_model_name_or_path="there")
    with pytest.warns(UserWarning, match=f"was renamed from 'there' to '{own}'"):
        peft.get_peft_model(base, options)


def test_a_base_models_name_that_is_not_given_is_not_told_of(said: Callable[[], str]) -> None:
    peft.get_peft_model(make_base("llama"), config())
    cfg = OsoraConfig(r=2, target_modules=["a"])
    peft.get_peft_model(nn.ModuleDict({"a": nn.Linear(8, 8)}), cfg)
    assert "was renamed" not in said()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("here", [False, True])
def test_a_complete_file_is_not_told_to_lack_anything(
    variant: str, there: bool, here: bool, tmp_path: Path, said: Callable[[], str]
) -> None:
    """In whichever precision it was saved and is loaded. One that lacks a tensor is an error, where
    PEFT's other methods warn (test_checkpoint.py)."""
    base = make_base("llama", torch.bfloat16)
    options = config(**VARIANTS[variant])
    peft.get_peft_model(base, options, autocast_adapter_dtype=there).save_pretrained(tmp_path)
    base = make_base("llama", torch.bfloat16)
    loaded = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=here)
    result = loaded.load_adapter(str(tmp_path), "other", autocast_adapter_dtype=here)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if ".osora_" in key]
    assert "missing adapter keys" not in said()
