"""One process of a sweep: runs the cells of a frozen plan that nobody else runs, one after another.

python -m osora_bench.worker PLAN [--cell RUN_ID ...] [--allow-changed]
"""

import argparse
import os
import sys
from pathlib import Path

from osora_bench import frozen
from osora_bench.errors import UserError
from osora_bench.interruption import Interrupted
from osora_bench.progress import say
from osora_bench.provenance import CHANGED
from osora_bench.run import FAILED, MISTAKE, OK, attempt, session


def work(path: Path, only: list[str] | None = None, allow_changed: bool = False) -> int:
    """Run what is open of a sweep, or of the cells named; the exit status.

    Raises:
        UserError: the code or the files are not those that the sweep was started with.
    """
    sweep = frozen.thaw(path)
    found = frozen.changes(sweep)
    if found is not None:
        if not allow_changed:
            raise UserError(found)
        os.environ[CHANGED] = "1"
    mine = [cell for cell in sweep.cells if only is None or cell.run_id in only]
    for cell in mine:
        if not sweep.waits(cell):
            continue
        frozen.check_content(cell)
        session().prepare([cell])
        attempt(cell)
    return OK if all(cell.state in ("done", "running") for cell in mine) else FAILED


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m osora_bench.worker")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--cell", action="append", help="only this run id; may be repeated")
    parser.add_argument("--allow-changed", action="store_true")
    args = parser.parse_args()
    try:
        return work(args.plan, args.cell, args.allow_changed)
    except UserError as error:
        print(f"osora-bench: {error}", file=sys.stderr)
        return MISTAKE
    except Interrupted as interrupted:
        say(f"{interrupted}: what was done is kept, the next start goes on from it")
        return 128 + interrupted.number


if __name__ == "__main__":
    sys.exit(main())
