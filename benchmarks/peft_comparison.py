"""A record of a GSM8K run in the form of PEFT's method comparison, one JSON file a record.

    python -m benchmarks.peft_comparison results/ledger/RUN_ID.json --out comparison

Written from what PEFT's pages read of a result (its repository, method_comparison/). What a record
of this project does not hold is null: how memory went over time, the loss on PEFT's sample of
Wikipedia, and the model's age on the hub. Its recipe is another too (model, rows, prompt), so such
a file belongs beside PEFT's own only where the experiment was set up after theirs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osora_bench.common.errors import UserError
from osora_bench.records.record import read_record

SET = "gsm8k"
PACKAGES = ("transformers", "datasets", "peft", "torch", "bitsandbytes")


def comparison(record: dict[str, Any]) -> dict[str, Any]:
    """PEFT's three sections of one record.

    Raises:
        UserError: a record without scores on GSM8K.
    """
    accuracy = _accuracy(record)
    config, measured, training = record["config"], record["measured"], record["training"]
    loss = training["loss"]
    return {
        "run_info": {
            "created_at": measured["finished"],
            "total_time": measured["seconds"]["total"],
            "experiment_name": f"{config['method']['name']}/{_experiment(config)}",
            "peft_branch": None,
            "peft_worktree_is_dirty": None,
            "train_config": _recipe(config, training),
            "peft_config": _adapter(config["method"]),
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_max": measured["peak_memory_mb"] * 2**20,
            "accelerator_memory_reserved_99th": None,
            "train_time": measured["seconds"].get("train"),
            "file_size": record["parameters"]["adapter_bytes"],
            "num_trainable_params": record["parameters"]["trainable"],
            "num_total_params": None,
            "status": "success",  # a record is of a run that ended well
            "metrics": [
                {
                    "step": training["steps"],
                    "test accuracy": accuracy,
                    "train loss": loss[-1][1] if loss else None,
                    "train samples": training["steps"] * config["trainer"]["batch_size"],
                    "train total tokens": training["tokens"],
                    "forgetting": None,
                }
            ],
        },
        "meta_info": _origin(record),
    }


def _accuracy(record: dict[str, Any]) -> float:
    """Between 0 and 1, of the questions that were asked."""
    for name, score in record["scores"].items():
        if name.startswith(SET):
            return float(score["k"] / score["n"])
    names = ", ".join(record["scores"]) or "none"
    raise UserError(f"record {record['run_id']}: no scores on {SET}; it has {names}")


def _experiment(config: dict[str, Any]) -> str:
    rank = config["method"]["rank"]
    return f"{config['model']['name']}{'' if rank is None else f'-rank{rank}'}"


def _recipe(config: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    trainer, model = config["trainer"], config["model"]
    quantised = {"nf4": "int4", "int8": "int8"}
    return {
        "model_id": model["path"],
        "dtype": quantised.get(model.get("quantization"), model["dtype"]),
        "max_seq_length": config["task"]["max_length"],
        "batch_size": trainer["batch_size"],
        "batch_size_eval": None,
        "max_steps": training["steps"],
        "eval_steps": None,
        "compile": False,
        "use_gc": trainer["gradient_checkpointing"],
        "query_template": config["task"]["sources"][0]["prompt"],
        "seed": config["seed"],
        "grad_norm_clip": trainer["max_grad_norm"],
        "optimizer_type": trainer["optimizer"],
        "optimizer_kwargs": {
            "lr": trainer["learning_rate"], "weight_decay": trainer["weight_decay"],
        },
        "lr_scheduler": trainer["schedule"],
        "use_amp": trainer["precision"] != model["dtype"],
        "autocast_adapter_dtype": True,
        "generation_kwargs": {"max_new_tokens": config["eval"]["max_out_len"]},
        "attn_implementation": trainer.get("attention"),
        "init_kv_cache_prefix": None,
    }  # fmt: skip


def _adapter(method: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the adapter; None where all weights are trained."""
    if method["peft"] is None:
        return None
    kind = str(method["peft"]["_target_"]).rpartition(".")[2].removesuffix("Config").upper()
    return {"peft_type": kind, **{k: v for k, v in method["peft"].items() if k != "_target_"}}


def _origin(record: dict[str, Any]) -> dict[str, Any]:
    provenance = record["provenance"]
    versions = provenance["versions"]
    packages: dict[str, str | None] = {f"{name}-version": versions.get(name) for name in PACKAGES}
    packages |= {f"{name}-commit-hash": None for name in PACKAGES}
    packages["osora-bench-version"] = versions["osora-bench"]
    packages["osora-bench-commit-hash"] = provenance["code"]["commit"]
    return {
        "model_info": {"sha": provenance["revision"], "created_at": None},
        "dataset_info": {
            name: {"sha": mark, "created_at": None}
            for name, mark in provenance["fingerprints"].items()
        },
        "package_info": packages,
        "system_info": {"python": versions["python"], **provenance["hardware"]},
        "pytorch_info": None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files; 2 for a record that cannot be written so."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    args = parser.parse_args(argv)
    try:
        made = {path.stem: comparison(dict(read_record(path))) for path in args.records}
    except (UserError, OSError) as error:
        print(f"peft_comparison: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for name, result in made.items():
        place = args.out / f"{result['run_info']['experiment_name'].replace('/', '--')}-{name}.json"
        place.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
