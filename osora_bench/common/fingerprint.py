"""sha256 of files and folders, remembered by size and time so that planning stays cheap."""

import hashlib
import json
import os
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

CHUNK = 1 << 20
IGNORED = (".md", ".gitattributes", ".png", ".txt.license")
"""Ends of names of what lies in models' folders and cannot change their numbers."""
STRAY = (
    ".*", "*~", "*.lock", "*.log", "*.tmp", "*.part", "*.swp", "*.orig", "*.bak",
    "thumbs.db", "desktop.ini", "*.pdf", "*.jpg", "*.jpeg", "*.svg", "*.html", "*.pyc",
    "license", "license.*", "licence", "licence.*", "license-*", "*_license", "copying*",
    "notice", "notice.*", "use_policy*", "readme", "readme.*", "authors", "changelog*",
    "training_args.bin", "trainer_state.json", "optimizer.*", "scheduler.*", "scaler.*",
    "rng_state*", "events.out.*", "all_results.json", "train_results.json", "eval_results.json",
    "*.sha256", "md5sum*", "sha256sum*",
)  # fmt: skip
"""Names, in lower case, of what systems, editors, downloads and transformers' Trainer leave there
and no loader reads. A list of what is loaded would be shorter and worse: a tokenizer's file of a
name that it lacks would change numbers and no run id."""


def _store() -> Path:
    """Where sums are remembered.

    Raises:
        RuntimeError: this user has no home.
    """
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
    try:
        entry = _store() / hashlib.sha256(key.encode()).hexdigest()
        cached = entry.read_text()
    except (OSError, RuntimeError):
        cached = ""
    if len(cached) == 64:
        return cached
    digest = file_sha256(path)
    try:
        entry = _store() / hashlib.sha256(key.encode()).hexdigest()
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest)
        temporary.replace(entry)
    except (OSError, RuntimeError):  # no home, or a read-only one: the next call computes it again
        pass
    return digest


def _stray(name: str) -> bool:
    """Whether a file in a model's folder is none that is loaded."""
    return name.endswith(IGNORED) or any(fnmatchcase(name.lower(), one) for one in STRAY)


def fingerprint(path: Path) -> str:
    """`sha256:...` of a file, or of a folder's files by name and content.

    Args:
        path: an existing file, or a folder without subfolders that matter (a model's folder).
    """
    if path.is_file():
        return f"sha256:{_remembered(path)}"
    parts = {
        p.name: _remembered(p) for p in sorted(path.iterdir()) if not _stray(p.name) and p.is_file()
    }
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
