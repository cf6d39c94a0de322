"""Exit statuses of the commands and of the processes that they start."""

OK, FAILED, MISTAKE = 0, 1, 2
"""Exit statuses: every cell has its record; a cell failed; the call itself is wrong."""

BROKEN, LOST = 3, 4
"""Exit statuses of a worker that could not go on, LOST: as its first cell has lost the GPU; FAILED
says that it has tried all cells."""
INTERRUPTED = 128
"""Exit statuses above it: the process was asked to end, by the signal of the rest."""


def exit_status_of(signal_number: int) -> int:
    """The exit status of a process that a signal asked to end."""
    return INTERRUPTED + signal_number
