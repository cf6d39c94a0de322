"""Shared by all tests: no hub, a ledger and runs folder of one's own, one session a process."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

from osora_bench.planning.cell import Cell, cell_of
from osora_bench.planning.compose import compose, composer, resolve

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # why: pipeline/attempt.py
# tiny matrices: more threads wait for each other, and the longer the more processes there are
os.environ.setdefault("OMP_NUM_THREADS", "1")

import absl.logging
import pytest

from tests.field import is_reported

# a shell that starts pytest in the background has these ignored; tests send them to themselves
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# absl (OpenCompass imports it) closes its stream when Hydra sets logging up anew: not pytest's
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the situations of bug reports. Where processes share the files (`make test`), those that
    take longest begin first: what is short fills the gaps at the end."""
    for item in items:
        if is_reported(item.nodeid):
            item.add_marker(pytest.mark.field)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    weight: Counter[Path] = Counter()
    for item in items:
        sweep, long = (item.get_closest_marker(mark) is not None for mark in ("sweep", "long"))
        weight[item.path] += 10 * sweep + long
    items.sort(key=lambda item: -weight[item.path])  # stable: a file's tests stay as they are


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Overrides that keep a test's records and runs in its own folder."""
    return [f"ledger={tmp_path}/ledger", f"runs={tmp_path}/runs"]


QUICK = [
    "trainer.max_steps=2",
    "eval.datasets.0.limit=6",
    "eval.datasets.1.limit=6",
]
"""Two steps and twelve questions: enough to see a cell through."""


@pytest.fixture
def make_cell(places):
    """Compose one cell from overrides, in the test's own places."""

    def make(*overrides: str) -> Cell:
        chosen = [*places, *overrides]
        with composer():
            return cell_of(resolve(compose(chosen, "test"), "test"), chosen)

    return make


@pytest.fixture(scope="session")
def session():
    from osora_bench.pipeline.attempt import session

    return session()


@pytest.fixture
def two_threads():
    """For what must hold with several threads too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
