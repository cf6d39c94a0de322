"""Hydra entry of a SLURM job: one cell of a frozen sweep. submit_process.py starts a multirun."""

import os
from pathlib import Path

import hydra
from omegaconf import DictConfig

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.common.process import name_user
from osora_bench.common.progress import say
from osora_bench.sweep import frozen_plan


def run_cell(plan: Path, run_id: str, allow_changed: bool) -> None:
    """Run a cell of a sweep, unless it is done or runs elsewhere.

    What refuses to run (other code or files than the sweep's, no GPU on this node) is written down
    as a failure of the cell: nobody reads this process's own exit status.
    """
    name_user()
    from osora_bench.pipeline import preflight
    from osora_bench.sweep import worker_process  # torch

    sweep = frozen_plan.thaw(plan, only=run_id)
    (cell,) = sweep.cells
    if not sweep.waits(cell):
        say(f"{cell.label}: nothing to do, it is {cell.state}")
        return
    say(f"{cell.label}: on node {os.environ.get('SLURMD_NODENAME', 'unknown')}")
    try:
        preflight.check_cells([cell])
        worker_process.work(sweep, allow_changed)
    except UserError as error:
        cell.fail(str(error))
        say(f"{cell.label}: FAILED, {error}")


@hydra.main(version_base="1.3", config_path=str(paths.CONF), config_name="job")
def main(cfg: DictConfig) -> None:
    """One job of the multirun."""
    run_cell(Path(cfg.plan), cfg.cell, cfg.allow_changed)
