"""Files of tensors with the modes that other files get: safetensors makes its own for their owner
alone (0600), whatever the umask, so that nobody else could read an adapter or a decomposition."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors as a safetensors file, with the mode that a new file gets in its folder.

    Raises:
        OSError: it cannot be written.
    """
    save_file(tensors, path, metadata=metadata)
    path.chmod(_new_mode(path.parent))


def as_new_files(folder: Path) -> None:
    """Give the files of this user in a folder, which a library has just written, the mode that new
    files get there.

    Raises:
        OSError: nothing can be written there.
    """
    mode = _new_mode(folder)
    for place in folder.rglob("*"):
        if place.is_file() and place.stat().st_uid == os.geteuid():
            place.chmod(mode)


def _new_mode(folder: Path) -> int:
    """What the umask, or the folder's default access list, gives. It is tried: the umask can only
    be read by setting it, for all threads at once."""
    trial = folder / f".mode-{os.getpid()}-{threading.get_ident()}"
    trial.touch(exist_ok=False)
    try:
        return stat.S_IMODE(trial.stat().st_mode)
    finally:
        trial.unlink()
