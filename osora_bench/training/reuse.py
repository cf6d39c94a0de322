"""A finished training serves every cell that differs in its suite only: trained once, scored often.

A cell that has trained leaves a note, `runs/trained/<training id>/<run id>.json`: the checksums of
the adapter in its folder, and what a record says of the training. A note is followed only by the
same code, versions and hardware, so that a record stays what its cell alone would have given, and
only if the adapter's tensors make the fresh model, bit for bit, the one that was trained. Where
they do not (AdaLoRA keeps more than it saves), the cell trains for itself.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft.utils import load_peft_weights, set_peft_model_state_dict

from osora_bench.common.files import write_whole
from osora_bench.common.fingerprint import file_sha256
from osora_bench.common.progress import say
from osora_bench.models import base
from osora_bench.planning.cell import Cell
from osora_bench.records.schema import Circumstances, Parameters, TrainingCosts
from osora_bench.training.train import Training


@dataclass(frozen=True)
class Trained:
    """What a record says of a training, how many seconds it took since its last start, and its
    costs; None: there was none, or it was noted before costs were."""

    training: Training | None
    parameters: Parameters
    seconds: float
    costs: TrainingCosts | None = None


def note_training(cell: Cell, model: Any, done: Trained, provenance: Circumstances) -> None:
    """Write down that the adapter in the cell's folder is that of a finished training."""
    record = {
        "files": _files(cell.paths.adapter),
        "weights": base.content(model),
        "provenance": provenance,
        "done": asdict(done),
    }
    folder = cell.paths.trained(cell.training_id)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{cell.run_id}.json", json.dumps(record, indent=1))


@dataclass(frozen=True)
class FinishedTraining:
    """A finished training that a cell can take over."""

    folder: Path
    weights: str
    done: Trained

    def load(self, cell: Cell, model: Any) -> bool:
        """Put the trained tensors into the freshly started model and copy the adapter's files;
        False if that does not give the trained model. Then the model is of no use any more."""
        try:
            set_peft_model_state_dict(model, load_peft_weights(str(self.folder)))
        except (RuntimeError, ValueError, KeyError) as error:
            reason = type(error).__name__
        else:
            reason = "other tensors" if base.content(model) != self.weights else ""
        if reason:
            say(f"{cell.label}: trained before, but not to be had from its adapter ({reason})")
            return False
        self.take(cell)
        return True

    def take(self, cell: Cell) -> None:
        """Copy the adapter's files to where the cell's own would be."""
        if self.folder != cell.paths.adapter:
            for place in (p for p in self.folder.rglob("*") if p.is_file()):
                target = cell.paths.adapter / place.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, target)  # without the mode of another user's

    def tell(self, log: Callable[[dict[str, float]], None]) -> None:
        """Give a live tracker the curve that the record has."""
        assert self.done.training is not None
        for step, loss in self.done.training.loss:
            log({"step": step, "loss": loss})


def find_training(cell: Cell, provenance: Circumstances) -> FinishedTraining | None:
    """The training of a cell, if it was done here under the same circumstances and is whole."""
    for file in sorted(cell.paths.trained(cell.training_id).glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            say(f"{file}: damaged, passed over ({error})")
            continue
        folder = replace(cell.paths, run_id=file.stem).adapter
        if record["provenance"] == provenance and _files(folder) == record["files"]:
            return FinishedTraining(folder, record["weights"], _done(record["done"]))
    return None


def _done(record: dict[str, Any]) -> Trained:
    return Trained(
        Training.of(record["training"]),
        record["parameters"],
        record["seconds"],
        record.get("costs"),
    )


def _files(folder: Path) -> dict[str, str]:
    """Checksums of a folder's files; empty where there is none."""
    return {place.name: file_sha256(place) for place in sorted(folder.glob("*")) if place.is_file()}
