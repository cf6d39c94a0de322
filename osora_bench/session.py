"""One process's shared work, and one cell through it: train, evaluate, record."""

import gc
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
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
    trained,
)
from osora_bench.osora import SvdStore, use_store
from osora_bench.plan import Cell, fingerprints, revision, trains
from osora_bench.tracker import Tracker, tracking

UNTRAINED = trained.Trained(None, {"trainable": 0, "adapter_bytes": 0}, 0.0)
"""Of a cell that evaluates the base model as it is."""


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
        with tracking(cell, _portable(cell.config)) as tracker:
            made = self._run(cell, tracker)
            tracker.end(_tracked(made), failed=False)
        return made

    def _run(self, cell: Cell, tracker: Tracker) -> dict[str, Any]:
        started = time.time()
        cell.paths.failure.unlink(missing_ok=True)
        device = models.device_of(cell.config)
        base = self.workspace.base(cell.config)
        origin = provenance.provenance(device)
        model, done = base.model, UNTRAINED
        seconds = {"load": time.time() - started}
        try:
            if trains(cell.config):
                model, done = self._trained(cell, base, origin, tracker)
            evaluating = time.time()
            scores = evaluate.evaluate(
                model, base.tokenizer, cell.config, cell.paths.evaluation, cell.label
            )
        finally:
            self.workspace.release(model)
            gc.collect()
        seconds |= {"train": done.seconds, "evaluate": time.time() - evaluating}
        seconds["total"] = sum(seconds.values())
        made = {
            "run_id": cell.run_id,
            "config": _portable(cell.config),
            "provenance": {
                **origin,
                "revision": revision(cell.config),
                "fingerprints": _without_folders(fingerprints(cell.config)),
            },
            "parameters": done.parameters,
            "training": None if done.training is None else asdict(done.training),
            "scores": {name: asdict(score) for name, score in scores.items()},
            "measured": _measured(seconds, claim.note(cell.paths.folder).get("starts", 1)),
        }
        record.write(made, cell.ledger)
        return made

    def _trained(
        self, cell: Cell, base: models.Base, origin: dict[str, Any], tracker: Tracker
    ) -> tuple[Any, trained.Trained]:
        """The trained model: an earlier cell's where that trained the same, else this one's."""
        started = time.time()
        model = self._started(cell, base)
        earlier = trained.find(cell, origin) if not cell.config["method"]["full"] else None
        if earlier is not None:
            if earlier.load(cell, model):
                return model, earlier.done
            self.workspace.release(model)
            base = self.workspace.base(cell.config)
            model = self._started(cell, base)
        training, parameters = self._train(cell, base, model, tracker)
        done = trained.Trained(training, parameters, time.time() - started)
        if not cell.config["method"]["full"]:
            trained.keep(cell, model, done, origin)
        return model, done

    def _started(self, cell: Cell, base: models.Base) -> Any:
        """The model with a fresh adapter, as the cell's seed starts it."""
        transformers.set_seed(cell.config["seed"])
        method = cell.config["method"]
        if method["full"]:
            return base.model
        with use_store(_store(cell)):
            model = peft.get_peft_model(base.model, preflight.instantiate(method))
            preflight.start(method)(model)
        return model

    def _train(
        self, cell: Cell, base: models.Base, model: Any, tracker: Tracker
    ) -> tuple[train.Training, dict[str, int]]:
        method = cell.config["method"]
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        training = train.train(
            model,
            self.tokenised(cell, base.tokenizer),
            cell.config,
            held_out=self.held_out(cell, base.tokenizer),
            pad_token_id=base.tokenizer.pad_token_id,
            folder=cell.paths.trainer,
            device=models.device_of(cell.config),
            label=cell.label,
            log=tracker.log,
        )
        model.save_pretrained(str(cell.paths.adapter))
        standalone.remember(cell.paths.adapter, base, method)
        if method["full"]:  # a whole model, then
            base.tokenizer.save_pretrained(cell.paths.adapter)
        size = sum(p.stat().st_size for p in cell.paths.adapter.glob("*.safetensors"))
        return training, {"trainable": trainable, "adapter_bytes": size}

    def tokenised(self, cell: Cell, tokenizer: Any) -> data.TokenisedTask:
        """The cell's training rows as tokens; cells with the same rows share them."""
        task = cell.config["task"]
        by_seed = task["max_rows"] is not None or any(s["options"] for s in task["sources"])
        seed = cell.config["seed"] if by_seed else 0
        return self._tokens(cell, tokenizer, seed, lambda: data.dialogues(task, seed))

    def held_out(self, cell: Cell, tokenizer: Any) -> data.TokenisedTask | None:
        """The rows that the cell's task keeps out of training, if it does."""
        task = cell.config["task"]
        if task["validation_rows"] is None:
            return None
        return self._tokens(cell, tokenizer, None, lambda: data.validation_dialogues(task))

    def _tokens(
        self,
        cell: Cell,
        tokenizer: Any,
        seed: int | None,
        rows: Callable[[], list[data.Dialogue]],
    ) -> data.TokenisedTask:
        task, model = cell.config["task"], cell.config["model"]
        key = json.dumps([task, model["path"], model["revision"], model["chat"], seed])
        if key not in self._tokenised:
            self._tokenised[key] = data.tokenise(
                rows(),
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


def _tracked(made: dict[str, Any]) -> dict[str, Any]:
    """What a tracker shows of a finished cell."""
    scores = {f"accuracy/{name}": score["accuracy"] for name, score in made["scores"].items()}
    seconds = {f"seconds/{name}": value for name, value in made["measured"]["seconds"].items()}
    peak = made["measured"]["peak_memory_mb"]
    return {**scores, **seconds, **made["parameters"], "peak_memory_mb": peak}


def _measured(seconds: dict[str, float], starts: int) -> dict[str, Any]:
    """Costs of this run: seconds by stage since its last start, how many starts it took, peak
    memory of the process so far, when it ended."""
    return {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "starts": starts,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
