"""One attempt at a cell: claimed, run, its failure written down."""

import gc
import os
import shutil
import traceback
from functools import cache
from typing import TYPE_CHECKING

from osora_bench.common import interruption
from osora_bench.common.claim import claimed
from osora_bench.common.errors import UserError
from osora_bench.common.progress import say
from osora_bench.pipeline.messages import less_memory, summary_of_cell
from osora_bench.planning.cell import Cell, State, check_content
from osora_bench.records import code_state

if TYPE_CHECKING:
    from osora_bench.pipeline.session import Session

# Read when torch is first imported: how long a waiting thread spins before it sleeps. GNU OpenMP's
# own 300,000 make the toy 28 times slower when another process wants a core (60 steps of training:
# 158 s, not 5.7); never spinning makes it twice as slow when none does. This: 5 s, and 17 s.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

FULL = 1 << 20
"""Bytes: what cannot be written on a disk that has fewer left fails for want of space."""


class DeviceLost(BaseException):
    """A cell failed and left the process's GPU unusable: what follows needs a new process."""


@cache
def session() -> "Session":
    """The process's one session. Its libraries are loaded here, after all cheap checks."""
    say("loading torch, transformers and OpenCompass ...")
    from osora_bench.pipeline.session import Session

    if not code_state.same(code_state.code(), code_state.look()):
        raise UserError("the code was changed while it was loaded: start again")
    gc.freeze()  # a million objects of the libraries, which each cell's collections would walk
    return Session()


def attempt(cell: Cell, counter: str = "") -> State:
    """Run one cell, unless another process does; its state afterwards.

    A failure is written beside the run.

    Raises:
        Interrupted: the process was asked to end; what was done is kept.
        DeviceLost: no cell can run in this process any more.
    """
    try:
        with claimed(cell.paths.folder) as free:
            if not free or cell.record.exists():
                return cell.state
            state = _run(cell, counter)
    except OSError as error:  # nothing can be written in its folder, a failure neither
        say(f"{counter}{cell.label}: FAILED, {error}")
        state = State.FAILED
    interruption.current().settle()
    return state


def _run(cell: Cell, counter: str) -> State:
    try:
        check_content(cell)
        session().prepare([cell])
        with interruption.current():
            record = session().run(cell)
    except Exception as error:
        line = explained(error, cell)
        first_line = line.partition("\n")[0]
        say(f"{counter}{cell.label}: FAILED, {first_line}  (see {cell.paths.failure})")
        cell.fail(line, traceback.format_exc())
        if "CUDA error" in str(error):
            raise DeviceLost(f"the GPU must be opened anew after this: {first_line}") from error
        return State.FAILED
    shutil.rmtree(cell.paths.trainer, ignore_errors=True)
    say(f"{counter}{summary_of_cell(cell, record)}")
    return State.DONE


def explained(error: Exception, cell: Cell) -> str:
    """An error for people; its first line says what to do where that is known."""
    line = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    if "timed-out too many times" in str(error):  # submitit's
        return (
            "the time limit was reached more often than hydra.launcher.max_num_timeout allows; a "
            f"larger one, or hydra.launcher.timeout_min, lets it go on from its checkpoint\n{line}"
        )
    if shutil.disk_usage(cell.paths.runs).free < FULL:
        return f"the disk of {cell.paths.runs} is full\n{line}"
    if not _out_of_memory(error):
        return line
    return f"out of memory: {less_memory(cell)} make it smaller\n{line}"


def _out_of_memory(error: Exception) -> bool:
    kinds = ("OutOfMemoryError", "MemoryError")
    phrases = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return type(error).__name__ in kinds or any(phrase in str(error) for phrase in phrases)
