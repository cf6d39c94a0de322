"""What a person sees while cells run: lines that stay, and a bar that goes when it is done."""

import sys
from typing import Any

from tqdm import tqdm

FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
"""tqdm's own, with the rate always a second's."""


def bar(total: int, description: str, **settings: Any) -> "tqdm[Any]":
    """A progress bar on the terminal, even while standard error goes to a log; none in a pipe.

    Args:
        settings: of tqdm's, beside these.
    """
    terminal = sys.__stderr__
    return tqdm(
        total=total,
        desc=description,
        bar_format=FORMAT,
        leave=False,
        mininterval=0.3,
        file=terminal,
        disable=terminal is None or not terminal.isatty(),
        **settings,
    )


def say(line: str) -> None:
    """Print a line above any bar."""
    tqdm.write(line)
    sys.stdout.flush()
