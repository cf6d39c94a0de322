"""Records in the form of PEFT's method comparison: its fields, and our numbers in them."""

import json
from typing import Any

import pytest

from benchmarks.peft_comparison import comparison, main
from osora_bench.common import paths
from osora_bench.pipeline.attempt import attempt
from osora_bench.records import record
from tests.conftest import QUICK

FIELDS = """
run_info: created_at error_msg experiment_name peft_branch peft_config total_time train_config
train_config: attn_implementation autocast_adapter_dtype batch_size batch_size_eval compile dtype
    eval_steps generation_kwargs grad_norm_clip init_kv_cache_prefix lr_scheduler max_seq_length
    max_steps model_id optimizer_kwargs optimizer_type query_template seed use_amp use_gc
train_info: accelerator_memory_max accelerator_memory_reserved_99th metrics num_total_params
    accelerator_memory_reserved_avg file_size num_trainable_params status train_time
metrics: forgetting step test_accuracy train_loss train_samples train_total_tokens
meta_info: dataset_info model_info package_info pytorch_info system_info
package_info: bitsandbytes-version datasets-version peft-version torch-version transformers-version
    bitsandbytes-commit-hash datasets-commit-hash peft-commit-hash torch-commit-hash
    transformers-commit-hash
"""
"""By section; a space inside a field's name stands as _. From PEFT's result files at 5d2d145."""


def sections(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    metrics = {k.replace(" ", "_"): v for k, v in made["train_info"]["metrics"][-1].items()}
    return {
        **made,
        "train_config": made["run_info"]["train_config"],
        "metrics": metrics,
        "package_info": made["meta_info"]["package_info"],
    }


def test_a_cell_of_the_toy_in_peft_s_fields(make_cell, session, tmp_path, capsys):
    cell = make_cell("method=osora", *QUICK)
    assert attempt(cell) == "done", cell.error
    assert main([str(cell.record), "--out", str(tmp_path / "out")]) == 0
    (place,) = (tmp_path / "out").iterdir()
    assert str(place) in capsys.readouterr().out
    made = json.loads(place.read_text())
    for line in FIELDS.strip().replace("\n    ", " ").splitlines():
        name, _, fields = line.partition(": ")
        lacking = set(fields.split()) - set(sections(made)[name])
        assert not lacking, f"{name}: {lacking}"
    ours = record.read_record(cell.record)
    score = ours["scores"]["gsm8k-toy"]
    metrics = sections(made)["metrics"]
    assert metrics["test_accuracy"] == score["k"] / score["n"]
    assert metrics["train_loss"] == ours["training"]["loss"][-1][1]
    assert metrics["train_samples"] == 2 * 32
    assert made["train_info"]["num_trainable_params"] == ours["parameters"]["trainable"]
    assert made["run_info"]["peft_config"]["peft_type"] == "OSORA"
    assert made["run_info"]["experiment_name"] == "osora/toy-rank64"
    assert made["train_info"]["accelerator_memory_reserved_avg"] is None  # not known is not zero


def test_a_record_without_gsm8k_is_told(capsys, tmp_path):
    some = min((paths.RESULTS / "ledger").glob("*.json"))
    assert main([str(some), "--out", str(tmp_path / "out")]) == 2
    assert f"record {some.stem}: no scores on gsm8k; it has " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_weights_have_no_adapter():
    some = record.read_record(min((paths.RESULTS / "ledger").glob("*.json")))
    changed = json.loads(json.dumps(some))
    changed["scores"] = {"gsm8k": {"k": 3, "n": 4}}
    changed["config"]["method"]["peft"] = None
    made = comparison(changed)
    assert made["run_info"]["peft_config"] is None
    assert made["train_info"]["metrics"][0]["test accuracy"] == pytest.approx(0.75)
