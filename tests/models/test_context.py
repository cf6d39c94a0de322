"""Models whose configuration calls their context otherwise, has none, or does not say."""

import json
import shutil
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.models.context import UNBOUNDED, context_of
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.records import record
from tests.conftest import QUICK

TOY = paths.resolve("pkg://osora_bench.toy/model")
GEMMA_TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 512,
    "sliding_window": 64,
}  # fmt: skip
GEMMA_VISION = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
STATE = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
MODELS = {
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, "query_key_value", UNBOUNDED),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}, "Wqkv", 512),
    "mamba": (STATE, "x_proj", UNBOUNDED),
    "mamba2": ({**STATE, "num_heads": 4, "head_dim": 16, "n_groups": 1}, "in_proj", UNBOUNDED),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, "c_attn", 512),
    "gemma3": (
        {
            "text_config": GEMMA_TEXT, "vision_config": GEMMA_VISION, "mm_tokens_per_image": 4,
            "boi_token_index": 5, "eoi_token_index": 6, "image_token_index": 7,
        },
        "q_proj", 512,
    ),
}  # fmt: skip


def write_model(kind, folder):
    """A tiny random model of the type, with the toy's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    told = dict(MODELS[kind][0])
    words = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if "text_config" in told:
        told["text_config"] = {**told["text_config"], **words}
        words.pop("vocab_size")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **told, **words))
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def of(folder, kind):
    modules = f"model.target_modules=[{MODELS[kind][1]}]"
    return [f"model.path={folder}", "model.architecture=null", modules, "method.rank=4"]


@pytest.mark.long
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_is_trained_evaluated_and_recorded(kind, make_cell, session, tmp_path, capsys):
    write_model(kind, tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert context_of(config, kind) == MODELS[kind][2]
    cell = make_cell(*of(tmp_path / "model", kind), *QUICK, "trainer.precision=float32")
    preflight.check_cells([cell])
    assert attempt(cell) == "done", cell.error
    made = record.read_record(cell.record)
    assert made["parameters"]["trainable"] > 0
    assert [(s["n"], s["too_long"]) for s in made["scores"].values()] == [(6, 0), (6, 0)]
    told = ["--model", str(tmp_path / "model"), "--adapter", str(cell.paths.adapter)]
    told += ["--suite", "toy", *QUICK[1:], f"runs={tmp_path}", "--output", str(tmp_path / "again")]
    assert main(["evaluate", *told]) == 0
    again = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert again["scores"] == made["scores"]


@pytest.mark.parametrize("told", [{"seq_length": 2048}, {"n_ctx": 2048}, {"n_positions": 2048}])
def test_other_names_that_a_config_json_may_have(told):
    assert context_of(AutoConfig.for_model("bloom", **told), "one") == 2048


@pytest.mark.parametrize("where", ["a run", "evaluate"])
def test_a_configuration_that_does_not_say_is_refused_before_a_model_is_loaded(
    where, make_cell, tmp_path, monkeypatch, capsys
):
    from osora_bench.models import context

    shutil.copytree(TOY, tmp_path / "model")
    write_model("mamba", tmp_path / "model")
    monkeypatch.setattr(context, "WITHOUT_END", ())  # as a type that nobody has told of
    if where == "a run":
        with pytest.raises(UserError, match="configuration of mamba does not say how many tokens"):
            preflight.check_cells([make_cell(*of(tmp_path / "model", "mamba"), *QUICK)])
        return
    monkeypatch.setitem(sys.modules, "osora_bench.evaluation.evaluate", None)  # never imported
    told = ["--model", str(tmp_path / "model"), "--suite", "toy", f"runs={tmp_path}"]
    assert main(["evaluate", *told]) == 2
    assert "model model: the configuration of mamba does not say" in capsys.readouterr().err
