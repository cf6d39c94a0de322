"""One process's shared work, and one cell through it: train, evaluate, record."""

import gc
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import transformers

from osora_bench import (
    claim,
    data,
    evaluate,
    interruption,
    models,
    provenance,
    ranks,
    record,
    standalone,
    train,
)
from osora_bench.plan import Cell, fingerprints, processes, revision, trains
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
        shared = self._train_shared(cell) if processes(cell.config) > 1 else None
        trained = time.time()
        base = self.workspace.base(_to_evaluate(cell))
        seconds = {"load": time.time() - trained}
        transformers.set_seed(cell.config["seed"])
        model, training, trainable = base.model, None, 0
        try:
            if shared is not None:
                training, trainable = shared
                model = _as_trained(cell, base)
            elif trains(cell.config):
                model, training, trainable = self._train(cell, base, device)
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
            **_origin(cell, device),
            "parameters": {"trainable": trainable, "adapter_bytes": _adapter_bytes(cell)},
            "training": None if training is None else asdict(training),
            "scores": {name: asdict(score) for name, score in scores.items()},
            "measured": _measured(seconds, claim.note(cell.paths.folder).get("starts", 1)),
        }
        record.write(made, cell.ledger)
        return made

    def _train(self, cell: Cell, base: Any, device: Any) -> tuple[Any, Any, int]:
        model = train.adapted(base.model, cell)
        trainable = train.trainable(model)
        training = train.train(
            model,
            self.tokenised(cell, base.tokenizer),
            cell.config,
            pad_token_id=base.tokenizer.pad_token_id,
            folder=cell.paths.trainer,
            device=device,
            label=cell.label,
        )
        train.save(model, base, cell)
        return model, training, trainable

    def _train_shared(self, cell: Cell) -> tuple[Any, int]:
        """Train in processes of their own, which need the memory that is used here."""
        self.workspace.clear()
        return ranks.train(cell, interruption.current())

    def tokenised(self, cell: Cell, tokenizer: Any) -> data.TokenisedTask:
        """The cell's training rows as tokens; cells with the same rows share them."""
        task, model = cell.config["task"], cell.config["model"]
        by_seed = task["max_rows"] is not None or any(s["options"] for s in task["sources"])
        seed = cell.config["seed"] if by_seed else 0
        key = json.dumps([task, model["path"], model["revision"], model["chat"], seed])
        if key not in self._tokenised:
            self._tokenised[key] = data.tokenised(cell.config, tokenizer)
        return self._tokenised[key]


def _to_evaluate(cell: Cell) -> dict[str, Any]:
    """The configuration of the model to load once the training is over, if it is not here."""
    model = cell.config["model"]
    if not (processes(cell.config) > 1 and cell.config["method"]["full"]):
        return cell.config
    return {**cell.config, "model": {**model, "path": str(cell.paths.adapter), "revision": None}}


def _as_trained(cell: Cell, base: models.Base) -> Any:
    """The model that other processes have trained and written down."""
    if cell.config["method"]["full"]:
        return base.model
    return standalone.adapted(base, cell.paths.adapter, cell.config)


def _adapter_bytes(cell: Cell) -> int:
    if not trains(cell.config):
        return 0
    return sum(p.stat().st_size for p in cell.paths.adapter.glob("*.safetensors"))


def _origin(cell: Cell, device: Any) -> dict[str, Any]:
    """What a record says of where it comes from."""
    return {
        "run_id": cell.run_id,
        "config": _portable(cell.config),
        "provenance": {
            **provenance.provenance(device, processes(cell.config)),
            "revision": revision(cell.config),
            "fingerprints": _without_folders(fingerprints(cell.config)),
        },
    }


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
    memory so far of the process or of the largest that it started, when it ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "starts": starts,
        "peak_memory_mb": max(resource.getrusage(one).ru_maxrss for one in who) >> 10,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
