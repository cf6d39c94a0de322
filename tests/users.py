"""Other users of the machine, for what is shared with them: a process of root's takes their ids.

What they use has to be imported before: Python may lie where they cannot read.
"""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osora_bench.common import paths

ANNA, BERT = 54321, 54322
"""Ids of two users, neither of whom the machine knows by name."""
GROUP = 54320
"""They have it in common."""

needs_users = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can take another user's id, with setpriv",
)


def as_user(uid: int, work: Callable[[], Any], umask: int = 0o022) -> Any:
    """What `work` gives where a user of GROUP runs it with an umask; what it raises, raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.setgroups([])
            os.setgid(GROUP)
            os.setuid(uid)
            os.umask(umask)
            try:
                answer = (True, work())
            except Exception as error:
                traceback.print_exc(file=sys.__stderr__)
                answer = (False, f"{type(error).__name__}: {error}")
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    assert content, "the user's process said nothing"
    fine, result = pickle.loads(content)
    if not fine:
        raise RuntimeError(result)
    return result


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that the group may write in; pytest's own are for one user alone."""
    folder = Path(tempfile.mkdtemp(prefix="osora-common-", dir="/tmp"))
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


def called(
    folder: Path, *command: str, uid: int = ANNA, umask: int = 0o022, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m osora_bench.cli.main` in a folder, by a user of GROUP whom the machine does not
    know and who has no variables but these and those that the tests need."""
    # where Python lies in root's home, it may be read, and with it all files; none may be written
    reading = [] if _reachable() else [f"--{kind}-caps=+dac_read_search" for kind in READ]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(paths.ROOT), "HF_HUB_OFFLINE": "1",
           "OMP_NUM_THREADS": "1", **environment}  # fmt: skip
    ids = [f"--reuid={uid}", f"--regid={GROUP}", "--clear-groups"]
    return subprocess.run(
        ["setpriv", *ids, *reading, sys.executable, "-m", "osora_bench.cli.main", *command],
        cwd=folder,
        env=env,
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


READ = ("inh", "ambient")


def _reachable() -> bool:
    places = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, paths.ROOT)]
    return all(one.stat().st_mode & 0o001 for p in places for one in (p, *p.parents))
