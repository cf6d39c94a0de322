"""What a process does to itself: how it collects garbage, where its outputs lead, whose it is."""

import gc
import os
import pwd
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from osora_bench.common.errors import tell

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
"""Variables in which `getpass.getuser` looks for a user's name."""


@contextmanager
def without_collecting() -> Iterator[None]:
    """Look for no cycles of garbage: a fifth of the time where a million small objects are made."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def open_what_is_closed() -> None:
    """Let standard input and outputs that are closed (`>&-`, some daemons) lead nowhere: the next
    file to be opened would else be one of them, and what is printed would end up in it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def name_user() -> None:
    """Give a user whom the machine does not know (a container's `--user 12345`) a name, and one
    without a home a home: libraries ask for both when they are imported, and end in a traceback.

    The home is a folder for this user alone in the temporary one, which is said. Processes that
    this one starts have the same.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        if not any(os.environ.get(name) for name in NAMES):
            os.environ["USER"] = f"uid-{os.getuid()}"
    if os.environ.get("HOME") == "":
        del os.environ["HOME"]  # libraries would take it for the root folder
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(_own_folder())
        tell(f"this user ({os.getuid()}) has no home; HOME={os.environ['HOME']} is taken for it")


def _own_folder() -> Path:
    """A temporary folder that nobody else can have prepared, the same each time if that is so."""
    place = Path(tempfile.gettempdir()) / f"osora-home-{os.getuid()}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    status = place.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
        place.chmod(0o700)
        return place
    return Path(tempfile.mkdtemp(prefix="osora-home-"))
