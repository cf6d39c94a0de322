"""Records as the page holds them: what they share once, verdicts left out, loss curves in brief."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from osora_bench.planning.cell import Cell
from osora_bench.planning.config import Config
from osora_bench.planning.identity import numerics_version, run_id
from osora_bench.records.schema import Record

SAMPLES = 24
"""Points of a loss curve."""
DIGITS = 5
SHARED = ("model", "method", "task", "eval", "trainer", "tuning")
"""Sections of a configuration that many records have in common."""


class Pool:
    """Values by number, each once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[str, int] = {}

    def number(self, value: Any) -> int:
        """The number of a value, which is put in if it is not there."""
        key = json.dumps(value, sort_keys=True)
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]


def packed(records: Iterable[Record], cells: Mapping[str, Sequence[tuple[str, Cell]]]) -> Any:
    """The records for the page's scripts.

    Args:
        cells: by run id, the experiments that have such a cell, and it.
    """
    pool = Pool()
    entries = {
        record["run_id"]: _packed(record, pool, cells.get(record["run_id"], ()))
        for record in records
    }
    return {"pool": pool.values, "records": entries}


def _packed(record: Record, pool: Pool, cells: Sequence[tuple[str, Cell]]) -> dict[str, Any]:
    config, provenance = record["config"], record["provenance"]
    rest = {key: value for key, value in config.items() if key not in SHARED}
    optional = {
        key: record.get(key) for key in ("not_run", "forgetting", "leakage") if record.get(key)
    }
    return {
        **{key: pool.number(config.get(key)) for key in SHARED},
        **rest,
        **optional,
        "provenance": {
            key: pool.number(value) if isinstance(value, dict) else value
            for key, value in provenance.items()
        },
        "parameters": record["parameters"],
        "training": _training(record),
        "scores": {name: _score(score) for name, score in record["scores"].items()},
        "measured": record["measured"],
        # a cell that is planned now has its run id by the version of now
        "numerics": numerics_version(cells[0][1].config) if cells else version_of(record),
        "experiments": pool.number([name for name, _ in cells]),
    }


def _score(score: Any) -> dict[str, Any]:
    brief = {key: value for key, value in score.items() if key != "right" and value is not None}
    if score.get("corrected"):
        brief["corrected"] = {k: v for k, v in score["corrected"].items() if k != "right"}
    return brief


def _training(record: Record) -> dict[str, Any] | None:
    training: Any = record["training"]
    if training is None or "loss" not in training:
        return training
    curve = training["loss"]
    every = -(-len(curve) // SAMPLES) or 1
    kept = [[step, float(f"{loss:.{DIGITS}g}")] for step, loss in curve[::-1][::every][::-1]]
    return {**training, "loss": kept}


def version_of(record: Record) -> int | None:
    """The numerics version of a record; None where this program would give its configuration
    another run id: its numbers are of an earlier version, and stand in no table."""
    config = Config.of(record["config"])
    content = record["provenance"].get("fingerprints", {})
    try:
        current = run_id(config, dict(content))
    except (KeyError, OSError):
        return None
    return numerics_version(config) if current == record["run_id"] else None
