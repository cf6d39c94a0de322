"""The benchmark sets of conf/data: where they come from, and what of them is in the data folder."""

import csv
import json
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.common.fingerprint import fingerprint


@dataclass
class Origin:
    """One place that gives a file.

    `md5` and `sha256` are of what `url` gives: the file itself; or an archive in which it is
    `member`, `password` being the environment variable with the archive's password; or a file of
    the hub whose `columns` (ours: theirs) are written in OpenCompass's form. `blob` is git's name
    (a sha1) for the content of a file in a repository of which no other checksum is known.
    """

    url: str = MISSING
    md5: str | None = None
    sha256: str | None = None
    blob: str | None = None
    member: str | None = None
    password: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass
class File:
    """One file of a set, by its place in OpenCompass's layout.

    `sha256` is null where it is not known. `also` maps checksums of other copies with the same
    rows to how they differ. `origins` are tried in their order.
    """

    path: str = MISSING
    sha256: str | None = MISSING
    bytes: int | None = None
    rows: int | None = MISSING
    also: dict[str, str] = field(default_factory=dict)
    origins: list[Origin] = MISSING


@dataclass
class DataSet:
    """One conf/data/<name>.yaml. `questions` is how many OpenCompass scores (null: none are);
    `gated` says what its authors ask of those who fetch it."""

    label: str = MISSING
    licence: str = MISSING
    source: str = MISSING
    questions: int | None = MISSING
    files: list[File] = MISSING
    gated: str | None = None


class FileState(Enum):
    """What lies at a file's place."""

    RIGHT = "right"
    MISSING = "missing"
    WRONG = "another checksum"
    UNKNOWN = "checksum not known"


@cache
def registry() -> dict[str, DataSet]:
    """Every set by its name.

    Raises:
        UserError: a key or value that the schema does not know.
    """
    return {name: _read(place) for name, place in paths.conf_files("data").items()}


def _read(place: Path) -> DataSet:
    try:
        config = OmegaConf.merge(OmegaConf.structured(DataSet), OmegaConf.load(place))
        data_set = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"conf/data/{place.name}: {error}") from error
    assert isinstance(data_set, DataSet)
    return data_set


def named_sets(names: Sequence[str]) -> dict[str, DataSet]:
    """The named sets; without a name every one.

    Raises:
        UserError: a name that no set has.
    """
    sets = registry()
    for name in names:
        if name not in sets:
            raise UserError(unknown("data set", name, sets))
    return {name: sets[name] for name in names or sets}


def state_of_file(file: File) -> FileState:
    """Hold what lies in the data folder against the checksum; remembered by size and time."""
    place = paths.data_file(file.path)
    if not place.is_file():
        return FileState.MISSING
    digest = _sha256(place)
    if digest == file.sha256 or digest in file.also:
        return FileState.RIGHT
    return FileState.UNKNOWN if file.sha256 is None else FileState.WRONG


def _sha256(place: Path) -> str:
    return fingerprint(place).removeprefix("sha256:")


def count_rows(place: Path) -> int:
    """Rows of a .jsonl or .lst file (lines), a .json (entries) or a .csv (records).

    Raises:
        ValueError: bytes that are no text, or no JSON list or object.
    """
    with place.open(encoding="utf-8", newline="") as stream:
        if place.suffix == ".json":
            entries = json.load(stream)
            if not isinstance(entries, (list, dict)):
                raise ValueError("neither a list nor an object")
            return len(entries)
        if place.suffix == ".csv":
            return sum(1 for _ in csv.DictReader(stream))
        return sum(1 for line in stream if line.strip())


@dataclass(frozen=True)
class Finding:
    """What was found at a file's place: `right`, `missing` or `wrong`, and more in words."""

    kind: str
    told: str


def examine(file: File) -> Finding:
    """Hold a file's checksum and number of rows against what conf/data says."""
    place, state = paths.data_file(file.path), state_of_file(file)
    if state is FileState.MISSING:
        return Finding("missing", "missing")
    if state is FileState.WRONG:
        size = place.stat().st_size
        sizes = "" if file.bytes in (None, size) else f", {size:,} bytes instead of {file.bytes:,}"
        return Finding("wrong", f"sha256 {_sha256(place)} instead of {file.sha256}{sizes}")
    try:
        rows = count_rows(place)
    except (ValueError, csv.Error) as error:
        return Finding("wrong", f"cannot be read ({error})")
    if file.rows not in (None, rows):
        return Finding("wrong", f"{rows:,} rows instead of {file.rows:,}")
    notes = [f"right, {rows:,} rows"]
    if state is FileState.UNKNOWN:
        notes.append("its checksum is not known, so only the rows were counted")
    notes += [note for digest, note in file.also.items() if digest == _sha256(place)]
    return Finding("right", "; ".join(notes))


def gated(path: str) -> bool:
    """Whether a file is of a set whose authors ask that it be kept from the public."""
    return any(
        data_set.gated and path in {f.path for f in data_set.files}
        for data_set in registry().values()
    )


def advice(path: str) -> str:
    """The command that gets a file, after a semicolon; empty where no set has it."""
    names = [
        name for name, data_set in registry().items() if path in {f.path for f in data_set.files}
    ]
    return f"; `osora-bench data fetch {names[0]}` gets it" if names else ""


def checking(files: Iterable[str]) -> str:
    """The command that says what is wrong with files, after a semicolon; empty where it would say
    nothing: of files of no set that conf/data lists, and of those that are as they should be."""
    wrong = [f for f in files if _found_wrong(f)]
    names = [n for n, each in registry().items() if {f.path for f in each.files} & {*wrong}]
    return f"; `osora-bench data verify {' '.join(names)}` says what is wrong" if names else ""


def _found_wrong(path: str) -> bool:
    """Whether `data verify` finds fault with a file."""
    listed = [f for each in registry().values() for f in each.files if f.path == path]
    return any(examine(file).kind != "right" for file in listed)


def refuse_committable(place: Path, how: str) -> None:
    """Keep questions that must not be published out of what git would commit.

    Raises:
        UserError: git would; `how` says by what another folder is named.
    """
    folder = next(p for p in place.parents if p.is_dir())
    if shutil.which("git") is None:
        return
    command = ["git", "-C", str(folder), "check-ignore", "--quiet", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode == 1:
        raise UserError(
            f"{place}: would hold questions that must not be published, and is inside a git "
            f"repository that does not ignore it: name another folder {how}"
        )


def absent(file: str) -> str | None:
    """What to say of a data file that is not there; None if it is."""
    place = paths.data_file(file)
    return None if place.is_file() else f"{place}: no such file{advice(file)}"


def data_folder() -> str:
    return f"OSORA_DATA names the data folder (now {paths.data_root()})"
