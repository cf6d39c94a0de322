"""Files that are there whole or not at all."""

import os
import socket
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file: whoever reads it, and a crash at any moment, finds the old one or the new one.

    What a killed process left of an earlier try is removed: one process at a time writes a file.

    Raises:
        OSError: it cannot be written; then nothing has changed.
    """
    for left in path.parent.glob(f".{path.name}.*.part"):
        left.unlink(missing_ok=True)
    part = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Have a new name on disk, not only what it names."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
