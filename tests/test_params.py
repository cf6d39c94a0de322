"""Counts from the real PEFT modules on the meta device: the paper's, the formula's, the file's."""

import json
import shutil
from decimal import Decimal

import peft
import pytest

from osora_bench import models, params, paths, plan, preflight, reference
from osora_bench.compose import compose, composer, group_choices, resolve
from osora_bench.errors import UserError

MODELS = {  # all parameters, as the hub lists them
    "llama2-13b-chat": 13_015_864_320,
    "qwen1.5-7b-chat": 7_721_324_544,
    "qwen2.5-32b-instruct": 32_763_876_352,
    "mistral-7b-instruct-v0.3": 7_248_023_552,
    "llama3-8b-instruct": 8_030_261_248,
    "qwen2-7b": 7_615_616_512,
    "smollm2-135m": 134_515_008,
}
ADAPTERS = [m for m in group_choices("method") if m not in ("none", "full")]


def configured(*overrides: str) -> dict:
    with composer():
        return resolve(compose(overrides, "test"), "test")


def layers(cfg: dict) -> dict[str, tuple[int, int]]:
    return models.adapted_layers(models.blank(cfg["model"]), cfg["model"]["target_modules"])


@pytest.mark.parametrize("model", ["mistral-7b-instruct-v0.3", "llama3-8b-instruct"])
@pytest.mark.parametrize(
    ("method", "rank", "printed"),
    [
        ("osora", 512, 196_608),
        ("osora_k", 512, 294_912),
        ("dora", 16, 6_979_584),
        ("osora_dora", 512, 360_448),
    ],
)
def test_the_papers_parameter_counts_come_out_of_the_real_modules(model, method, rank, printed):
    cfg = configured(f"model={model}", f"method={method}", f"method.rank={rank}")
    assert params.count(cfg).trainable == printed


def test_every_params_cell_of_the_paper_is_what_is_counted():
    checked = 0
    for name in reference.names():
        for key, printed in reference.load(name).items():
            if key.column == reference.PARAMS:
                chosen = [f"model={key.model}", f"method={key.method}", f"method.rank={key.rank}"]
                assert params.count(configured(*chosen)).trainable == Decimal(printed.value)
                checked += 1
    assert checked == 10


@pytest.mark.parametrize("model", MODELS)
def test_architectures_have_the_hubs_number_of_parameters(model):
    cfg = configured(f"model={model}", "method=full")
    assert params.count(cfg).trainable == MODELS[model]


def test_every_model_of_the_paper_is_pinned_and_says_its_licence():
    for name in MODELS:
        cfg = configured(f"model={name}")
        assert cfg["model"]["licence"]
        assert plan.revision(cfg) == "local" or len(plan.revision(cfg)) == 40


@pytest.mark.parametrize("method", ADAPTERS)
@pytest.mark.parametrize("model", ["qwen2-7b", "smollm2-135m"])
def test_modules_agree_with_the_formula(model, method):
    cfg = configured(f"model={model}", f"method={method}", "method.rank=8")
    formula = params.expected(method, 8, list(layers(cfg).values()))
    assert formula is not None, "a method of the paper has no formula"
    assert params.count(cfg).trainable == formula


def test_osoras_frozen_bytes_are_equation_6_and_what_it_needs_to_start():
    cfg = configured("model=mistral-7b-instruct-v0.3", "method=osora", "method.rank=512")
    shapes = layers(cfg).values()
    equation_6 = sum(512 * (out + into) for out, into in shapes) * 4
    start_and_fingerprint = len(shapes) * (512 + 7) * 4
    assert params.count(cfg).frozen_bytes == equation_6 + start_and_fingerprint


def test_lora_freezes_nothing_of_its_own():
    assert params.count(configured("model=qwen2-7b", "method=lora")).frozen_bytes == 0


@pytest.mark.parametrize("method", ADAPTERS)
def test_adapter_bytes_are_those_of_the_saved_file(method, tmp_path):
    cfg = configured(f"method={method}", "method.rank=8")
    counted = params.count(cfg)
    base = models.Workspace().base(cfg).model
    adapted = peft.get_peft_model(base, preflight.instantiate(cfg["method"]))
    adapted.save_pretrained(tmp_path)
    assert counted.adapter_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size
    assert counted.trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_count_leaves_nothing_behind():
    first = params.count(configured("method=osora", "method.rank=8"))
    params.count(configured("method=vera", "method.rank=16"))
    assert params.count(configured("method=osora", "method.rank=8")) == first


def test_a_hub_style_config_file_is_counted(tmp_path):
    toy = paths.resolve("pkg://osora_bench.toy/model") / "config.json"
    folder = tmp_path / "some-model"
    folder.mkdir()
    shutil.copy(toy, folder)
    lines = params.table(["toy"], ["osora"], [8], folder / "config.json")
    assert lines[0].model == "some-model"
    assert lines[0].count == params.count(configured("method=osora", "method.rank=8"))


@pytest.mark.parametrize("text", ["{}", "{", "[]"])
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        params.with_config_file(configured(), tmp_path / "config.json")


def test_a_rank_that_a_layer_cannot_have_is_said_in_place_of_a_number():
    lines = params.table(["qwen2-7b"], ["osora", "vera"], [1024])
    assert lines[0].count is None
    assert "the largest rank for osora here is 512" in params.markdown(lines)
    assert lines[1].count is not None


def test_modules_that_match_nothing_are_refused():
    cfg = configured("model=qwen2-7b", "method=lora", "model.target_modules=[c_attn]")
    with pytest.raises(UserError, match="'c_attn' matches no module. Linear layers here: .*q_proj"):
        params.count(cfg)


def test_the_default_grid_is_the_experiments():
    used = params.experiment_ranks()
    assert used["qwen2-7b", "lora"] == [2, 4, 8, 16, 32, 64]
    assert used["qwen2.5-32b-instruct", "osora"] == [1024]


def test_another_architecture_than_the_files_is_refused(tmp_path):
    toy = paths.resolve("pkg://osora_bench.toy/model")
    cfg = configured("model=qwen2-7b", f"model.path={toy}")
    with pytest.raises(UserError, match="hidden_size .* in place of 3584"):
        models.check_weights(cfg["model"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    cfg = configured("model=qwen2-7b", f"model.path={tmp_path}")
    with pytest.raises(UserError, match="holds no weights"):
        models.check_weights(cfg["model"])
