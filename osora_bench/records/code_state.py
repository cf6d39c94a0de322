"""The code that runs: its commit and how the files differ from it."""

import hashlib
import os
import subprocess
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.common.progress import say

CHANGED = "OSORA_CHANGED_SINCE_PLAN"
"""Set in a process that was told to run other code than its sweep was started with."""
SOURCES = ("osora_bench", "conf")
"""Folders whose files take part in a run also where git does not track them."""
NEW = "configurations"
"""Of a look, the names of the YAML files beside the commit's: untracked in conf/, or of ./conf."""


NO_CHECKOUT = ("not a git repository", "ambiguous argument 'HEAD'")
"""What git says outside a checkout, and in one without a commit."""


def _git(*arguments: str) -> bytes:
    """What a git command prints, also in the checkout of another user, which git would not read.

    Raises:
        UserError: it fails.
        FileNotFoundError: there is no git on this machine.
    """
    # what that guards against is code of the checkout that git would start: we are that code
    trusted = ("-c", f"safe.directory={paths.ROOT}", "-c", "core.fsmonitor=false")
    result = subprocess.run(
        ["git", *trusted, *arguments],
        cwd=paths.ROOT,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if result.returncode != 0:
        message = result.stderr.decode(errors="replace").strip()
        raise UserError(f"git {' '.join(arguments)} fails, so the code is not known: {message}")
    return result.stdout


def _commit() -> str | None:
    """HEAD; None outside a checkout, or without git.

    Raises:
        UserError: git does not say what is checked out.
    """
    try:
        return _git("rev-parse", "HEAD").decode().strip()
    except FileNotFoundError:
        return None
    except UserError as error:
        if any(words in str(error) for words in NO_CHECKOUT):
            return None
        raise


def look(known: Container[str] | None = None) -> dict[str, Any]:
    """The commit, a hash of its files, whether the files here differ from it, and a hash of how;
    outside a checkout no commit, and a hash of the package and its configuration. A user's own
    ./conf counts as a difference.

    What runs write themselves (results/) does not count. Files that git does not track count where
    runs take them from (`SOURCES`).

    Args:
        known: the configurations beside the commit's that count; None: all that there are.
    """
    commit = _commit()
    flags = ("--no-ext-diff", "--no-textconv", "--no-color", "--binary")
    compared = ("HEAD", "--", ".", ":(exclude)results")
    changes = b"" if commit is None else _git("diff", *flags, *compared)
    beside = _own() if commit is None else {**_untracked(), **_own()}
    if known is not None:
        beside = {n: p for n, p in beside.items() if n in known or not _is_configuration(n)}
    configurations = [name for name in beside if _is_configuration(name)]
    if commit is None:
        content = _listed(paths.PACKAGE, "*.py") + _listed(paths.CONF, "*.yaml") + _lines(beside)
        digest = hashlib.sha256(content).hexdigest()
        return {"commit": None, "tree": None, "dirty": None, "diff": digest, NEW: configurations}
    entries = _git("ls-tree", "HEAD").splitlines()
    tree = b"\n".join(line for line in entries if not line.endswith(b"\tresults"))
    changes += _lines(beside)
    return {
        "commit": commit,
        "tree": hashlib.sha256(tree).hexdigest(),
        "dirty": bool(changes),
        "diff": hashlib.sha256(changes).hexdigest() if changes else None,
        NEW: configurations,
    }


def look_since(start: dict[str, Any]) -> dict[str, Any]:
    """What `look` sees without configurations that are new since an earlier look: what was resolved
    by then, as the cells of a frozen sweep were, reads none of them."""
    return look(start.get(NEW))


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two looks saw the same files; a commit that adds records only changes none."""
    return all(first.get(key) == second.get(key) for key in ("tree", "diff"))


def _is_configuration(name: str) -> bool:
    return name.removeprefix("./").startswith("conf/") and name.endswith(".yaml")


def _untracked() -> dict[str, Path]:
    """By name, the files that git neither tracks nor ignores."""
    output = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *SOURCES)
    names = sorted(os.fsdecode(name) for name in output.split(b"\0") if name)
    return {name: path for name in names if (path := paths.ROOT / name).is_file()}


def _own() -> dict[str, Path]:
    """By name, the files of the user's own ./conf."""
    own = paths.own_conf()
    files = [] if own is None else sorted(own.rglob("*.yaml"))
    return {f"./conf/{path.relative_to(own)}": path for path in files if own is not None}


def _lines(files: dict[str, Path]) -> bytes:
    """A line for each file, with its content's hash."""
    lines = (f"{n} {hashlib.sha256(p.read_bytes()).hexdigest()}\n" for n, p in files.items())
    return os.fsencode("".join(lines))


def _listed(root: Path, pattern: str) -> bytes:
    """Names and bytes of the files below a folder that match."""
    return b"".join(
        f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0"
        for path in sorted(root.rglob(pattern))
    )


@cache
def code() -> dict[str, Any]:
    """The code of this process: what it has imported stays as it is, so this is asked once."""
    found = look()
    if found["commit"] is None and (paths.ROOT / ".git").exists():
        say(f"WARNING: git knows no commit of {paths.ROOT}: records will name none, only a hash")
    return found


def differs(old: dict[str, Any], new: dict[str, Any], switch: str) -> str | None:
    """How the code differs from that at a sweep's start, None if it does not.

    Args:
        switch: what allows it.
    """
    if same(old, new):
        return None
    return (
        f"the sweep was started with {_told(old)}, this is {_told(new)}; {switch} runs it all "
        "the same and marks the records"
    )


def _told(code: dict[str, Any]) -> str:
    if code["commit"] is None:
        return f"no git checkout but files {code['diff'][:12]}"
    dirty = f" with changes {code['diff'][:12]}" if code["diff"] else ""
    return f"commit {code['commit'][:12]}{dirty}"
