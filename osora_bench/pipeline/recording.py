"""What a cell's record holds, and writing it."""

import resource
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, cast

from osora_bench.common import claim
from osora_bench.evaluation import evaluate
from osora_bench.evaluation.scores import Score, not_run
from osora_bench.models.base import device_of
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import Config, plain
from osora_bench.planning.identity import revision
from osora_bench.records import provenance, record
from osora_bench.records.schema import (
    Circumstances,
    ForgettingRecord,
    LeakageRecord,
    Measured,
    Parameters,
    Record,
    ScoreRecord,
    TrainingCosts,
    TrainingRecord,
)


def circumstances_of(cell: Cell) -> Circumstances:
    return provenance.circumstances(device_of(cell.config), cell.config.processes)


def write_cell_record(
    cell: Cell,
    circumstances: Circumstances,
    training: TrainingRecord | None,
    *,
    parameters: Parameters,
    scores: dict[str, Score],
    seconds: dict[str, float],
    resident: int,
    costs: TrainingCosts | None = None,
    leakage: dict[str, LeakageRecord] | None = None,
    forgetting: ForgettingRecord | None = None,
) -> Record:
    """A cell's record, written; `resident` are the most bytes of memory that it had."""
    cell_record: Record = {
        "run_id": cell.run_id,
        "config": portable_config(cell.config),
        "provenance": {
            **circumstances,
            "revision": revision(cell.config),
            "fingerprints": _without_folders(cell.fingerprints),
        },
        "parameters": parameters,
        "training": training,
        "scores": {name: cast(ScoreRecord, asdict(score)) for name, score in scores.items()},
        "not_run": not_run(cell.config.eval, scores),
        "measured": _measured(seconds, cell, resident, costs),
    }
    if forgetting is not None:
        cell_record["forgetting"] = forgetting
    if leakage is not None:
        cell_record["leakage"] = leakage
    record.write_record(cell_record, cell.ledger)
    evaluate.forget(cell.paths.evaluation)
    return cell_record


def parameters_of(cell: Cell, trainable: int) -> Parameters:
    size = sum(p.stat().st_size for p in cell.paths.adapter.glob("*.safetensors"))
    return {"trainable": trainable, "adapter_bytes": size}


def portable_config(cfg: Config) -> dict[str, Any]:
    """The configuration without what only places the run on this machine."""
    places = ("ledger", "runs", "device", "tracker")
    settings = plain(cfg)
    return {key: _without_folders(value) for key, value in settings.items() if key not in places}


def _without_folders(node: Any) -> Any:
    """Absolute paths as bare names: what lies there is in the run id by its bytes."""
    if isinstance(node, dict):
        return {_without_folders(key): _without_folders(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_folders(value) for value in node]
    return record.portable(node) if isinstance(node, str) else node


def tracked(result: Record) -> dict[str, Any]:
    """What a tracker shows of a finished cell."""
    scores = {f"accuracy/{name}": score["accuracy"] for name, score in result["scores"].items()}
    seconds = {f"seconds/{name}": value for name, value in result["measured"]["seconds"].items()}
    peak = result["measured"]["peak_memory_mb"]
    return {**scores, **seconds, **result["parameters"], "peak_memory_mb": peak}


def _measured(
    seconds: dict[str, float], cell: Cell, resident: int, costs: TrainingCosts | None
) -> Measured:
    """Costs of this run: seconds by stage since its last start, how many starts it took, peak
    memory of the cell or, if larger, of a process that it started, when it ended."""
    if cell.config.processes > 1:
        resident = max(resident, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
    measured: Measured = {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "starts": claim.note(cell.paths.folder).get("starts", 1),
        "peak_memory_mb": resident >> 20,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return measured if costs is None else {**measured, "training": costs}
