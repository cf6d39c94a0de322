"""One process's shared work, and one cell through it: train, evaluate, record."""

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import torch
import transformers

from osora_bench.common import interruption, paths, progress
from osora_bench.common.errors import UserError
from osora_bench.evaluation import evaluate, suites
from osora_bench.evaluation.scores import Score
from osora_bench.models import adapters, merge_trial, trial
from osora_bench.models.adapter_config import start_on_rows
from osora_bench.models.adapters import with_saved_adapter
from osora_bench.models.base import Base, Workspace, device_of, quiet_libraries
from osora_bench.models.memory import Peak, bound_threads
from osora_bench.pipeline import leakage
from osora_bench.pipeline.recording import (
    circumstances_of,
    parameters_of,
    portable_config,
    tracked,
    write_cell_record,
)
from osora_bench.pipeline.tracker import Tracker, tracking
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import Config, plain
from osora_bench.records.schema import (
    Circumstances,
    ForgettingRecord,
    LeakageRecord,
    Record,
    TrainingRecord,
)
from osora_bench.training import callbacks, data, retention, reuse, train
from osora_bench.training.checks import check_precision
from osora_bench.training.collator import Collator
from osora_bench.training.costs import CostMeter, Meter
from osora_bench.training.fsdp import launch

START_ROWS = 256
"""Training rows that a method may start from."""
UNTRAINED = reuse.Trained(None, {"trainable": 0, "adapter_bytes": 0}, 0.0)
"""Of a cell that evaluates the base model as it is."""


class Session:
    """One process's shared work: libraries, base model, tokenised rows, OpenCompass datasets."""

    def __init__(self) -> None:
        quiet_libraries()
        bound_threads()
        self.workspace = Workspace()
        self._tokenised: dict[str, data.TokenisedTask] = {}
        self._sets: dict[str, suites.PreparedSets] = {}
        self._merges: set[str] = set()
        self._leakage: dict[str, dict[str, LeakageRecord]] = {}
        self._knew: dict[str, float] = {}
        self._retained: dict[str, list[list[int]]] = {}

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Load the questions of every suite once; a set of the wrong size stops all now."""
        for cell in cells:
            self.sets(cell)

    def sets(self, cell: Cell) -> suites.PreparedSets:
        """The sets of a cell's suite; they are read once, though many cells are asked the same."""
        parts = [plain(cell.config.eval), str(paths.data_root()), cell.fingerprints]
        key = json.dumps(parts, sort_keys=True)
        if key not in self._sets:
            self._sets[key] = suites.prepare(cell.config.eval, cell.paths.runs)
        return self._sets[key]

    def run(self, cell: Cell) -> Record:
        """Train, evaluate and record one cell; return its record."""
        cell.paths.folder.mkdir(parents=True, exist_ok=True)
        self._peak = Peak(torch.device("cpu"))
        with tracking(cell, portable_config(cell.config)) as tracker:
            try:
                record = self._run(cell, tracker)
            except callbacks.Diverged as error:
                if not cell.is_trial:
                    raise
                training = TrainingRecord(diverged=str(error))
                record = write_cell_record(
                    cell, circumstances_of(cell), training, parameters={}, scores={}, seconds={},
                    resident=self._peak.most(),
                )  # fmt: skip
            finally:
                self._peak.end()
            tracker.end(tracked(record), failed=False)
        return record

    def _run(self, cell: Cell, tracker: Tracker) -> Record:
        cell.paths.failure.unlink(missing_ok=True)
        check_precision(cell)  # of a cell that was planned on another machine
        self._check_merge(cell)
        shared = self.leakage(cell) if cell.config.trains else None
        circumstances, outcome = circumstances_of(cell), UNTRAINED
        if cell.config.processes > 1:
            outcome = self._train_shared(cell, circumstances, tracker)
        loading_start = time.time()
        base = self.workspace.base(_to_evaluate(cell))
        model, seconds = base.model, {"load": time.time() - loading_start}
        knew = self._known(cell, base, model)
        trained: torch.Tensor | None = None
        try:
            if cell.config.processes > 1:
                model = _as_trained(cell, base, outcome, circumstances)
            elif cell.config.trains:
                model, outcome = self._trained(cell, base, circumstances, tracker)
                trained = None if cell.config.method.full else _losses(model)
            forgotten = self._forgotten(cell, model, knew)
            evaluation_start = time.time()
            scores = self._scores(cell, base, model)
        finally:
            self.workspace.release(model)
            gc.collect()
        seconds |= {"train": outcome.seconds, "evaluate": time.time() - evaluation_start}
        seconds["total"] = sum(seconds.values())
        del model, base  # what release could not give back is loaded anew
        if trained is not None:
            self._check_saved(cell, trained)
        return write_cell_record(
            cell,
            circumstances,
            _recorded(outcome.training),
            parameters=outcome.parameters,
            scores=scores,
            seconds=seconds,
            costs=outcome.costs,
            leakage=shared,
            forgetting=forgotten,
            resident=self._peak.most(),
        )

    def _scores(self, cell: Cell, base: Base, model: Any) -> dict[str, Score]:
        folder = cell.paths.evaluation
        return evaluate.evaluate(
            model, base.tokenizer, cell.config, self.sets(cell), folder, label=cell.label
        )

    def _known(self, cell: Cell, base: Base, model: Any) -> float | None:
        """The loss on the task's plain text of the model that is not trained yet; none where the
        task names no text, or processes of their own have trained the whole model already."""
        cfg = cell.config
        if cfg.task.retained is None or not cfg.trains or (cfg.processes > 1 and cfg.method.full):
            return None
        key = _key_of_retained(cell)
        if key not in self._retained:
            self._retained[key] = retention.pieces(cfg.task, base.tokenizer)
        if key not in self._knew:
            self._knew[key] = retention.loss(model, self._retained[key])
        return self._knew[key]

    def _forgotten(self, cell: Cell, model: Any, before: float | None) -> ForgettingRecord | None:
        """The same of the trained model beside it."""
        if before is None:
            return None
        texts = self._retained[_key_of_retained(cell)]
        tokens = sum(len(text) - 1 for text in texts)
        return {"tokens": tokens, "before": before, "after": retention.loss(model, texts)}

    def leakage(self, cell: Cell) -> dict[str, LeakageRecord]:
        """What the cell's training rows hold of its questions; cells with the same share it."""
        task, sets = cell.config.task, self.sets(cell)
        seed = cell.config.seed if data.by_seed(task) else 0
        key = json.dumps([plain(task), plain(cell.config.eval), cell.fingerprints, seed])
        if key not in self._leakage:
            found = leakage.as_recorded(leakage.overlaps(cell, sets))
            self._leakage[key] = found
            for line in leakage.warnings(found):
                progress.say(f"WARNING: {line}")
        return self._leakage[key]

    def _check_merge(self, cell: Cell) -> None:
        """Where `eval.merge` asks for it, try it on a fresh adapter, once a model and method.

        Raises:
            UserError: it cannot be merged, or merged it is another model.
        """
        cfg = cell.config
        key = json.dumps([plain(cfg.model), plain(cfg.method)])
        if not (cfg.eval.merge and cfg.trains) or cfg.method.full or key in self._merges:
            return
        model = self._started(cell, self.workspace.base(cfg))
        try:
            merge_trial.check_equal(model, cfg.method.name)
        finally:
            self.workspace.clear()  # what is merged and taken out again is off by round-off
        self._merges.add(key)

    def _trained(
        self, cell: Cell, base: Base, circumstances: Circumstances, tracker: Tracker
    ) -> tuple[Any, reuse.Trained]:
        """The trained model: an earlier cell's where that trained the same, else this one's."""
        start = time.time()
        earlier = reuse.find_training(cell, circumstances) if not cell.config.method.full else None
        if earlier is not None:
            model = self._started(cell, base)
            if earlier.load(cell, model):
                earlier.tell(tracker.log)
                return model, earlier.done
            self.workspace.release(model)
            base = self.workspace.base(cell.config)
        # cells share the rows' tokens: they are no cost of the first of them
        self.tokenised(cell, base.tokenizer)
        self.held_out(cell, base.tokenizer)
        meter = CostMeter(base.model, device_of(cell.config))
        model = meter.started(lambda: self._started(cell, base))
        trainable = adapters.trainable(model)
        with meter.training():
            training = self._train(cell, base, model, tracker, meter.loop)
        outcome = reuse.Trained(
            training, parameters_of(cell, trainable), time.time() - start, meter.costs()
        )
        if not cell.config.method.full:
            reuse.note_training(cell, model, outcome, circumstances)
        return model, outcome

    def _started(self, cell: Cell, base: Base) -> Any:
        """The model with a fresh adapter, as the cell's seed starts it."""
        transformers.set_seed(cell.config.seed)
        model = adapters.with_fresh_adapter(base.model, cell)
        if (start := start_on_rows(cell.config.method)) is not None:
            start(model, self._batches(cell, base))
        return model

    def _batches(self, cell: Cell, base: Base) -> list[dict[str, torch.Tensor]]:
        """The cell's first training rows, as many as START_ROWS."""
        rows = self.tokenised(cell, base.tokenizer).rows[:START_ROWS]
        size, device = cell.config.trainer.micro_batch_size, device_of(cell.config)
        collate = Collator(base.tokenizer.pad_token_id)
        parts = (rows[i : i + size] for i in range(0, len(rows), size))
        return [{k: v.to(device) for k, v in collate(part).items()} for part in parts]

    def _train(
        self, cell: Cell, base: Base, model: Any, tracker: Tracker, meter: Meter
    ) -> train.Training:
        setup = train.TrainingSetup(
            cell.config,
            rows=self.tokenised(cell, base.tokenizer),
            held_out=self.held_out(cell, base.tokenizer),
            pad_token_id=base.tokenizer.pad_token_id,
            checkpoints=cell.paths.trainer,
            device=device_of(cell.config),
            label=cell.label,
            log=tracker.log,
            meter=meter,
        )
        training = train.train(model, setup)
        adapters.save(model, base, cell)
        return training

    def _check_saved(self, cell: Cell, trained: torch.Tensor) -> None:
        """Load the saved adapter: what a start wrote into the base weights or drew at random, and
        PEFT did not save, is missing from it. The next cell needs the base model again anyway.

        Raises:
            UserError: it is not the model that was trained.
        """
        saved = adapters.saved_again(self.workspace.base(cell.config), cell)
        try:
            same = trial.alike(_losses(saved), trained, saved)
        finally:
            self.workspace.release(saved)
        if not same:
            raise UserError(
                f"method {cell.config.method.name}: the adapter in {cell.paths.adapter}, loaded "
                "again, is not the model that was trained: PEFT saves less than its start made up"
            )

    def _train_shared(
        self, cell: Cell, circumstances: Circumstances, tracker: Tracker
    ) -> reuse.Trained:
        """Train in processes of their own, which need the memory that is used here; unless an
        earlier cell trained the same."""
        start = time.time()
        if not cell.config.method.full:
            earlier = reuse.find_training(cell, circumstances)
            if earlier is not None:
                earlier.take(cell)
                return earlier.done
        self.workspace.clear()
        training, trainable, costs = launch.train_in_parts(
            cell, interruption.current(), tracker.log
        )
        return reuse.Trained(training, parameters_of(cell, trainable), time.time() - start, costs)

    def tokenised(self, cell: Cell, tokenizer: Any) -> data.TokenisedTask:
        """The cell's training rows as tokens; cells with the same rows share them."""
        seed = cell.config.seed if data.by_seed(cell.config.task) else 0
        tokens: data.TokenisedTask = self._tokens(
            cell, seed, lambda: data.tokenised(cell.config, tokenizer)
        )
        return tokens

    def held_out(self, cell: Cell, tokenizer: Any) -> data.TokenisedTask | None:
        """The rows that the cell's task keeps out of training, if it does."""
        tokens: data.TokenisedTask | None = self._tokens(
            cell, "held out", lambda: data.held_out(cell.config, tokenizer)
        )
        return tokens

    def _tokens(self, cell: Cell, part: Any, tokenise: Callable[[], Any]) -> Any:
        task, model = cell.config.task, cell.config.model
        key = json.dumps([plain(task), model.path, model.revision, model.chat, part])
        if key not in self._tokenised:
            self._tokenised[key] = tokenise()
        return self._tokenised[key]


def _key_of_retained(cell: Cell) -> str:
    """What the tokens of a task's plain text, and the untrained model's loss on it, depend on."""
    return json.dumps([plain(cell.config.model), cell.fingerprints, cell.config.task.retained])


def _recorded(training: train.Training | None) -> TrainingRecord | None:
    return None if training is None else cast(TrainingRecord, asdict(training))


def _losses(model: Any) -> torch.Tensor:
    """Of made-up texts, to tell a model from another."""
    model.eval()
    return trial.trial_losses(model)


def _to_evaluate(cell: Cell) -> Config:
    """The configuration of the model to load once the training is over, if it is not here."""
    model = cell.config.model
    if not (cell.config.processes > 1 and cell.config.method.full):
        return cell.config
    return replace(cell.config, model=replace(model, path=str(cell.paths.adapter), revision=None))


def _as_trained(
    cell: Cell, base: Base, outcome: reuse.Trained, circumstances: Circumstances
) -> Any:
    """The model that other processes have trained and written down."""
    if cell.config.method.full:
        return base.model
    model = with_saved_adapter(base, cell.paths.adapter, cell.config)
    reuse.note_training(cell, model, outcome, circumstances)
    return model
