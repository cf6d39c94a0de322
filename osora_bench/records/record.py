"""One immutable JSON file a run: the only thing that tables and figures are made from."""

import base64
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from osora_bench.common.files import write_whole
from osora_bench.records.schema import Record, ValidationRecord

SCHEMA = 1
REQUIRED = (
    "schema",
    "run_id",
    "config",
    "provenance",
    "parameters",
    "training",
    "scores",
    "measured",
    "sha256",
)


class DamagedRecord(Exception):
    """A file in the ledger that is not a whole record."""


def pack(verdicts: Sequence[bool]) -> str:
    """Verdicts as a bit string, the first question in the highest bit, in base64."""
    bits = "".join("1" if v else "0" for v in verdicts)
    padded = bits + "0" * (-len(bits) % 8)
    return base64.b64encode(int(padded or "0", 2).to_bytes(len(padded) // 8, "big")).decode()


def unpack(packed: str, n: int) -> list[bool]:
    """The `n` verdicts of `pack`."""
    data = base64.b64decode(packed)
    bits = "".join(f"{byte:08b}" for byte in data)
    return [bit == "1" for bit in bits[:n]]


def _digest(record: Mapping[str, Any]) -> str:
    body = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_record(record: Record, ledger: Path) -> Path:
    """Write a record under its run id, whole or not at all, with its checksum.

    Raises:
        FileExistsError: this run has its record already; records are written once.
    """
    target = ledger / f"{record['run_id']}.json"
    ledger.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise FileExistsError(f"{target}: a record is written once")
    content = {**record, "schema": SCHEMA}
    content["sha256"] = _digest(content)
    write_whole(target, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return target


def read_record(path: Path) -> Record:
    """One record, checked.

    Raises:
        DamagedRecord: not JSON, a missing part, another run's name, or a checksum that differs.
    """
    try:
        mark = _mark(path)
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedRecord(f"{path}: cannot be read ({error})") from error
    if not isinstance(record, dict):
        raise DamagedRecord(f"{path}: not a JSON object")
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise DamagedRecord(f"{path}: lacks {', '.join(missing)}")
    if record["schema"] != SCHEMA:
        raise DamagedRecord(f"{path}: schema {record['schema']}, this program reads {SCHEMA}")
    if record["run_id"] != path.stem:
        raise DamagedRecord(f"{path}: holds run {record['run_id']}")
    if record["sha256"] != _digest(record):
        raise DamagedRecord(f"{path}: its checksum does not match its content")
    _valid_marks[path] = mark
    return cast(Record, record)


_valid_marks: dict[Path, tuple[int, ...]] = {}


def _mark(path: Path) -> tuple[int, ...]:
    """What changes with a file's content."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_whole(path: Path) -> bool:
    """Whether a file is a whole record. One that this process has read is read again only when it
    has changed: whoever watches a sweep asks often."""
    try:
        if _valid_marks.get(path) != _mark(path):
            read_record(path)
    except (OSError, DamagedRecord):
        return False
    return True


def held_out_loss(record: Record) -> ValidationRecord | None:
    """The loss on the rows that were kept out of a training; None where it diverged."""
    training = record["training"]
    return None if training is None or "diverged" in training else training["validation"]


def portable(path: str) -> str:
    """A path as records name it: an absolute one, which is of one machine, by its last part."""
    return Path(path).name if Path(path).is_absolute() else path


def contents(ledger: Path) -> dict[str, str]:
    """The content of the files and folders that a ledger's records were made with, by their
    `portable` path; where they differ, that of most records."""
    return _contents(ledger, ledger.stat().st_mtime_ns) if ledger.is_dir() else {}


@functools.cache
def _contents(ledger: Path, _: int) -> dict[str, str]:
    counts_by_path: dict[str, Counter[str]] = {}
    for record in read_each(ledger, []):
        for path, content in record["provenance"].get("fingerprints", {}).items():
            counts_by_path.setdefault(path, Counter())[content] += 1
    return {path: counts.most_common(1)[0][0] for path, counts in counts_by_path.items()}


@dataclass(frozen=True)
class Ledger:
    """The readable records of a folder by run id, and a line for each that is damaged."""

    records: dict[str, Record]
    damaged: list[str]


def read_each(folder: Path, damaged: list[str]) -> Iterator[Record]:
    """Every record of a ledger, one after another; a line for each that is damaged is added to
    `damaged`, and it is left as it is."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield read_record(path)
        except DamagedRecord as error:
            damaged.append(str(error))


def read_ledger(folder: Path) -> Ledger:
    """Every record of a ledger at once."""
    damaged: list[str] = []
    records = {record["run_id"]: record for record in read_each(folder, damaged)}
    return Ledger(records, damaged)
