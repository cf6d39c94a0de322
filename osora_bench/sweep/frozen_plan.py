"""What a sweep runs, fixed at its start: resolved configurations and the code that they are for.

Workers and cluster jobs start later, perhaps much later. They read their cells from this file and
not from conf/, and refuse to run them with other code or on other data.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from osora_bench.common.files import write_whole
from osora_bench.planning.cell import Cell, State
from osora_bench.planning.config import Config, plain
from osora_bench.records import code_state
from osora_bench.records.code_state import differs


@dataclass(frozen=True)
class Frozen:
    """A sweep: when it started, the state of the code then, and its cells.

    `failed_before` says of cells that had failed already when they did.
    """

    path: Path
    started: str
    code: dict[str, Any]
    cells: list[Cell]
    failed_before: dict[str, str]

    def settled(self, cell: Cell) -> bool:
        """Whether nothing is left to do for a cell in this sweep: done, damaged or failed in it."""
        state = cell.state
        return state in (State.DONE, State.DAMAGED) or (
            state == State.FAILED and self._failed_in_it(cell)
        )

    def _failed_in_it(self, cell: Cell) -> bool:
        """Whether a failure is another one than that of before: a node's clock may be behind."""
        return cell.failed not in ("", self.failed_before.get(cell.run_id))

    def waits(self, cell: Cell) -> bool:
        """Whether a cell is still to be run, and nobody runs it."""
        return not self.settled(cell) and cell.state != State.RUNNING


def freeze(cells: Sequence[Cell]) -> Frozen:
    """Write down a sweep below its runs folder: a line on all of it, and a line for each cell."""
    started = datetime.now(UTC).isoformat(timespec="microseconds")
    code = code_state.code()
    failed_before = {cell.run_id: cell.failed for cell in cells if cell.paths.failure.exists()}
    entries = [
        {
            "run_id": cell.run_id,
            "config": plain(cell.config),
            "overrides": cell.overrides,
            "failed_before": failed_before.get(cell.run_id),
        }
        for cell in cells
    ]
    text = "".join(
        json.dumps(line) + "\n" for line in [{"started": started, "code": code}, *entries]
    )
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = cells[0].paths.runs.absolute() / "plans" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return Frozen(path, started, code, list(cells), failed_before)


def thaw(path: Path, only: str | None = None) -> Frozen:
    """Read a sweep back; with `only`, that cell of it alone, which takes no time in a large one."""
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines if only is None or f'"{only}"' in line]
    if only is not None:
        entries = [entry for entry in entries if entry["run_id"] == only]
    cells = [
        Cell(entry["run_id"], Config.of(entry["config"]), tuple(entry["overrides"]))
        for entry in entries
    ]
    failed_before = {
        entry["run_id"]: entry["failed_before"] for entry in entries if entry.get("failed_before")
    }
    return Frozen(path, **json.loads(head), cells=cells, failed_before=failed_before)


def changes(frozen: Frozen) -> str | None:
    """How the code on disk now differs from the sweep's, None if it does not. A method's file, say,
    that is new since then is no difference."""
    return differs(frozen.code, code_state.look_since(frozen.code), "allow_changed=true")
