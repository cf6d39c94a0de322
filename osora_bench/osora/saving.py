"""Files of tensors with the modes that other files get: safetensors makes its own for their owner
alone (0600), whatever the umask, so that nobody else could read an adapter or a decomposition."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors as a safetensors file, with the mode that a new file gets in its folder.

    Raises:
        OSError: it cannot be written.
    """
    save_file(tensors, path, metadata=metadata)
    path.chmod(stat.S_IMODE(_new_file(path.parent).st_mode))


@contextmanager
def as_new_files(folder: Path) -> Iterator[None]:
    """Give the files that a library writes into a folder within the block, new ones and those that
    it writes over, the mode that new files get there. The others stay as they are.

    Raises:
        OSError: nothing can be written there.
    """
    before = {place: _written(place.stat()) for place in _files(folder)}
    yield
    new = _new_file(folder)
    for place in _files(folder):
        state = place.stat()
        # a file of another user that was written into keeps what its owner gave it
        if before.get(place) != _written(state) and state.st_uid == new.st_uid:
            place.chmod(stat.S_IMODE(new.st_mode))


def _files(folder: Path) -> list[Path]:
    return [place for place in folder.rglob("*") if place.is_file()]


def _written(state: os.stat_result) -> tuple[int, int]:
    return state.st_ino, state.st_mtime_ns


def _new_file(folder: Path) -> os.stat_result:
    """Whose a new file is and what mode the umask, or the folder's default access list, gives it.
    It is tried: the umask can only be read by setting it, for all threads at once."""
    trial = folder / f".mode-{os.getpid()}-{threading.get_ident()}"
    trial.touch(exist_ok=False)
    try:
        return trial.stat()
    finally:
        trial.unlink()
