"""A cell: its configuration, its identity, its places, its state."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from osora_bench.common import claim, paths
from osora_bench.common.errors import UserError
from osora_bench.common.files import write_whole
from osora_bench.planning import identity
from osora_bench.planning.config import Config
from osora_bench.records import record


class State(StrEnum):
    """What has become of a cell, in the order in which states are told."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"  # as a SLURM job
    MISSING = "missing"
    FAILED = "failed"
    DAMAGED = "damaged"  # its record cannot be read
    WAITING = "waiting"  # for the choice of its settings; it has no run id as long


@dataclass(frozen=True)
class Cell:
    """One cell of a plan: its identity, its resolved configuration, and how to compose it."""

    run_id: str
    config: Config
    overrides: tuple[str, ...]
    content: dict[str, str] | None = field(default=None, repr=False, compare=False)
    """Of the files that the configuration names, by path, if they have been looked at."""
    tries: tuple[str, ...] = field(default=(), compare=False)
    """The settings that it tries for a choice, as they are told: `rate=0.001`."""
    edges: tuple[str, ...] = field(default=(), compare=False)
    """Of the trial that is chosen: of which settings its value is the first or last tried, though
    there may be more beyond."""
    ended: tuple[str, ...] = field(default=(), compare=False)
    """Of the trial that is chosen: why a setting has no value beyond its own."""
    refused: tuple[str, ...] = field(default=(), compare=False)
    """Of the trial that is chosen: the next value of settings among `edges` that cannot be, and
    why; there may be others beyond."""

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The content of every file and folder that the configuration names, by its path."""
        return identity.fingerprints(self.config, self.content)

    @cached_property
    def training_id(self) -> str:
        """Cells that differ in their suite only have one."""
        return identity.training_id(self.config, self.fingerprints)

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
            failure: dict[str, str] = json.loads(self.paths.failure.read_text(encoding="utf-8"))
        except FileNotFoundError:  # it was started again just now
            return {"error": "why it failed is not known", "time": ""}
        except ValueError as error:
            return {"error": f"{self.paths.failure} cannot be read ({error})", "time": ""}
        if not isinstance(failure, dict) or not {"error", "time"} <= failure.keys():
            return {"error": f"{self.paths.failure} does not say why it failed", "time": ""}
        return failure

    def fail(self, error: str, trace: str | None = None) -> None:
        """Write a failure beside the run."""
        timestamp = datetime.now(UTC).isoformat(timespec="microseconds")
        text = json.dumps({"error": error, "time": timestamp, "traceback": trace}, indent=1)
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.paths.failure, text)

    @property
    def label(self) -> str:
        """`toy lora r=8 seed=0`, for progress lines and messages."""
        rank = self.config.method.rank
        parts = [self.config.model.name, self.config.method.name]
        parts += [] if rank is None else [f"r={rank}"]
        parts += [f"seed={self.config.seed}"] if self.config.trains else []
        if self.is_trial:  # one of several
            parts += self.tries or [f"rate={self.config.trainer.learning_rate}"]
        return " ".join(parts)

    @property
    def is_trial(self) -> bool:
        """Whether all that is wanted of it is the loss on the held-out rows."""
        return not self.config.eval.datasets

    @property
    def state(self) -> State:
        """As the files tell it: what waits in a queue or for a choice is `missing` here."""
        if self.record.exists():
            return State.DONE if record.is_whole(self.record) else State.DAMAGED
        if self.holder is not None:
            return State.RUNNING
        return State.FAILED if self.paths.failure.exists() else State.MISSING


def cell_of(
    cfg: Config, overrides: Sequence[str] = (), content: dict[str, str] | None = None
) -> Cell:
    """The cell of one resolved configuration."""
    fingerprints = identity.fingerprints(cfg, content)
    return Cell(identity.run_id(cfg, fingerprints), cfg, tuple(overrides), fingerprints)


def check_content(cell: Cell) -> None:
    """Raise UserError if the files that a cell reads are not those that it was planned with."""
    current = cell_of(cell.config, cell.overrides)
    if current.run_id != cell.run_id:
        raise UserError(
            f"{cell.label}: the model or data files on disk have changed since the sweep was "
            "started; start it anew"
        )
