"""A home that cannot be written, or none: what an evaluation writes lies elsewhere."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import QUICK

HOMES = {
    "no folder": {"HOME": "/dev/null"},
    "unset": {"HOME": None},
    "caches too": {"HOME": "/proc", "HF_HOME": "/proc/hf", "XDG_CACHE_HOME": "/proc/cache"},
    "datasets alone": {"HF_DATASETS_CACHE": "/dev/null/datasets", "COMPASS_DATA_CACHE": "/proc/c"},
}


@pytest.mark.long
@pytest.mark.parametrize("home", HOMES)
def test_a_cell_ends_with_its_record_whatever_the_home(home, places, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    for key, value in HOMES[home].items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = value
    told = [sys.executable, "-m", "osora_bench", "method=lora", *QUICK, *places]
    done = subprocess.run(told, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(next((tmp_path / "ledger").glob("*.json")).read_text())
    assert [score["n"] for score in made["scores"].values()] == [6, 6]
    assert not list((tmp_path / "tmp").glob("osora-*"))  # nothing of ours is left behind
