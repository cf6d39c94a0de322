"""One process's shared work, and one cell through it: train, evaluate, record."""

import gc
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import transformers

from osora_bench.common import claim, interruption
from osora_bench.evaluation import evaluate
from osora_bench.evaluation.scores import Score, not_run
from osora_bench.evaluation.suites import prepare
from osora_bench.models import adapters
from osora_bench.models.adapters import with_saved_adapter
from osora_bench.models.base import Base, Workspace, device_of, quiet
from osora_bench.pipeline.tracker import Tracker, tracking
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import processes, trains
from osora_bench.planning.identity import fingerprints, revision
from osora_bench.records import provenance, record
from osora_bench.training import callbacks, data, reuse, train
from osora_bench.training.fsdp import launch

UNTRAINED = reuse.Trained(None, {"trainable": 0, "adapter_bytes": 0}, 0.0)
"""Of a cell that evaluates the base model as it is."""


class Session:
    """One process's shared work: libraries, base model, tokenised rows, OpenCompass datasets."""

    def __init__(self) -> None:
        quiet()
        self.workspace = Workspace()
        self._tokenised: dict[str, data.TokenisedTask] = {}

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Load the questions of every suite once; a set of the wrong size stops all now."""
        suites = {json.dumps(cell.config["eval"], sort_keys=True): cell for cell in cells}
        for cell in suites.values():
            prepare(cell.config["eval"], cell.paths.runs)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train, evaluate and record one cell; return its record."""
        cell.paths.folder.mkdir(parents=True, exist_ok=True)
        with tracking(cell, _portable(cell.config)) as tracker:
            try:
                made = self._run(cell, tracker)
            except callbacks.Diverged as error:
                if not cell.tries_rate:
                    raise
                told = {"diverged": str(error)}
                made = _recorded(
                    cell, _circumstances(cell), told, parameters={}, scores={}, seconds={}
                )
            tracker.end(_tracked(made), failed=False)
        return made

    def _run(self, cell: Cell, tracker: Tracker) -> dict[str, Any]:
        cell.paths.failure.unlink(missing_ok=True)
        circumstances, done = _circumstances(cell), UNTRAINED
        if processes(cell.config) > 1:
            done = self._train_shared(cell, circumstances, tracker)
        loading = time.time()
        base = self.workspace.base(_to_evaluate(cell))
        model, seconds = base.model, {"load": time.time() - loading}
        try:
            if processes(cell.config) > 1:
                model = _as_trained(cell, base, done, circumstances)
            elif trains(cell.config):
                model, done = self._trained(cell, base, circumstances, tracker)
            evaluating = time.time()
            scores = evaluate.evaluate(
                model, base.tokenizer, cell.config, cell.paths.evaluation, cell.label
            )
        finally:
            self.workspace.release(model)
            gc.collect()
        seconds |= {"train": done.seconds, "evaluate": time.time() - evaluating}
        seconds["total"] = sum(seconds.values())
        training = None if done.training is None else asdict(done.training)
        return _recorded(
            cell,
            circumstances,
            training,
            parameters=done.parameters,
            scores=scores,
            seconds=seconds,
        )

    def _trained(
        self, cell: Cell, base: Base, circumstances: dict[str, Any], tracker: Tracker
    ) -> tuple[Any, reuse.Trained]:
        """The trained model: an earlier cell's where that trained the same, else this one's."""
        started = time.time()
        model = _started(cell, base)
        earlier = reuse.find(cell, circumstances) if not cell.config["method"]["full"] else None
        if earlier is not None:
            if earlier.load(cell, model):
                earlier.tell(tracker.log)
                return model, earlier.done
            self.workspace.release(model)
            base = self.workspace.base(cell.config)
            model = _started(cell, base)
        trainable = adapters.trainable(model)
        training = self._train(cell, base, model, tracker)
        done = reuse.Trained(training, _parameters(cell, trainable), time.time() - started)
        if not cell.config["method"]["full"]:
            reuse.keep(cell, model, done, circumstances)
        return model, done

    def _train(self, cell: Cell, base: Base, model: Any, tracker: Tracker) -> train.Training:
        training = train.train(
            model,
            self.tokenised(cell, base.tokenizer),
            cell.config,
            held_out=self.held_out(cell, base.tokenizer),
            pad_token_id=base.tokenizer.pad_token_id,
            folder=cell.paths.trainer,
            device=device_of(cell.config),
            label=cell.label,
            log=tracker.log,
        )
        adapters.save(model, base, cell)
        return training

    def _train_shared(
        self, cell: Cell, circumstances: dict[str, Any], tracker: Tracker
    ) -> reuse.Trained:
        """Train in processes of their own, which need the memory that is used here; unless an
        earlier cell trained the same."""
        started = time.time()
        if not cell.config["method"]["full"]:
            earlier = reuse.find(cell, circumstances)
            if earlier is not None:
                earlier.take(cell)
                return earlier.done
        self.workspace.clear()
        training, trainable = launch.train(cell, interruption.current(), tracker.log)
        return reuse.Trained(training, _parameters(cell, trainable), time.time() - started)

    def tokenised(self, cell: Cell, tokenizer: Any) -> data.TokenisedTask:
        """The cell's training rows as tokens; cells with the same rows share them."""
        task = cell.config["task"]
        by_seed = task["max_rows"] is not None or any(s["options"] for s in task["sources"])
        seed = cell.config["seed"] if by_seed else 0
        made: data.TokenisedTask = self._tokens(
            cell, seed, lambda: data.tokenised(cell.config, tokenizer)
        )
        return made

    def held_out(self, cell: Cell, tokenizer: Any) -> data.TokenisedTask | None:
        """The rows that the cell's task keeps out of training, if it does."""
        made: data.TokenisedTask | None = self._tokens(
            cell, "held out", lambda: data.held_out(cell.config, tokenizer)
        )
        return made

    def _tokens(self, cell: Cell, which: Any, made: Callable[[], Any]) -> Any:
        task, model = cell.config["task"], cell.config["model"]
        key = json.dumps([task, model["path"], model["revision"], model["chat"], which])
        if key not in self._tokenised:
            self._tokenised[key] = made()
        return self._tokenised[key]


def _circumstances(cell: Cell) -> dict[str, Any]:
    return provenance.provenance(device_of(cell.config), processes(cell.config))


def _recorded(
    cell: Cell,
    circumstances: dict[str, Any],
    training: dict[str, Any] | None,
    *,
    parameters: dict[str, int],
    scores: dict[str, Score],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """A cell's record, written."""
    made = {
        **_origin(cell, circumstances),
        "parameters": parameters,
        "training": training,
        "scores": {name: asdict(score) for name, score in scores.items()},
        "not_run": not_run(cell.config["eval"], scores),
        "measured": _measured(seconds, cell),
    }
    record.write(made, cell.ledger)
    evaluate.forget(cell.paths.evaluation)
    return made


def _started(cell: Cell, base: Base) -> Any:
    """The model with a fresh adapter, as the cell's seed starts it."""
    transformers.set_seed(cell.config["seed"])
    return adapters.with_fresh_adapter(base.model, cell)


def _parameters(cell: Cell, trainable: int) -> dict[str, int]:
    size = sum(p.stat().st_size for p in cell.paths.adapter.glob("*.safetensors"))
    return {"trainable": trainable, "adapter_bytes": size}


def _to_evaluate(cell: Cell) -> dict[str, Any]:
    """The configuration of the model to load once the training is over, if it is not here."""
    model = cell.config["model"]
    if not (processes(cell.config) > 1 and cell.config["method"]["full"]):
        return cell.config
    return {**cell.config, "model": {**model, "path": str(cell.paths.adapter), "revision": None}}


def _as_trained(cell: Cell, base: Base, done: reuse.Trained, circumstances: dict[str, Any]) -> Any:
    """The model that other processes have trained and written down."""
    if cell.config["method"]["full"]:
        return base.model
    model = with_saved_adapter(base, cell.paths.adapter, cell.config)
    reuse.keep(cell, model, done, circumstances)
    return model


def _origin(cell: Cell, circumstances: dict[str, Any]) -> dict[str, Any]:
    """What a record says of where it comes from."""
    return {
        "run_id": cell.run_id,
        "config": _portable(cell.config),
        "provenance": {
            **circumstances,
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
    return record.portable(node) if isinstance(node, str) else node


def _tracked(made: dict[str, Any]) -> dict[str, Any]:
    """What a tracker shows of a finished cell."""
    scores = {f"accuracy/{name}": score["accuracy"] for name, score in made["scores"].items()}
    seconds = {f"seconds/{name}": value for name, value in made["measured"]["seconds"].items()}
    peak = made["measured"]["peak_memory_mb"]
    return {**scores, **seconds, **made["parameters"], "peak_memory_mb": peak}


def _measured(seconds: dict[str, float], cell: Cell) -> dict[str, Any]:
    """Costs of this run: seconds by stage since its last start, how many starts it took, peak
    memory so far of the process or of the largest that it started, when it ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "starts": claim.note(cell.paths.folder).get("starts", 1),
        "peak_memory_mb": max(resource.getrusage(one).ru_maxrss for one in who) >> 10,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
