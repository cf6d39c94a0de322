"""The code that runs: its commit and how the files differ from it."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from osora_bench import paths

CHANGED = "OSORA_CHANGED_SINCE_PLAN"
"""Set in a process that was told to run other code than its sweep was started with."""


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def look() -> dict[str, Any]:
    """The commit, whether tracked files differ from it, and a hash of how; outside a checkout no
    commit, and a hash of the package and its configuration. What runs write themselves (results/)
    does not count."""
    counted = ("--", ".", ":(exclude)results")
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None, "diff": _content()}
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no", *counted))
    changes = _git("diff", "HEAD", *counted) if dirty else None
    return {
        "commit": commit,
        "dirty": dirty,
        "diff": None if changes is None else hashlib.sha256(changes.encode()).hexdigest(),
    }


def _content() -> str:
    digest = hashlib.sha256()
    for root, pattern in ((Path(__file__).parent, "*.py"), (paths.CONF, "*.yaml")):
        for path in sorted(root.rglob(pattern)):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def code() -> dict[str, Any]:
    """The code of this process: what it has imported stays as it is, so this is asked once."""
    return look()
