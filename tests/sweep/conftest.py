"""What tests of sweeps on SLURM share: short cells, how they start, quick looks at the queue."""

import pytest

from osora_bench.sweep.slurm import sweep as slurm

SHORT = ["trainer.max_steps=3", "eval.datasets.0.limit=4", "eval.datasets.1.limit=4"]
SMALL = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]
ON_SLURM = ("hydra/launcher=slurm", *SMALL)
QUICK = {"LOOK_EVERY": 0.5, "ASK_EVERY": 0.5, "GRACE": 2.0}


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in QUICK.items():
        monkeypatch.setattr(slurm, name, seconds)


@pytest.fixture
def grid(make_cell, tmp_path):
    """Cells of several methods in a place of their own."""

    def make(where, methods, *overrides):
        place = [f"ledger={tmp_path}/{where}/ledger", f"runs={tmp_path}/{where}/runs"]
        return [make_cell(*place, f"method={m}", *overrides) for m in methods]

    return make
