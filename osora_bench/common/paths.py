"""Every place and file name, once."""

import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from osora_bench.common.errors import UserError, unknown

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
EXPERIMENTS = ROOT / "experiments"
RESULTS = ROOT / "results"
DATA = "OSORA_DATA"
"""Environment variable of the data folder. It is the user's; cli/smoke.py alone sets it."""


def data_root() -> Path:
    """The folder of the benchmark data, in OpenCompass's layout: OSORA_DATA, or ./data."""
    return Path(os.environ.get(DATA, "data")).absolute()


def resolve(path: str) -> Path | None:
    """The folder or file that a configured path names, or None for the id of a hub repository.

    `pkg://package/inner/path` lies inside an installed package; anything else is a place on disk
    if it is there, or if it is written as one (`/...`, `./...`, `~...`).
    """
    if path.startswith("pkg://"):
        package, _, inner = path.removeprefix("pkg://").partition("/")
        return Path(str(files(package))) / inner
    place = _expanded(path)
    if place.exists() or path.startswith(("/", ".", "~")):
        return place.absolute()
    return None


def _expanded(path: str) -> Path:
    """A path whose `~` is a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such home on this machine") from error


def data_file(path: str) -> Path:
    """Where a data file lies: `pkg://...` in a package, an absolute path, else below the data
    folder."""
    if path.startswith("pkg://"):
        place = resolve(path)
        assert place is not None
        return place
    return data_root() / _expanded(path)


def experiment_file(name: str) -> Path:
    """The YAML of an experiment, or UserError that names the experiments that are there."""
    place = EXPERIMENTS / f"{name}.yaml"
    if not place.is_file():
        raise UserError(unknown("experiment", name, (p.stem for p in EXPERIMENTS.glob("*.yaml"))))
    return place


@dataclass(frozen=True)
class RunPaths:
    """What one cell leaves below the runs folder; all of it can be deleted but the ledger."""

    runs: Path
    run_id: str

    @property
    def folder(self) -> Path:
        return self.runs / "cells" / self.run_id

    @property
    def decompositions(self) -> Path:
        """Shared by all cells: singular value decompositions of base weights."""
        return self.runs / "svd"

    def trained(self, training_id: str) -> Path:
        """Shared by cells that differ in their suite only: where a finished training is noted."""
        return self.runs / "trained" / training_id

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def trainer(self) -> Path:
        return self.folder / "trainer"

    def shards(self, processes: int) -> Path:
        """Checkpoints of a training that so many processes share: no other number goes on from
        them, so that what is resumed is bitwise what it would have been."""
        return self.trainer / f"shards-{processes}"

    @property
    def evaluation(self) -> Path:
        """Answers (compressed, one file a set), and OpenCompass's log."""
        return self.folder / "evaluation"

    @property
    def failure(self) -> Path:
        return self.folder / "failure.json"
