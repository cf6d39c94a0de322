"""Counts from the real PEFT modules on the meta device: the paper's, the formula's, the file's."""

import json
import os
import shutil
import subprocess
import sys
from decimal import Decimal

import peft
import pytest
import torch

from osora_bench.cli import params
from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.models import adapter_config, counting
from osora_bench.models import base as models
from osora_bench.models import weights as models_weights
from osora_bench.planning import adapter_rank, identity
from osora_bench.planning import blank as planning_blank
from osora_bench.planning.compose import compose, composer, group_choices, resolve
from osora_bench.planning.config import Config
from osora_bench.planning.experiments import readable_experiments
from osora_bench.reporting import parameters, reference
from tests.more_methods import PAPER

MODELS = {  # all parameters, as the hub lists them
    "llama2-13b-chat": 13_015_864_320,
    "qwen1.5-7b-chat": 7_721_324_544,
    "qwen2.5-32b-instruct": 32_763_876_352,
    "mistral-7b-instruct-v0.3": 7_248_023_552,
    "llama3-8b-instruct": 8_030_261_248,
    "qwen2-7b": 7_615_616_512,
    "smollm2-135m": 134_515_008,
}


def configured(*overrides: str) -> Config:
    with composer():
        return resolve(compose(overrides, "test"), "test")


def layers(cfg: dict) -> dict[str, tuple[int, int]]:
    return adapter_rank.adapted_layers(planning_blank.blank(cfg.model), cfg.model.target_modules)


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
    assert counting.count(cfg).trainable == printed


def test_every_params_cell_of_the_paper_is_what_is_counted():
    checked = 0
    for name in reference.names():
        for key, printed in reference.load_reference(name).items():
            if key.column == reference.PARAMS:
                chosen = [f"model={key.model}", f"method={key.method}", f"method.rank={key.rank}"]
                assert counting.count(configured(*chosen)).trainable == Decimal(printed.value)
                checked += 1
    assert checked == 10


@pytest.mark.parametrize("model", MODELS)
def test_architectures_have_the_hubs_number_of_parameters(model):
    cfg = configured(f"model={model}", "method=full")
    assert counting.count(cfg).trainable == MODELS[model]


def test_every_model_of_the_paper_is_pinned_and_says_its_licence():
    for name in MODELS:
        cfg = configured(f"model={name}")
        assert cfg.model.licence
        assert identity.revision(cfg) == "local" or len(identity.revision(cfg)) == 40


@pytest.mark.parametrize("method", PAPER)
@pytest.mark.parametrize("model", ["qwen2-7b", "smollm2-135m"])
def test_modules_agree_with_the_formula(model, method):
    cfg = configured(f"model={model}", f"method={method}", "method.rank=8")
    formula = counting.expected(method, 8, list(layers(cfg).values()))
    assert formula is not None, "a method of the paper has no formula"
    assert counting.count(cfg).trainable == formula


def test_osoras_frozen_bytes_are_equation_6_and_what_it_needs_to_start():
    cfg = configured("model=mistral-7b-instruct-v0.3", "method=osora", "method.rank=512")
    shapes = layers(cfg).values()
    equation_6 = sum(512 * (out + into) for out, into in shapes) * 4
    start_and_fingerprint = len(shapes) * (512 + 7) * 4
    assert counting.count(cfg).frozen_bytes == equation_6 + start_and_fingerprint


def test_lora_freezes_nothing_of_its_own():
    assert counting.count(configured("model=qwen2-7b", "method=lora")).frozen_bytes == 0


@pytest.mark.parametrize("method", PAPER)
def test_adapter_bytes_are_those_of_the_saved_file(method, tmp_path):
    cfg = configured(f"method={method}", "method.rank=8")
    counted = counting.count(cfg)
    base = models.Workspace().base(cfg).model
    adapted = peft.get_peft_model(base, adapter_config.instantiate(cfg.method))
    adapted.save_pretrained(tmp_path)
    assert counted.adapter_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size
    assert counted.trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_count_leaves_nothing_behind():
    first = counting.count(configured("method=osora", "method.rank=8"))
    counting.count(configured("method=vera", "method.rank=16"))
    assert counting.count(configured("method=osora", "method.rank=8")) == first


def test_counting_leaves_the_starting_values_of_others_alone():
    counting.count(configured("method=lora"))
    assert torch.nn.init.ones_(torch.zeros(2)).tolist() == [1, 1]
    assert float(torch.nn.Linear(8, 8).weight.detach().std()) > 0


def test_a_hub_style_config_file_is_counted(tmp_path):
    toy = paths.resolve("pkg://osora_bench.toy/model") / "config.json"
    folder = tmp_path / "some-model"
    folder.mkdir()
    shutil.copy(toy, folder)
    lines = parameters.count_table(["toy"], ["osora"], [8], folder / "config.json")
    assert lines[0].model == "some-model"
    assert lines[0].count == counting.count(configured("method=osora", "method.rank=8"))


def config_file(folder, **told):
    (folder / "config.json").write_text(json.dumps(told))
    return folder / "config.json"


def test_a_config_file_is_counted_once_a_method_at_its_own_rank(tmp_path):
    place = config_file(tmp_path, model_type="llama", hidden_size=64, num_attention_heads=4)
    lines = parameters.count_table(["toy"], ["none", "lora", "pissa"], None, place)
    assert [(line.method, line.rank) for line in lines] == [
        ("Base", None), ("LoRA", 16), ("PiSSA", 16),
    ]  # fmt: skip


def test_a_config_file_of_another_family_is_counted_on_the_modules_that_are_named(tmp_path):
    place = config_file(tmp_path, model_type="gpt2", n_layer=3, n_embd=64, n_head=4)
    named = parameters.count_table(["toy"], ["lora", "osora"], [8], place, ["c_attn"])
    assert [line.count.trainable for line in named] == [3 * 8 * (64 + 192), 3 * (8 + 192)]
    usual = parameters.count_table(["toy"], ["lora"], [8], place)
    assert "'q_proj' matches no module. Linear layers here: c_attn" in usual[0].problem


def test_the_size_of_a_whole_model_is_that_of_the_config_files_dtype(tmp_path):
    told = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64}
    sizes = [
        parameters.count_table(["toy"], ["full"], None, config_file(tmp_path, **told, dtype=dtype))[
            0
        ].count
        for dtype in ("float32", "bfloat16")
    ]
    data = [size.trainable * width for size, width in zip(sizes, (4, 2), strict=True)]
    # what remains is the header, which holds the names and where each tensor lies
    assert all(0 < size.adapter_bytes - d < 4096 for size, d in zip(sizes, data, strict=True))
    with pytest.raises(UserError, match="unknown dtype 'fp8'"):
        parameters.count_table(
            ["toy"], ["full"], None, config_file(tmp_path, **told, torch_dtype="fp8")
        )


@pytest.mark.parametrize("told", [{"model_type": "t5"}, {"model_type": "no-such-model"}])
def test_a_config_file_of_no_causal_language_model_is_refused(tmp_path, told):
    with pytest.raises(UserError, match="transformers makes no causal language model of its"):
        parameters.count_table(["toy"], ["lora"], None, config_file(tmp_path, **told))


def test_what_peft_refuses_is_said_in_place_of_a_number():
    lines = parameters.count_table(["toy"], ["osora"], [8], modules=["embed_tokens"])
    assert "model.embed_tokens is no linear layer" in lines[0].problem


def test_a_process_without_torch_composes_beside_the_import():
    code = (
        "import gc, sys; from osora_bench.cli.main import main; assert 'torch' not in sys.modules; "
        "status = main(['params', 'model=toy', 'method=lora,osora', 'rank=8,65', '--csv']); "
        "assert gc.get_freeze_count() > 100_000  # else a second of garbage collection at the end\n"
        "sys.exit(status)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr  # OSoRA has no rank 65 here
    assert (
        run.stdout.strip()
        == params.counts_csv(parameters.count_table(["toy"], ["lora", "osora"], [8, 65])).strip()
    )


def test_several_processes_count_what_one_does(monkeypatch):
    asked = (["toy", "smollm2-135m"], ["full", "lora", "osora", "vera"], [4, 128])
    one = parameters.count_table(*asked)
    assert any(line.problem for line in one)
    monkeypatch.setattr(parameters, "CELLS_A_PROCESS", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    children = []
    real = parameters.ProcessPoolExecutor
    monkeypatch.setattr(
        parameters, "ProcessPoolExecutor", lambda n, **k: children.append(n) or real(n, **k)
    )
    assert parameters.count_table(*asked) == one
    assert children == [3]


@pytest.mark.parametrize("text", ["{}", "{", "[]"])
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        parameters.read_config_file(tmp_path / "config.json")


def test_a_rank_that_a_layer_cannot_have_is_said_in_place_of_a_number():
    lines = parameters.count_table(["qwen2-7b"], ["osora", "vera"], [1024])
    assert lines[0].count is None
    assert "the largest rank for osora here is 512" in params.counts_markdown(lines)
    assert lines[1].count is not None


@pytest.mark.parametrize(
    ("asked", "status", "counted"),
    [
        (["method=osora", "rank=8,65"], 2, 1),  # the table is still of what could be counted
        (["method=lora,osora", "rank=65"], 2, 1),
        (["method=osora", "rank=65"], 2, 0),
        (["method=osora", "rank=64"], 0, 1),
    ],
)
def test_a_count_that_was_asked_for_by_its_method_and_is_refused_is_a_mistake(
    asked, status, counted, capsys
):
    assert main(["params", "model=toy", *asked, "--csv"]) == status
    shown = capsys.readouterr()
    assert sum(line.rpartition(",")[2].isdecimal() for line in shown.out.splitlines()) == counted
    assert bool(shown.out) == bool(counted)
    assert ("toy osora: rank 65 is above min(d_out, d_in)" in shown.err) == (status == 2)


def test_of_all_methods_a_rank_suits_those_that_it_suits(capsys):
    assert main(["params", "model=toy", "rank=65", "--csv"]) == 0
    shown = capsys.readouterr()
    assert "the largest rank for osora here is 64" in shown.out
    assert shown.err == ""


def test_modules_that_match_nothing_are_refused():
    cfg = configured("model=qwen2-7b", "method=lora", "model.target_modules=[c_attn]")
    with pytest.raises(UserError, match="'c_attn' matches no module. Linear layers here: .*q_proj"):
        counting.count(cfg)


def test_the_default_grid_is_the_experiments():
    used = parameters.experiment_ranks(readable_experiments())
    assert used["qwen2-7b", "lora"] == [2, 4, 8, 16, 32, 64]
    assert used["qwen2.5-32b-instruct", "osora"] == [1024]


def test_another_architecture_than_the_files_is_refused(tmp_path):
    toy = paths.resolve("pkg://osora_bench.toy/model")
    cfg = configured("model=qwen2-7b", f"model.path={toy}")
    with pytest.raises(UserError, match="hidden_size .* in place of 3584"):
        models_weights.check_weights(cfg.model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    cfg = configured("model=qwen2-7b", f"model.path={tmp_path}")
    with pytest.raises(UserError, match="holds no weights"):
        models_weights.check_weights(cfg.model)


def altered_toy(folder, **changes):
    """A copy of the embedded model whose config.json says something else."""
    copied = shutil.copytree(paths.resolve("pkg://osora_bench.toy/model"), folder / "model")
    told = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**told, **changes}))
    return copied


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 6}, r"18 missing \(model\.layers\.4\.input_layernorm\.weight"),
        ({"num_hidden_layers": 3}, r"9 without a place \(model\.layers\.3\."),
        ({"intermediate_size": 512}, r"12 of another shape \(model\.layers\.0\.mlp\.down_proj"),
    ],
)
def test_weights_that_are_not_those_of_the_config_beside_them_are_refused(tmp_path, changes, told):
    cfg = configured(f"model.path={altered_toy(tmp_path, layer_types=None, **changes)}")
    with pytest.raises(UserError, match=f"its config.json describes: tensors {told}"):
        models_weights.check_weights(cfg.model)


def test_a_damaged_file_of_weights_is_refused(tmp_path):
    folder = altered_toy(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(UserError, match="model: cannot be loaded: "):
        models_weights.check_weights(configured(f"model.path={folder}").model)


def test_by_default_the_experiments_methods_are_counted_and_all_are_every_file():
    usual = parameters.usual_methods(readable_experiments())
    assert {"none", "full", "lora", "osora_star"} <= set(usual) < set(group_choices("method"))
    assert parameters.count_table(["toy"], None, [8]) == parameters.count_table(["toy"], usual, [8])
    assert params._methods(None) is None
    assert params._methods("all") == group_choices("method")
