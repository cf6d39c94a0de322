"""Hydra's entry: compose, check, run one cell, or a multirun of them in one process."""

import json
import os
import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from osora_bench.common import paths
from osora_bench.common.errors import UserError, tell
from osora_bench.common.exits import FAILED, MISTAKE, OK, exit_status_of
from osora_bench.common.interruption import Interrupted
from osora_bench.common.progress import say
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import DeviceLost, attempt, session
from osora_bench.pipeline.messages import damage, where
from osora_bench.planning.cell import State, cell_of
from osora_bench.planning.compose import check_overrides, resolve
from osora_bench.records import code_state

STARTED, ALLOW = "OSORA_STARTED_WITH", "OSORA_ALLOW_CHANGED"
"""Environment of a multirun's jobs: its code, and whether to run with another one."""
_statuses: list[int] = []


class NoRecord(Exception):
    """Why a cell that ran as a job of its own has no record, and the exit status for it."""

    def __str__(self) -> str:
        return str(self.args[0])


@hydra.main(version_base="1.3", config_path=str(paths.CONF), config_name="config")
def _run(cfg: DictConfig) -> None:
    """One cell. Among others in this process it never raises: Hydra would stop the multirun there
    and print a traceback. As a job of its own, raising is how its launcher hears of it."""
    status, reason = _attempt(cfg)
    _statuses.append(status)
    if status != OK and "SUBMITIT_EXECUTOR" in os.environ:
        raise NoRecord(reason, status)


def _attempt(cfg: DictConfig) -> tuple[int, str]:
    """Run a cell that has no record yet; the exit status, and why it is not OK."""
    try:
        _check_code()
        cell = cell_of(resolve(cfg, "configuration"))
        if cell.state == State.DONE:
            say(f"{cell.label}: has its record already, {cell.record}")
            return OK, ""
        if cell.state == State.DAMAGED:
            raise UserError(damage(cell))
        preflight.check_cells([cell])
        session().prepare([cell])
    except UserError as error:
        tell(error)
        return MISTAKE, str(error)
    state = attempt(cell)
    if state == State.DONE:
        say(f"record: {cell.record}")
        return OK, ""
    if state == State.RUNNING:
        say(f"{cell.label}: runs already{where(cell)}")
        return FAILED, f"{cell.label}: runs already"
    return FAILED, f"{cell.label}: {cell.error}  (see {cell.paths.failure})"


def _check_code() -> None:
    """Raise UserError if the code or conf/ is not what the multirun was started with: Hydra
    composes a cell when it starts, and a job reads the modules then."""
    if STARTED not in os.environ:
        raise UserError("this job did not get the environment of its start (sbatch --export)")
    change = code_state.differs(json.loads(os.environ[STARTED]), code_state.look(), f"{ALLOW}=1")
    if change is None:
        return
    if not os.environ.get(ALLOW):
        raise UserError(change)
    os.environ[code_state.CHANGED] = "1"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cell or cells that the arguments describe; a mistake is exit status 2."""
    _statuses.clear()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        check_overrides([a for a in arguments if "=" in a and not a.startswith("-")])
    except UserError as error:
        tell(error)
        return MISTAKE
    sys.argv = [sys.argv[0], *arguments]
    os.environ[STARTED] = json.dumps(code_state.code())
    try:
        _run()
    except DeviceLost as lost:
        say(f"{lost}; start again for the cells that are left")
        return FAILED
    except Interrupted as interrupted:
        say(f"{interrupted}: what was done is kept, the next start goes on from it")
        return exit_status_of(interrupted.number)
    except SystemExit as ended:  # Hydra has said why
        if isinstance(ended.__context__, NoRecord):  # the first of the jobs that failed
            return int(ended.__context__.args[1])
        return MISTAKE if ended.code else OK  # it refused the configuration
    return max(_statuses, default=OK)
