"""One process's shared work, and one cell through it: train, evaluate, record."""

import gc
import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import transformers

from osora_bench import (
    claim,
    data,
    evaluate,
    models,
    preflight,
    provenance,
    record,
    standalone,
    train,
)
from osora_bench.osora import SvdStore, use_store
from osora_bench.plan import Cell, fingerprints, revision, trains
from osora_bench.tracker import tracking


class Session:
    """One process's shared work: libraries, base model, tokenised rows, OpenCompass datasets."""

    def __init__(self) -> None:
        models.quiet()
        self.workspace = models.Workspace()
        self._tokenised: dict[str, data.TokenisedTask] = {}

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Load the questions of every suite once; a set of the wrong size stops all now."""
        suites = {json.dumps(cell.config["eval"], sort_keys=True): cell for cell in cells}
        for cell in suites.values():
            evaluate.prepare(cell.config["eval"], cell.paths.runs)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train, evaluate and record one cell; return its record."""
        cell.paths.folder.mkdir(parents=True, exist_ok=True)
        with tracking(cell) as tracked:
            made = self._run(cell)
            tracked.update({name: score["accuracy"] for name, score in made["scores"].items()})
        return made

    def _run(self, cell: Cell) -> dict[str, Any]:
        started = time.time()
        cell.paths.failure.unlink(missing_ok=True)
        device = models.device_of(cell.config)
        base = self.workspace.base(cell.config)
        transformers.set_seed(cell.config["seed"])
        model, training, parameters = base.model, None, {"trainable": 0, "adapter_bytes": 0}
        seconds = {"load": time.time() - started}
        try:
            if trains(cell.config):
                model, training, parameters = self._train(cell, base, device)
            seconds["train"] = time.time() - started - seconds["load"]
            scores = evaluate.evaluate(
                model, base.tokenizer, cell.config, cell.paths.evaluation, cell.label
            )
        finally:
            self.workspace.release(model)
            gc.collect()
        seconds["total"] = time.time() - started
        seconds["evaluate"] = seconds["total"] - seconds["load"] - seconds["train"]
        made = {
            "run_id": cell.run_id,
            "config": _portable(cell.config),
            "provenance": {
                **provenance.provenance(device),
                "revision": revision(cell.config),
                "fingerprints": _without_folders(fingerprints(cell.config)),
            },
            "parameters": parameters,
            "training": None if training is None else asdict(training),
            "scores": {name: asdict(score) for name, score in scores.items()},
            "not_run": evaluate.not_run(cell.config["eval"], scores),
            "measured": _measured(seconds, claim.note(cell.paths.folder).get("starts", 1)),
        }
        record.write(made, cell.ledger)
        return made

    def _train(self, cell: Cell, base: Any, device: Any) -> tuple[Any, Any, dict[str, int]]:
        method = cell.config["method"]
        model = base.model
        if not method["full"]:
            with use_store(_store(cell)):
                model = peft.get_peft_model(base.model, preflight.instantiate(method))
                preflight.start(method)(model)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        training = train.train(
            model,
            self.tokenised(cell, base.tokenizer),
            cell.config,
            pad_token_id=base.tokenizer.pad_token_id,
            folder=cell.paths.trainer,
            device=device,
            label=cell.label,
        )
        model.save_pretrained(str(cell.paths.adapter))
        standalone.remember(cell.paths.adapter, base, method)
        if method["full"]:  # a whole model, then
            base.tokenizer.save_pretrained(cell.paths.adapter)
        size = sum(p.stat().st_size for p in cell.paths.adapter.glob("*.safetensors"))
        return model, training, {"trainable": trainable, "adapter_bytes": size}

    def tokenised(self, cell: Cell, tokenizer: Any) -> data.TokenisedTask:
        """The cell's training rows as tokens; cells with the same rows share them."""
        task, model = cell.config["task"], cell.config["model"]
        by_seed = task["max_rows"] is not None or any(s["options"] for s in task["sources"])
        seed = cell.config["seed"] if by_seed else 0
        key = json.dumps([task, model["path"], model["revision"], model["chat"], seed])
        if key not in self._tokenised:
            self._tokenised[key] = data.tokenise(
                data.dialogues(task, seed),
                tokenizer,
                chat=model["chat"],
                loss_on=task["loss_on"],
                max_length=task["max_length"],
            )
        return self._tokenised[key]


def _store(cell: Cell) -> SvdStore | None:
    """Where decompositions are shared by cells and later runs: below `runs` if not elsewhere."""
    return None if os.environ.get("OSORA_SVD_STORE") else SvdStore(cell.paths.decompositions)


def _portable(cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what only places the run on this machine."""
    places = ("ledger", "runs", "device", "tracker")
    return {key: _without_folders(value) for key, value in cfg.items() if key not in places}


def _without_folders(node: Any) -> Any:
    """Absolute paths as bare names: what lies there is in the run id by its bytes."""
    if isinstance(node, dict):
        return {_without_folders(key): _without_folders(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_folders(value) for value in node]
    if isinstance(node, str) and Path(node).is_absolute():
        return Path(node).name
    return node


def _measured(seconds: dict[str, float], starts: int) -> dict[str, Any]:
    """Costs of this run: seconds by stage since its last start, how many starts it took, peak
    memory of the process so far, when it ended."""
    return {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "starts": starts,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
