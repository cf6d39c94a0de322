"""The code that runs: its commit and how the files differ from it."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from osora_bench import paths

CHANGED = "OSORA_CHANGED_SINCE_PLAN"
"""Set in a process that was told to run other code than its sweep was started with."""


SOURCES = ("osora_bench", "conf")
"""Folders whose files take part in a run also where git does not track them."""


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def look() -> dict[str, Any]:
    """The commit, a hash of its files, whether the files here differ from it, and a hash of how;
    outside a checkout no commit, and a hash of the package and its configuration.

    What runs write themselves (results/) does not count. Files that git does not track count where
    runs take them from (`SOURCES`).
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "tree": None, "dirty": None, "diff": _content()}
    listed = (_git("ls-tree", "HEAD") or "").splitlines()
    tree = "\n".join(line for line in listed if not line.endswith("\tresults"))
    changes = (_git("diff", "HEAD", "--", ".", ":(exclude)results") or "") + _untracked()
    return {
        "commit": commit,
        "tree": hashlib.sha256(tree.encode()).hexdigest(),
        "dirty": bool(changes),
        "diff": hashlib.sha256(changes.encode()).hexdigest() if changes else None,
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two looks saw the same files; a commit that adds records only changes none."""
    return all(one.get(key) == other.get(key) for key in ("tree", "diff"))


def _untracked() -> str:
    """A line for each file that git neither tracks nor ignores, with its content's hash."""
    listed = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *SOURCES) or ""
    files = sorted(name for name in listed.split("\0") if (paths.ROOT / name).is_file() and name)
    return "".join(
        f"{name} {hashlib.sha256((paths.ROOT / name).read_bytes()).hexdigest()}\n" for name in files
    )


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
