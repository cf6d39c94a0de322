"""Signals that ask a cell to stop: taken at a safe point, when everything is on disk."""

import os
import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


class Interrupted(BaseException):
    """The process was asked to end, and what was done is kept. Not an error of the cell."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def told(self) -> str:
        """What whoever started it is told."""
        return f"{self}: what was done is kept, the next start goes on from it"


class Interruption:
    """Remembers a signal until a safe point; a second one of its kind before that acts at once.

    Under SLURM a SIGTERM says that the job is about to be killed and perhaps requeued: the state is
    saved and the work goes on, since an exit would count as completed. USR2 is submitit's notice
    of a time limit or pre-emption: its own handler requeues the job.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in SIGNALS:
            handler = signal.getsignal(number)
            # what nohup and the like ignore stays so; USR2 is taken only where submitit expects it
            if handler != signal.SIG_IGN and (number != signal.SIGUSR2 or callable(handler)):
                self._handlers[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _received(self, number: int, _: FrameType | None) -> None:
        if self.number == number:
            signal.signal(number, self._handlers[number])
            signal.raise_signal(number)
        self.number = number

    def leave_to_parent(self) -> None:
        """In a process that was just forked: signals end it, as they do any other. One that only
        remembers SIGTERM could not be ended by whoever waits for it."""
        for number in self._handlers:
            signal.signal(number, signal.SIG_DFL)
        self._handlers.clear()
        self.number = None

    def safe_point(self) -> None:
        """Act on a signal that came: call this when all that is done is on disk.

        Raises:
            Interrupted: the process should end now.
        """
        number, self.number = self.number, None
        if number == signal.SIGUSR2:
            self._handlers[number](number, None)
        elif number is not None and not _survives(number):
            raise Interrupted(number)

    def settle(self) -> None:
        """Act on a signal that came after a cell's last safe point: call this when the cell is
        over. A job that was to be requeued has nothing left to do.

        Raises:
            Interrupted: the process should end now.
        """
        number, self.number = self.number, None
        if number is not None and number != signal.SIGUSR2 and not _survives(number):
            raise Interrupted(number)


def _survives(number: int) -> bool:
    return number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ


_current = Interruption()
os.register_at_fork(after_in_child=_current.leave_to_parent)


def current() -> Interruption:
    """The process's one."""
    return _current
