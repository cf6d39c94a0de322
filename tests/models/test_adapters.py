"""Saved adapters that PEFT can load, though not as they lie there on the model as it is."""

import json
import shutil

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.models.adapters import with_saved_adapter
from osora_bench.models.base import Workspace, load_base
from osora_bench.models.trial import plain_losses
from tests.conftest import QUICK

TOY = paths.resolve("pkg://osora_bench.toy/model")
TEXT = [5, 9, 13, 21, 33, 7, 8, 30, 11]
MODULES = ["q_proj", "v_proj"]


def loaded(cell, folder):
    model = with_saved_adapter(Workspace().base(cell.config), folder, cell.config)
    return model.eval()


def evaluated(folder, tmp_path, *more):
    told = ["--suite", "toy", "--adapter", str(folder), *QUICK[1:], f"runs={tmp_path}", *more]
    model = [] if "--model" in more else ["--model", "toy"]
    return main(["evaluate", *model, *told, "--output", str(tmp_path / "scores")])


@pytest.mark.parametrize("ranks", [[0, 2, 4, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
def test_layers_that_adalora_left_no_rank(ranks, make_cell, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.float32)
    settings = peft.AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=1, tinit=1, tfinal=1, deltaT=1, total_step=8,
        target_modules=MODULES,
    )  # fmt: skip
    model = peft.get_peft_model(base, settings)
    pattern = {}
    layers = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_E")]
    for place, (name, layer) in enumerate(layers):
        rank = ranks[place % 4]
        key = f"{name.removeprefix('base_model.model.')}.lora_E.default"
        pattern[key] = [i < rank for i in range(4)]
        torch.nn.init.normal_(layer.lora_B["default"])
        with torch.no_grad():  # what the allocator left out is zero
            layer.lora_E["default"][:rank] = 0.1
            layer.lora_E["default"][rank:] = 0
    settings.rank_pattern = pattern
    expected = plain_losses(model.eval(), TEXT)
    model.save_pretrained(tmp_path / "adapter")
    cell = make_cell("model.dtype=float32")
    torch.testing.assert_close(
        plain_losses(loaded(cell, tmp_path / "adapter"), TEXT), expected, rtol=1e-4, atol=1e-4
    )
    assert evaluated(tmp_path / "adapter", tmp_path) == 0


def with_more_words(tmp_path, words, *, multiple=None, tied=True):
    """An adapter that was trained on the toy with words added, its embeddings saved with it."""
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(words)])
    base = AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.float32)
    if not tied:
        base.config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
        base.save_pretrained(tmp_path / "model")
        AutoTokenizer.from_pretrained(TOY).save_pretrained(tmp_path / "model")
    base.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple)
    with torch.no_grad():
        base.get_input_embeddings().weight.add_(0.01)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=MODULES, init_lora_weights=False
    )
    model = peft.get_peft_model(base, settings).eval()
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    last = base.get_input_embeddings().weight.shape[0] - 1
    return model, [*TEXT, len(tokenizer) - 1, last]


@pytest.mark.parametrize(
    "more",
    [
        {"words": 3},
        {"words": 5, "multiple": 64},
        {"words": 2, "tied": False},
        {"words": 0},
    ],
)
def test_embeddings_that_were_saved_with_an_adapter(more, make_cell, tmp_path):
    model, text = with_more_words(tmp_path, **more)
    place = [] if more.get("tied", True) else [f"model.path={tmp_path}/model"]
    cell = make_cell("model.dtype=float32", "model.architecture=null", *place)
    if more["words"] == 0:  # PEFT saves them of itself where words were added
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    found = plain_losses(loaded(cell, tmp_path / "adapter"), text)
    assert torch.equal(found, plain_losses(model, text))
    on = ["--model", str(tmp_path / "model")] if place else []
    assert evaluated(tmp_path / "adapter", tmp_path, *on) == 0


def test_an_output_layer_that_was_not_saved_is_told(make_cell, tmp_path):
    from safetensors.torch import load_file, save_file

    with_more_words(tmp_path, 2, tied=False)
    place = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(place)
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, place)
    cell = make_cell(f"model.path={tmp_path}/model", "model.architecture=null")
    with pytest.raises(UserError, match="embeddings and output layer were not both saved"):
        loaded(cell, tmp_path / "adapter")


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "trained", "asked"),
    [
        ("lora", "float32", "bfloat16"),
        ("lora", "bfloat16", "float32"),
        ("vera", "float32", "float16"),
        ("pissa", "float32", "bfloat16"),
    ],
)
def test_the_same_weights_in_another_precision_are_said_and_evaluated(  # noqa: PLR0917
    method, trained, asked, make_cell, session, tmp_path, capsys
):
    cell = make_cell(
        f"method={method}", *QUICK, f"model.dtype={trained}", "trainer.precision=float32"
    )
    session.run(cell)
    capsys.readouterr()
    assert evaluated(cell.paths.adapter, tmp_path, "--dtype", asked) == 0
    told = capsys.readouterr()
    assert f"in {trained}: these are the same weights in {asked}" in told.out + told.err
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]
    beside = plain_losses(loaded(cell, cell.paths.adapter), TEXT)
    other = make_cell(f"method={method}", f"model.dtype={asked}")
    found = plain_losses(loaded(other, cell.paths.adapter), TEXT)
    assert (found - beside).abs().mean() < 0.03 * beside.abs().mean()


def test_other_weights_stay_refused_in_any_precision(make_cell, session, tmp_path):
    cell = make_cell("method=lora", *QUICK)
    session.run(cell)
    shutil.copytree(TOY, tmp_path / "model")
    model = load_base(cell.config.model, torch.device("cpu")).model
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    model.save_pretrained(tmp_path / "model")
    for dtype in ("float32", "bfloat16"):
        other = make_cell(f"model.path={tmp_path}/model", f"model.dtype={dtype}")
        with pytest.raises(UserError, match="trained on other weights than those of toy"):
            loaded(other, cell.paths.adapter)
