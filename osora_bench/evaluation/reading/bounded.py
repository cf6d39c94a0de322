"""Calls that end within a bound of time, whatever they call: made in a process of their own."""

import contextlib
import ctypes
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from osora_bench.common import interruption

LOOK = 0.2
"""Seconds between two looks for a signal while an answer is waited for."""
MEMORY = 4 << 30
"""Bytes that the process may take beyond what it was forked with."""


class TimedOut(Exception):
    """No answer within the bound."""


class Bounded:
    """A function, called in one forked process, call after call.

    A call that takes too long ends the process; the next one starts another. What the function
    raises is raised here as a RuntimeError. Between looks for the answer this process acts on the
    signals that it was sent.

    Args:
        seconds: by the clock, for one call.
    """

    def __init__(self, function: Callable[..., Any], seconds: float) -> None:
        self.function = function
        self.seconds = seconds
        self._process: Any = None
        self._end: Connection | None = None

    def __call__(self, *arguments: Any) -> Any:
        """The function's answer.

        Raises:
            TimedOut: it has none within the bound.
            RuntimeError: the function raised, or its process died.
            Interrupted: this process was asked to end.
        """
        try:
            raised, answer = self._ask(arguments)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self.close()
            interruption.current().safe_point()  # what killed it may have been meant for us
            raise RuntimeError("the process that was asked has died") from error
        except BaseException:
            self.close()
            raise
        if raised:
            raise RuntimeError(answer)
        return answer

    def _ask(self, arguments: tuple[Any, ...]) -> Any:
        interruption.current().safe_point()
        end = self._start() if self._end is None else self._end
        end.send(arguments)
        deadline = time.monotonic() + self.seconds
        while not end.poll(LOOK):
            interruption.current().safe_point()
            if time.monotonic() > deadline:
                raise TimedOut
        return end.recv()

    def _start(self) -> Connection:
        # forked, since the libraries that it needs take seconds to import
        context = multiprocessing.get_context("fork")
        self._end, child_end = context.Pipe()
        settings = (self.function, child_end, self._end, self.seconds)
        self._process = context.Process(target=_serve, args=settings, daemon=True)
        self._process.start()
        child_end.close()
        return self._end

    def close(self) -> None:
        """End the process, if there is one: it holds memory as it was when it was forked."""
        if self._end is not None:
            self._end.close()
            self._process.kill()
            self._process.join()
        self._end = self._process = None


def _serve(
    function: Callable[..., Any], end: Connection, parent_end: Connection, seconds: float
) -> None:
    parent_end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is meant for the parent
    _end_with_parent()
    while True:
        try:
            arguments = end.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, 2 * seconds)  # should nobody be left to end this
        try:
            answer = (False, function(*arguments))
        except Exception as error:  # of a library that is given a model's text
            answer = (True, f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        end.send(answer)


def _end_with_parent() -> None:
    """On Linux: be killed when the parent dies, and take no more than `MEMORY`."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard_limit))
