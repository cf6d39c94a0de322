"""Every place and file name, once."""

import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from osora_bench.common.errors import UserError, unknown

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
"""The checkout; where the package is installed from a wheel, the folder that it lies in."""


def _shipped(name: str) -> Path:
    """A folder of the checkout, which a wheel has inside the package (pyproject.toml)."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else ROOT / name


CONF = _shipped("conf")
EXPERIMENTS = _shipped("experiments")
REFERENCE = _shipped("results/reference")
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


def own_conf() -> Path | None:
    """The user's own ./conf, whose files are found before those of CONF.

    Raises:
        UserError: it holds a primary configuration, which is not the user's to replace.
    """
    own = _own("conf")
    for name in PRIMARY:
        if own is not None and (own / name).exists():
            raise UserError(
                f"{own / name}: {name} is the harness's own; files of a user's conf/ belong in its "
                "groups (conf/method/mine.yaml), and values in an experiment or on the command line"
            )
    return own


PRIMARY = ("config.yaml", "job.yaml")


def _own(name: str) -> Path | None:
    """A folder beside which the user works, if it is not that of this checkout."""
    place = Path.cwd() / name
    return place if place.is_dir() and place.resolve() != PACKAGE.parent / name else None


def conf_files(group: str) -> dict[str, Path]:
    """The files of a group of conf/ by name, e.g. every model; the user's own come first."""
    own = own_conf()
    return _files(CONF / group, None if own is None else own / group)


def experiment_files() -> dict[str, Path]:
    """The experiments by name; the user's own come first."""
    return _files(EXPERIMENTS, _own("experiments"))


def _files(shipped: Path, own: Path | None) -> dict[str, Path]:
    folders = (shipped,) if own is None else (shipped, own)
    found = {place.stem: place for folder in folders for place in folder.glob("*.yaml")}
    return dict(sorted(found.items()))


def experiment_file(name: str) -> Path:
    """The YAML of an experiment, or UserError that names the experiments that are there."""
    places = experiment_files()
    if name not in places:
        raise UserError(unknown("experiment", name, places))
    return places[name]


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
