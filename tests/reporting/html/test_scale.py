"""10,000 records of 50 methods as one page: soon written, not large, soon there."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time

import pytest

from osora_bench.common import paths
from osora_bench.planning.compose import group_choices
from osora_bench.planning.experiments import load_experiment
from osora_bench.planning.grid import expansion
from osora_bench.records import record
from tests.reporting.html import made

pytestmark = [pytest.mark.slow]
METHODS, RANKS, RECORDS = 50, [2, 4, 8, 16], 10_000
SECONDS, MEGABYTES, MEMORY, OPENING = 30, 20, 1.5e9, 3
WRITE = """\
import sys, time
from pathlib import Path
from osora_bench.common import paths
paths.EXPERIMENTS = Path(sys.argv[1])
from osora_bench.cli.main import main
start = time.perf_counter()
status = main(["report", f"ledger={sys.argv[2]}", f"out={sys.argv[3]}"])
print("seconds", time.perf_counter() - start)
sys.exit(status)
"""


def experiment():
    """50 methods, those that have one at four ranks, with as many seeds as make 10,000 cells."""
    names = [m for m in group_choices("method") if m not in ("none", "full")]
    texts = {name: (paths.CONF / "method" / f"{name}.yaml").read_text() for name in names}
    ranked = [name for name in names if "${method.rank}" in texts[name]][:METHODS]
    others = [name for name in names if name not in ranked][: METHODS - len(ranked)]
    assert len(ranked) + len(others) == METHODS
    seeds = -(-RECORDS // (len(RANKS) * len(ranked) + len(others)))
    blocks = f"""\
  - {{model: [toy], method: [{", ".join(ranked)}], rank: {RANKS}}}
  - {{model: [toy], method: [{", ".join(others)}]}}
"""
    old = "  - {model: [toy], method: [lora, osora], rank: [2, 4, 8]}\n"
    assert old in made.EXPERIMENT
    text = made.EXPERIMENT.replace(old, blocks).replace("[0, 1]", str(list(range(seeds))))
    return text.replace("Two methods", "Many methods")


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The folder of one experiment with a whole record of each of its 10,000 cells."""
    folder = tmp_path_factory.mktemp("scale")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "two.yaml").write_text(experiment())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "EXPERIMENTS", folder / "experiments")
        cells = expansion(load_experiment("two"), [f"ledger={folder}/ledger"]).everything
    (folder / "ledger").mkdir()
    chance = random.Random(0)
    for cell in cells:
        body = {**made.whole(cell, (chance.randrange(500), chance.randrange(500))),
                "schema": record.SCHEMA}  # fmt: skip
        body["sha256"] = record._digest(body)
        (folder / "ledger" / f"{cell.run_id}.json").write_text(json.dumps(body))
    assert len(list((folder / "ledger").iterdir())) >= RECORDS
    return folder


def test_it_is_written_and_opens_in_time(grid):
    page = grid / "page.html"
    command = [
        sys.executable,
        "-c",
        WRITE,
        *(str(grid / p) for p in ("experiments", "ledger", "page.html")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    seconds = float(done.stdout.split("seconds ")[1])
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = page.stat().st_size / 1e6
    print(f"{seconds:.1f} s, {memory / 1e9:.2f} GB, {size:.1f} MB")
    assert seconds < SECONDS
    assert memory < MEMORY
    assert size < MEGABYTES
    assert opening(page) < OPENING


def opening(page):
    """Seconds until all of the page can be used."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: .ci/run installs it")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page()
        start = time.perf_counter()
        opened.goto(page.as_uri())
        opened.locator("#all-records tbody tr").first.wait_for()
        seconds = time.perf_counter() - start
        rows = opened.locator("#all-records tbody tr").count()
        browser.close()
    print(f"opens in {seconds:.1f} s")
    assert rows == 50
    return seconds
