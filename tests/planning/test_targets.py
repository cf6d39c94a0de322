"""Modules to adapt: whatever PEFT takes, adapted as PEFT does, one run id for what they match."""

import subprocess
import sys
from dataclasses import replace

import peft
import pytest

from osora_bench.cli.main import main
from osora_bench.common.errors import UserError
from osora_bench.models import adapter_config
from osora_bench.planning import adapter_rank, identity
from osora_bench.planning import blank as planning_blank
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.planning.config import Config

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
SOME = [f"model.layers.{n}.self_attn.q_proj" for n in (1, 2)]
SPELLINGS = {
    "[q_proj,v_proj]": ["q_proj", "v_proj"],
    "[v_proj,q_proj,v_proj]": ["q_proj", "v_proj"],
    r"'.*\.(q|v)_proj'": ["q_proj", "v_proj"],
    "[self_attn.q_proj,v_proj]": ["q_proj", "v_proj"],
    "all-linear": LINEAR,
    f"[{','.join(LINEAR)}]": LINEAR,
    r"'.*\.[12]\.self_attn\.q_proj'": SOME,
    "[layers.2.self_attn.q_proj,layers.1.self_attn.q_proj]": SOME,
    "'.*head'": ["lm_head"],
}


def configured(*overrides: str, model="toy") -> Config:
    with composer():
        return resolve(compose([f"model={model}", *overrides], "test"), "test")


def adapted(cfg: Config, targets) -> set[str]:
    """The modules that PEFT adapts, given `targets` as they are."""
    told = replace(cfg.method, peft={**cfg.method.peft, "target_modules": targets})
    settings = adapter_config.instantiate(told)
    model = peft.get_peft_model(planning_blank.blank(cfg.model), settings)
    return set(model.targeted_module_names)


@pytest.mark.parametrize("model", ["toy", "smollm2-135m"])
@pytest.mark.parametrize("spelled", SPELLINGS)
def test_what_is_adapted_is_what_peft_makes_of_the_spelling(spelled, model):
    cfg = configured(f"model.target_modules={spelled}", "method=lora", model=model)
    assert cfg.model.target_modules == cfg.method.peft["target_modules"] == SPELLINGS[spelled]
    raw = spelled.strip("'")
    raw = raw[1:-1].split(",") if raw.startswith("[") else raw
    assert adapted(cfg, raw) == adapted(cfg, cfg.model.target_modules)
    layers = adapter_rank.adapted_layers(planning_blank.blank(cfg.model), cfg.model.target_modules)
    assert set(layers) == adapted(cfg, raw)


def test_a_run_id_is_of_what_is_matched():
    found: dict[tuple[str, ...], set[str]] = {}
    for spelled, names in SPELLINGS.items():
        cfg = configured(f"model.target_modules={spelled}", "method=lora")
        found.setdefault(tuple(names), set()).add(identity.run_id(cfg))
    assert [len(ids) for ids in found.values()] == [1] * len(found)
    assert len(set.union(*found.values())) == len(found)
    assert found["q_proj", "v_proj"] == {identity.run_id(configured("method=lora"))}


def test_modules_of_the_methods_own_are_spelled_out_too():
    cfg = configured("method=lora", r"method.peft.target_modules='.*\.k_proj'")
    assert cfg.method.peft["target_modules"] == ["k_proj"]
    assert cfg.model.target_modules == ["q_proj", "v_proj"]
    with pytest.raises(UserError, match="method lora: peft.target_modules: 'k_prj' matches no mod"):
        configured("method=lora", "method.peft.target_modules=k_prj")


def test_each_name_of_a_list_has_to_match():
    with pytest.raises(UserError, match="'attn.q_proj' matches no module"):
        configured("model.target_modules=[self_attn.v_proj,attn.q_proj]")


def test_a_model_whose_modules_are_not_known_is_told(tmp_path):
    chosen = ["model.architecture=null", "model.path=nobody/nothing", "model.revision=null"]
    assert configured(*chosen, "model.target_modules=[v_proj,q_proj]").model.target_modules
    with pytest.raises(UserError, match="its modules are not known here: name them one by one"):
        configured(*chosen, "model.target_modules=all-linear")
    with pytest.raises(UserError, match="holds no config.json"):
        configured(*chosen[:1], f"model.path={tmp_path}", "model.target_modules=all-linear")


def test_params_takes_every_spelling(capsys, tmp_path):
    counted = []
    for modules in ("all-linear", ",".join(LINEAR), r".*\.layers\.\d+\..*_proj", "q_proj"):
        assert main(["params", "model=toy", "method=lora", "rank=8", f"modules={modules}"]) == 0
        counted.append(capsys.readouterr().out)
    assert counted[0] == counted[1] == counted[2] != counted[3]
    place = tmp_path / "config.json"
    place.write_text('{"model_type": "gpt2", "n_layer": 3, "n_embd": 64, "n_head": 4}')
    asked = ["params", f"config={place}", "method=lora", "rank=8", "modules=all-linear"]
    assert main(asked) == 0
    linear = (64 + 192) + (64 + 64) + (64 + 256) + (256 + 64)
    assert f"{3 * 8 * linear:,}" in capsys.readouterr().out


def test_names_alone_are_resolved_without_torch():
    code = (
        "import sys; from osora_bench.planning.compose import compose, composer, resolve\n"
        "chosen = ['model.target_modules=[v_proj,k_proj]']\n"
        "with composer(): cfg = resolve(compose(chosen, ''), '')\n"
        "assert cfg.model.target_modules == ['k_proj', 'v_proj']\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
