"""Files that are there whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from osora_bench.common.errors import UserError

MINIMUM_FREE = 200 * 2**20
"""Bytes a run may need for its adapter, predictions and logs before it can be refused."""


def write_whole(path: Path, text: str) -> None:
    """Write a file: whoever reads it, and a crash at any moment, finds the old one or the new one.

    What a killed process left of an earlier try is removed: one process at a time writes a file.

    Raises:
        OSError: it cannot be written; then nothing has changed.
    """
    for leftover in path.parent.glob(f".{path.name}.*.part"):
        leftover.unlink(missing_ok=True)
    part = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            sync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync(path.parent)


CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""How file systems (FUSE, SMB, some parallel ones) say that they have no fsync, for all files or
for folders."""


def write_json_lines(folder: Path, files: Iterable[tuple[str, Iterable[Any]]]) -> None:
    """Write files of JSON lines below a folder, by name; the same rows give the same bytes."""
    for name, rows in files:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, "".join(json.dumps(row) + "\n" for row in rows))


def sync(handle: int) -> None:
    """Have what was written on disk, as far as the file system can be asked for it.

    Raises:
        OSError: it could not be written: the disk is full, or broken.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def _sync(folder: Path) -> None:
    """Have a new name on disk, not only what it names. It is there whether or not this succeeds,
    so that nothing is raised; a folder may also be one to write to and not to read."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def last_line(path: Path) -> str:
    """The last line of a log that is not blank; nothing where there is none.

    Raises:
        OSError: it cannot be read.
    """
    return last_line_of(path.read_text(encoding="utf-8", errors="replace"))


def last_line_of(text: str) -> str:
    """The same of a text."""
    return (text.strip().splitlines() or [""])[-1].strip()


def check_writable(folder: Path) -> None:
    """Make a folder; raise UserError if nothing can be written there or little is free."""
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    free = shutil.disk_usage(folder).free
    if free < MINIMUM_FREE:
        raise UserError(
            f"{folder}: {free >> 20} MiB free on its disk, at least {MINIMUM_FREE >> 20} needed"
        )


def check_open(folder: Path) -> None:
    """Raise UserError if a folder is there and this user may not write in it."""
    if os.access(folder, os.F_OK) and not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"{folder}: is of user {folder.stat().st_uid}, and this user ({os.geteuid()}) may not "
            "write there: name another runs folder (runs=FOLDER), or have its owner let the group "
            "write in all of it (chmod -R g+w, and umask 002 from then on)"
        )


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror})") from error
