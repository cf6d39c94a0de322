"""What a person sees while cells run: lines that stay, and a bar that goes when it is done."""

import sys
from typing import Any

from tqdm import tqdm


def bar(total: int, description: str) -> "tqdm[Any]":
    """A progress bar on the terminal, even while standard error goes to a log; none in a pipe."""
    terminal = sys.__stderr__
    return tqdm(
        total=total,
        desc=description,
        leave=False,
        mininterval=0.3,
        file=terminal,
        disable=terminal is None or not terminal.isatty(),
    )


def say(line: str) -> None:
    """Print a line above any bar."""
    tqdm.write(line)
    sys.stdout.flush()
