"""What tests of sweeps share."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from osora_bench.planning.cell import Cell
from osora_bench.records import record
from osora_bench.sweep.frozen_plan import Frozen

T = TypeVar("T")


def wait_until(true: Callable[[], T], what: str, seconds: float = 600) -> T:
    """Wait for what must come; the first true value. Long: other work may have the machine."""
    until = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(0.1)
    return found


def numbers(cell: Cell) -> dict[str, Any]:
    """A record without its block of measured costs (and the checksum that covers it)."""
    body = record.read_record(cell.record)
    return {k: v for k, v in body.items() if k not in ("measured", "sha256", "schema")}


def from_another_commit(sweep: Frozen) -> None:
    """Make a frozen sweep one of other code."""
    head, *cells = sweep.path.read_text().splitlines()
    told = json.loads(head)
    told["code"] |= {"commit": "0" * 40, "tree": "0" * 64}
    sweep.path.write_text("\n".join([json.dumps(told), *cells]) + "\n")
