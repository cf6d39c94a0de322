"""The code that runs: its commit and how the files differ from it."""

import hashlib
import subprocess
from functools import cache
from typing import Any

from osora_bench import paths


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def code() -> dict[str, Any]:
    """The commit, whether tracked files differ from it, and a hash of how; null outside a checkout.

    What a process has imported stays as it is, so this is asked once.
    """
    status = _git("status", "--porcelain", "--untracked-files=no")
    changes = _git("diff", "HEAD") if status else None
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "diff": None if changes is None else hashlib.sha256(changes.encode()).hexdigest(),
    }
