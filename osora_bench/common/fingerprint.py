"""sha256 of files and folders, remembered by size and time so that planning stays cheap."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path

CHUNK = 1 << 20
# what can change a model's numbers; a README or a .gitattributes cannot
IGNORED = (".md", ".gitattributes", ".png", ".txt.license")


def _store() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "osora_bench" / "fingerprints"


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of one file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remembered(path: Path) -> str:
    """`file_sha256`, looked up by place, size and times of change."""
    status = path.stat()
    changed = (status.st_mtime_ns, status.st_ctime_ns)  # a copy may keep the first
    return _digest(path.resolve(), status.st_size, changed, status.st_ino)


@cache
def _digest(path: Path, size: int, changed: tuple[int, int], inode: int) -> str:
    if size < CHUNK:
        return file_sha256(path)
    key = f"{path}:{size}:{changed}:{inode}"
    entry = _store() / hashlib.sha256(key.encode()).hexdigest()
    try:
        cached = entry.read_text()
    except OSError:
        cached = ""
    if len(cached) == 64:
        return cached
    digest = file_sha256(path)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest)
        temporary.replace(entry)
    except OSError:  # a read-only home only costs time: the next call computes it again
        pass
    return digest


def fingerprint(path: Path) -> str:
    """`sha256:...` of a file, or of a folder's files by name and content.

    Args:
        path: an existing file, or a folder without subfolders that matter (a model's folder).
    """
    if path.is_file():
        return f"sha256:{_remembered(path)}"
    parts = {
        p.name: _remembered(p)
        for p in sorted(path.iterdir())
        if p.is_file() and not p.name.endswith(IGNORED)
    }
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
