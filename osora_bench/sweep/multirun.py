"""Hydra's entry: compose, check, run one cell, or a multirun of them in one process."""

import json
import os
import sys
from collections.abc import Sequence

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from osora_bench.common import paths
from osora_bench.common.errors import UserError, tell
from osora_bench.common.exits import FAILED, MISTAKE, OK, exit_status_of
from osora_bench.common.interruption import Interrupted
from osora_bench.common.progress import say
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import DeviceLost, attempt, session
from osora_bench.pipeline.messages import damage, where
from osora_bench.planning.cell import Cell, State, cell_of
from osora_bench.planning.compose import (
    check_overrides,
    compose,
    composer,
    find_own_conf,
    resolve,
)
from osora_bench.records import code_state

STARTED, ALLOW = "OSORA_STARTED_WITH", "OSORA_ALLOW_CHANGED"
"""Environment of a multirun's jobs: its code, and whether to run with another one."""
MULTIRUN = {"-m", "--multirun"}
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


def check_multirun(arguments: Sequence[str]) -> None:
    """Raise UserError with what is wrong with any cell of a multirun that has no record yet. Hydra
    composes each at its turn, when others have been trained.

    What Hydra alone knows is left to it, and checked at its turn: cells of a sweeper that chooses
    as it goes, of another folder of configurations, or with Hydra's own values in them.
    """
    flags = {a for a in arguments if a.startswith("-")}
    sweeps = ("hydra/sweeper", "hydra.sweeper")
    if not flags or flags - MULTIRUN or any(a.startswith(sweeps) for a in arguments):
        return
    overrides = [a for a in arguments if a not in flags and not a.startswith(("hydra.", "hydra/"))]
    if any("${hydra:" in override for override in overrides):
        return
    cells = [c for c in _expanded(overrides) if c.state in (State.MISSING, State.FAILED)]
    here = not any(a.startswith("hydra/launcher=") for a in arguments)
    if cells:
        preflight.check_cells(cells, here=here)
        if here:
            session().prepare(cells)


def _expanded(overrides: Sequence[str]) -> list[Cell]:
    """The cells that Hydra will make of a multirun's overrides, in its order.

    Raises:
        UserError: what is wrong with the configuration of any of them.
    """
    cells: list[Cell] = []
    problems: dict[str, None] = {}
    content: dict[str, str] = {}
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        (choices,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:  # what cannot be swept over
        raise UserError(str(error)) from error
    with composer():
        for chosen in choices:
            try:
                cfg = resolve(compose(chosen, "configuration"), "configuration")
                cells.append(cell_of(cfg, chosen, content))
            except UserError as error:
                problems.setdefault(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cell or cells that the arguments describe; a mistake is exit status 2."""
    _statuses.clear()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        check_overrides([a for a in arguments if "=" in a and not a.startswith("-")])
        os.environ[STARTED] = json.dumps(code_state.code())
        check_multirun(arguments)
        find_own_conf()
    except UserError as error:
        tell(error)
        return MISTAKE
    sys.argv = [sys.argv[0], *arguments]
    try:
        _run()
    except DeviceLost as lost:
        say(f"{lost}; start again for the cells that are left")
        return FAILED
    except Interrupted as interrupted:
        say(interrupted.told)
        return exit_status_of(interrupted.number)
    except SystemExit as ended:  # Hydra has said why
        if isinstance(ended.__context__, NoRecord):  # the first of the jobs that failed
            return int(ended.__context__.args[1])
        return MISTAKE if ended.code else OK  # it refused the configuration
    return max(_statuses, default=OK)
