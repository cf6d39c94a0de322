"""A cell: its configuration, its identity, its places, its state."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from osora_bench.common import claim, files, paths
from osora_bench.common.errors import UserError
from osora_bench.planning.config import Config
from osora_bench.planning.identity import run_id
from osora_bench.records import record

WAITING = "waiting"
"""State of a cell whose learning rate is not chosen yet; it has no run id as long."""
STATES = ("done", "running", "queued", "missing", "failed", "damaged", WAITING)


@dataclass(frozen=True)
class Cell:
    """One cell of a plan: its identity, its resolved configuration, and how to compose it."""

    run_id: str
    config: Config
    overrides: tuple[str, ...]

    @property
    def paths(self) -> paths.RunPaths:
        return paths.RunPaths(Path(self.config.runs), self.run_id)

    @property
    def ledger(self) -> Path:
        return Path(self.config.ledger)

    @property
    def record(self) -> Path:
        return self.ledger / f"{self.run_id}.json"

    @property
    def holder(self) -> dict[str, Any] | None:
        """Where it runs now and since when, or None."""
        return claim.holder(self.paths.folder)

    @property
    def error(self) -> str:
        """The first line of what made it fail."""
        return self._failure()["error"].partition("\n")[0]

    @property
    def failed(self) -> str:
        """When it failed (UTC, ISO 8601)."""
        return self._failure()["time"]

    def _failure(self) -> dict[str, str]:
        try:
            told: dict[str, str] = json.loads(self.paths.failure.read_text(encoding="utf-8"))
        except FileNotFoundError:  # it was started again just now
            return {"error": "why it failed is not known", "time": ""}
        except ValueError as error:
            return {"error": f"{self.paths.failure} cannot be read ({error})", "time": ""}
        if not isinstance(told, dict) or not {"error", "time"} <= told.keys():
            return {"error": f"{self.paths.failure} does not say why it failed", "time": ""}
        return told

    def fail(self, error: str, trace: str | None = None) -> None:
        """Write a failure beside the run."""
        when = datetime.now(UTC).isoformat(timespec="microseconds")
        told = json.dumps({"error": error, "time": when, "traceback": trace}, indent=1)
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        files.write(self.paths.failure, told)

    @property
    def label(self) -> str:
        """`toy lora r=8 seed=0`, for progress lines and messages."""
        rank = self.config.method.rank
        parts = [self.config.model.name, self.config.method.name]
        parts += [] if rank is None else [f"r={rank}"]
        parts += [f"seed={self.config.seed}"] if self.config.trains else []
        if self.tries_rate:  # one of several
            parts.append(f"rate={self.config.trainer.learning_rate}")
        return " ".join(parts)

    @property
    def tries_rate(self) -> bool:
        """Whether all that is wanted of it is the loss on the held-out rows."""
        return not self.config.eval.datasets

    @property
    def state(self) -> str:
        """`done`, `damaged` (a record that cannot be read), `running`, `failed` or `missing`."""
        if self.record.exists():
            return "done" if record.is_whole(self.record) else "damaged"
        if self.holder is not None:
            return "running"
        return "failed" if self.paths.failure.exists() else "missing"


def cell_of(
    cfg: Config, overrides: Sequence[str] = (), content: dict[str, str] | None = None
) -> Cell:
    """The cell of one resolved configuration."""
    return Cell(run_id(cfg, content), cfg, tuple(overrides))


def check_content(cell: Cell) -> None:
    """Raise UserError if the files that a cell reads are not those that it was planned with."""
    now = cell_of(cell.config, cell.overrides)
    if now.run_id != cell.run_id:
        raise UserError(
            f"{cell.label}: the model or data files on disk have changed since the sweep was "
            "started; start it anew"
        )
