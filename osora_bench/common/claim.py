"""Who runs a cell: a lock that dies with its holder, and a note of where and since when."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from osora_bench.common.errors import UserError
from osora_bench.common.files import write_whole

LOCK, STATUS = "lock", "status.json"
PATIENCE = 1.0
"""Seconds to wait for a lock: whoever only looks holds it for an instant."""

NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
"""How file systems (NFS without its lock daemon, Lustre without `flock`, FUSE) say that they have
no locks."""


def lock(file: IO[Any], kind: int) -> None:
    """`fcntl.flock` of a file.

    Raises:
        BlockingIOError: another process holds it, and `kind` says not to wait.
        UserError: its file system has no locks.
    """
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{Path(file.name).absolute().parent}: its file system has no locks (flock: "
            f"{error.strerror}), which keep two processes from running the same cell. Name a "
            "folder on another one (runs=FOLDER), or have it mounted with them (Lustre: -o flock; "
            "NFS: with its lock daemon, or -o local_lock=flock if one machine alone uses it)"
        ) from error


def check_locks(folder: Path) -> None:
    """Raise UserError if files of a folder, which is there, cannot be locked."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the lock of a cell's folder; yields whether it was free.

    The kernel drops the lock when the process ends, however it ends. The file stays: if it were
    removed, one process could lock the old file and another a new one of the same name.

    Raises:
        UserError: the folder's file system has no locks.
        OSError: nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        free = _lock(file, fcntl.LOCK_EX, PATIENCE)
        if free:
            _note(folder)
        yield free
        if free:
            (folder / STATUS).unlink(missing_ok=True)


def holder(folder: Path) -> dict[str, Any] | None:
    """Where a cell runs and since when: host, pid, since, job, starts. None if it does not run."""
    try:
        with (folder / LOCK).open() as file:
            if _lock(file, fcntl.LOCK_SH, 0.0):
                return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    return note(folder)


def note(folder: Path) -> dict[str, Any]:
    """What the last holder wrote down; it stays where a process was killed."""
    try:
        status: dict[str, Any] = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # not there, or damaged
        return {}
    return status


def _lock(file: Any, kind: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            lock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _note(folder: Path) -> None:
    status = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        # a note that is still there is of a process that was killed
        "starts": note(folder).get("starts", 0) + 1,
    }
    write_whole(folder / STATUS, json.dumps(status))
