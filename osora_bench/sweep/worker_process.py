"""One process of a sweep: runs the cells of a frozen plan that nobody else runs, one after another.

python -m osora_bench.sweep.worker_process PLAN [--allow-changed]
"""

import argparse
import os
import sys
import traceback
from pathlib import Path

from osora_bench.common.errors import UserError, tell
from osora_bench.common.exits import BROKEN, FAILED, LOST, MISTAKE, OK, exit_status_of
from osora_bench.common.interruption import Interrupted
from osora_bench.common.process import name_user
from osora_bench.common.progress import say
from osora_bench.pipeline.attempt import DeviceLost, attempt
from osora_bench.planning.cell import State
from osora_bench.records.code_state import CHANGED
from osora_bench.sweep import frozen_plan


def work(sweep: frozen_plan.Frozen, allow_changed: bool = False) -> int:
    """Run what is open of a sweep; the exit status.

    Raises:
        UserError: the code is not that which the sweep was started with.
        DeviceLost: the first cell has lost the GPU.
    """
    first = True
    for cell in sweep.cells:
        if not sweep.waits(cell):
            continue
        # each time: a module that is imported late would be the new one
        _check_code(sweep, allow_changed)
        try:
            attempt(cell)
        except DeviceLost as lost:
            if first:
                raise
            tell(lost)
            return BROKEN
        first = False
    return OK if all(cell.state in (State.DONE, State.RUNNING) for cell in sweep.cells) else FAILED


def _check_code(sweep: frozen_plan.Frozen, allow_changed: bool) -> None:
    change = frozen_plan.changes(sweep)
    if change is None:
        return
    if not allow_changed:
        raise UserError(change)
    os.environ[CHANGED] = "1"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m osora_bench.sweep.worker_process")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--allow-changed", action="store_true")
    args = parser.parse_args()
    name_user()
    try:
        return work(frozen_plan.thaw(args.plan), args.allow_changed)
    except UserError as error:
        tell(error)
        return MISTAKE
    except Interrupted as interrupted:
        say(interrupted.told)
        return exit_status_of(interrupted.number)
    except DeviceLost as lost:
        tell(lost)
        return LOST
    except Exception as error:
        traceback.print_exc()
        tell(f"{type(error).__name__}: {error}")
        return BROKEN


if __name__ == "__main__":
    sys.exit(main())
