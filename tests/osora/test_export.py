"""Export as LoRA and as a merged model, and the commands."""

import copy
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import PeftModel

from osora_bench.osora import OsoraConfig, SvdStore, save_lora, save_merged, to_lora
from osora_bench.osora.commands import export_main, svd_main
from tests.osora.conftest import (
    FAMILIES,
    LLAMA,
    VARIANTS,
    disturb,
    logits,
    make_base,
    make_inputs,
    needs_20,
    needs_21,
)
from tests.osora.test_peft_features import adapted, config, same_weights
from tests.osora.test_special_layers import tied

PLAIN_PEFT = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
inputs = torch.load(folder + "/inputs.pt")
base = AutoModelForCausalLM.from_pretrained(folder + "/base")
model = PeftModel.from_pretrained(base, folder + "/lora").eval()
with torch.no_grad():
    torch.save(model(**inputs).logits, folder + "/logits.pt")
assert not any(name.startswith("osora") for name in sys.modules)
"""


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_gives_the_same_logits(family: str, variant: str, tmp_path: Path) -> None:
    model = adapted(family, variant, rank_pattern={r".*0.*\.(q|q_proj|c_attn)": 3})
    disturb(model)
    inputs = make_inputs(family)
    after = logits(model, inputs)
    save_lora(model, tmp_path)
    assert torch.equal(logits(model, inputs), after)
    lora = PeftModel.from_pretrained(make_base(family), tmp_path).eval()
    assert lora.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(logits(lora, inputs), after, rtol=1e-4, atol=1e-5)


def test_plain_peft_loads_the_export_without_this_package(tmp_path: Path) -> None:
    base = make_base("llama")
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, config())
    disturb(model)
    inputs = {"input_ids": make_inputs("llama")["input_ids"]}
    torch.save(inputs, tmp_path / "inputs.pt")
    save_lora(model, tmp_path / "lora")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", PLAIN_PEFT, str(tmp_path)], check=True, cwd=tmp_path, env=env
    )
    there = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(there, logits(model.eval(), inputs), rtol=1e-4, atol=1e-5)


def test_modules_to_save_go_along(tmp_path: Path) -> None:
    model = peft.get_peft_model(make_base("llama"), config(modules_to_save=["lm_head"])).eval()
    disturb(model)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
    save_lora(model, tmp_path)
    lora = PeftModel.from_pretrained(make_base("llama"), tmp_path).eval()
    inputs = make_inputs("llama")
    torch.testing.assert_close(logits(lora, inputs), logits(model, inputs), rtol=1e-4, atol=1e-5)


@needs_21
@pytest.mark.parametrize("bias", ["all", "osora_only"])
def test_biases_go_along_beside_whole_modules(bias: str, tmp_path: Path) -> None:
    def base() -> Any:
        torch.manual_seed(0)
        one, other = torch.nn.Linear(6, 5), torch.nn.Linear(6, 4)
        return torch.nn.ModuleDict({"a": one, "b": other, "c": torch.nn.Linear(6, 3)})

    cfg = OsoraConfig(r=2, target_modules=["a"], modules_to_save=["b"], bias=bias)
    model = peft.get_peft_model(base(), cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    save_lora(model, tmp_path)
    lora = PeftModel.from_pretrained(base(), tmp_path)
    x = torch.randn(3, 6)
    for name in "abc":
        ours, theirs = (m.base_model.model[name](x) for m in (model, lora))
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
        assert torch.allclose(ours, base()[name](x)) == (name == "c" and bias != "all")


@needs_21
def test_peft_conversion_agrees() -> None:
    """PEFT's own conversion takes another SVD of the update; the products are equal."""
    model = adapted("llama")
    disturb(model)
    _, ours = to_lora(model)
    _, theirs = peft.convert_to_lora(model, rank=6)
    for name in (n for n in ours if "lora_A" in n):
        other = name.replace("lora_A", "lora_B")
        key = name if name in theirs else name.removeprefix("base_model.model.")
        partner = key.replace("lora_A", "lora_B")
        torch.testing.assert_close(
            ours[other] @ ours[name], theirs[partner] @ theirs[key], rtol=1e-3, atol=1e-5
        )


@needs_20
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("variant", ["osora", "osora_dora"])
def test_merged_model(family: str, variant: str, tmp_path: Path) -> None:
    model = adapted(family, variant)
    disturb(model)
    inputs = make_inputs(family)
    after = logits(model, inputs)
    state = copy.deepcopy(model.state_dict())
    save_merged(model, tmp_path)
    assert same_weights(model, state)
    merged = type(make_base(family)).from_pretrained(tmp_path).eval()
    assert not any("osora" in p.read_text(errors="ignore") for p in tmp_path.glob("*.json"))
    torch.testing.assert_close(logits(merged, inputs), after, rtol=1e-4, atol=1e-4)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged already"):
        save_merged(model, tmp_path)


def whole_module(base: Any, adapter: str, factor: float) -> None:
    """Move what an adapter trains whole away from its start."""
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if f".modules_to_save.{adapter}." in name:
                parameter.mul_(factor)


def classifier() -> Any:
    torch.manual_seed(3)
    return transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**LLAMA, num_labels=3)
    ).eval()


MADE: dict[str, tuple[Any, dict[str, Any]]] = {
    "lm_head": (lambda: make_base("llama"), {"modules_to_save": ["lm_head"]}),
    "two": (lambda: make_base("llama"), {"modules_to_save": ["lm_head", "embed_tokens"]}),
    "classifier": (classifier, {"task_type": "SEQ_CLS"}),
    "tied head": (tied, {"modules_to_save": ["lm_head"]}),
    "tied embedding": (tied, {"modules_to_save": ["embed_tokens"]}),
}


@needs_20
@pytest.mark.parametrize("which", MADE)
def test_a_merged_model_has_the_modules_that_were_trained_whole(which: str, tmp_path: Path) -> None:
    make, options = MADE[which]

    def cfg() -> OsoraConfig:
        return OsoraConfig(r=6, target_modules=["q_proj", "v_proj"], **options)

    model = peft.get_peft_model(make(), cfg()).eval()
    model.add_adapter("two", cfg())
    inputs = {"input_ids": make_inputs("llama")["input_ids"]}
    after = {}
    for adapter, factor in (("two", 0.2), ("default", 1.5)):
        model.set_adapter(adapter)
        disturb(model, adapter, seed=len(adapter))
        whole_module(model, adapter, factor)
        after[adapter] = logits(model, inputs)
    state = copy.deepcopy(model.state_dict())
    for adapter, output in after.items():  # "two" while it is not the active one
        save_merged(model, tmp_path / adapter, adapter)
        merged = type(make()).from_pretrained(tmp_path / adapter).eval()
        torch.testing.assert_close(logits(merged, inputs), output, rtol=1e-4, atol=1e-5)
        # who reads the folder is not told to tie what is not
        assert merged.config.tie_word_embeddings is False
    assert same_weights(model, state)
    assert model.get_base_model().config.tie_word_embeddings == which.startswith("tied")
    unloaded = model.merge_and_unload()
    merged = type(make()).from_pretrained(tmp_path / "default").eval()
    torch.testing.assert_close(logits(merged, inputs), logits(unloaded, inputs))


@needs_20
def test_a_merged_model_leaves_other_files_in_its_folder_as_they_are(tmp_path: Path) -> None:
    modes = {"secret.key": 0o600, "run.sh": 0o755, "below/id": 0o600}
    for name, mode in modes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(mode)
    before = os.umask(0o027)
    try:
        for _ in range(2):  # and where it writes over its own
            save_merged(adapted("llama"), tmp_path)
    finally:
        os.umask(before)
    found = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert {name: found.pop(name) for name in modes} == modes
    assert set(found.values()) == {0o640}
    assert "model.safetensors" in found


def test_wrong_adapters_are_refused() -> None:
    with pytest.raises(ValueError, match="no OSoRA adapter is called 'other'; there are: default"):
        to_lora(adapted("llama"), "other")
    base = make_base("llama")
    base.model.layers[0].self_attn.q_proj.weight.data[3] = 0
    model = peft.get_peft_model(base, config(use_dora=True))
    with pytest.raises(ValueError, match="q_proj has a row of zeros"):
        to_lora(model)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Any, torch.Tensor]:
    make_base("llama").save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, config()).eval()
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, model, logits(model, make_inputs("llama"))


@needs_20
@pytest.mark.parametrize("kind", ["lora", "merged"])
def test_export_command(kind: str, folders: tuple[Path, Any, torch.Tensor]) -> None:
    folder, _, after = folders
    options = {"adapter": "adapter", "model": "base", "output": "out"}
    argv = [f"--{k}={folder / v}" for k, v in options.items()] + [f"--format={kind}"]
    assert export_main(argv) == 0
    if kind == "lora":
        model = PeftModel.from_pretrained(make_base("llama"), folder / "out").eval()
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "out").eval()
        assert (folder / "out" / "tokenizer.json").read_text() == "{}"
    torch.testing.assert_close(logits(model, make_inputs("llama")), after, rtol=1e-4, atol=1e-4)
    with pytest.raises(SystemExit):
        export_main(argv)


def test_export_command_tells_mistakes(
    folders: tuple[Path, Any, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = folders
    with pytest.raises(SystemExit):
        export_main([f"--adapter={folder}", f"--model={folder / 'base'}", f"--output={folder}/o"])
    assert "holds no adapter_config.json" in capsys.readouterr().err
    make_base("llama", seed=5).save_pretrained(folder / "base")
    argv = ["--adapter", "adapter", "--model", "base", "--output", "out"]
    argv = [a if a.startswith("--") else str(folder / a) for a in argv]
    assert export_main(argv) == 2
    assert "trained on other base weights" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_svd_command(
    folders: tuple[Path, Any, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _, _ = folders
    monkeypatch.delenv("OSORA_SVD_STORE", raising=False)
    store = ["--store", str(folder / "store")]
    assert svd_main(["build", *store, "--model", str(folder / "base"), "--rank", "4"]) == 0
    out, err = capsys.readouterr()
    assert "4 decompositions" in out
    assert "4/4" in err  # the progress bar over layers
    assert len(SvdStore(folder / "store").entries()) == 4
    assert svd_main(["list", *store]) == 0
    assert "16x32  rank    16" in capsys.readouterr().out
    assert svd_main(["clean", *store]) == 0
    assert "removed 0" in capsys.readouterr().out
    assert svd_main(["clean", *store, "--all"]) == 0
    assert "removed 4" in capsys.readouterr().out
    assert (
        svd_main(["build", *store, "--model", str(folder / "base"), "--modules", "no", "q_proj"])
        == 2
    )
    assert "no layer is called no; there are down_proj, gate_proj" in capsys.readouterr().err
    for wrong in (["list"], ["build", *store, "--model", str(folder)], ["burn", *store]):
        with pytest.raises(SystemExit):
            svd_main(wrong)
    with pytest.raises(SystemExit):
        svd_main(["build", *store, "--model", str(folder / "base"), "--rank", "0"])
    assert "--rank must be at least 1, not 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        svd_main(["list", "--store", str(folder / "nowhere")])
    assert "there is no store" in capsys.readouterr().err
    assert not (folder / "nowhere").exists()
    (folder / "file").write_text("")
    assert svd_main(["list", "--store", str(folder / "file")]) == 2
    assert "file is no folder" in capsys.readouterr().err
    monkeypatch.setenv("OSORA_SVD_STORE_GB", "abc")
    with pytest.raises(SystemExit):
        svd_main(["list", *store])
    assert "must be a number above 0, not 'abc'" in capsys.readouterr().err
