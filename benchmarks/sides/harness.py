"""The harness's way to run cells: all in this process, as `osora-bench run` does.

    python -m benchmarks.sides.harness CELLS.json COSTS.json

The first file holds the overrides of each cell, the second will hold the processor seconds of each
by its run id.
"""

import json
import sys
from pathlib import Path

from benchmarks.rows import seconds
from osora_bench.planning.cell import Cell, State, cell_of
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.sweep import run

COSTS: dict[str, float] = {}
attempt = run.attempt


def timed(cell: Cell, counter: str = "") -> State:
    """An attempt at a cell; what it takes is noted."""
    COSTS[cell.run_id] = seconds(lambda: attempt(cell, counter))
    return cell.state


def main() -> int:
    with composer():
        cells = [
            cell_of(resolve(compose(overrides, "sweep"), "sweep"), overrides)
            for overrides in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        ]
    run.attempt = timed
    status = run.run_missing(cells)
    Path(sys.argv[2]).write_text(json.dumps(COSTS), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
