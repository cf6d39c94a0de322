"""Run by test_fsdp.py as each of two processes: trains cells one after another, tells of its parts.

python tests/training/sharing.py FOLDER

RANK and WORLD_SIZE stand in the environment, the cells in FOLDER/cells.json.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch

from osora_bench.common.interruption import Interrupted
from osora_bench.models import base as models
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import Config
from osora_bench.training.fsdp import part, sharding

FOLDER = Path(sys.argv[1])
parts: dict[str, list[int]] = {}
shard = sharding.shard


def told(model, base, device):
    """Shard, and keep for every parameter: whether it is sharded, its bytes here and in all."""
    shard(model, base, device)
    parts.clear()
    for name, parameter in model.named_parameters():
        sharded_here = (
            isinstance(parameter, sharding.DTensor) and parameter.placements[0].is_shard()
        )
        here = parameter.to_local() if sharded_here else parameter
        parts[name] = [sharded_here, here.nbytes, parameter.numel() * parameter.itemsize]


def stopping(step):
    """A signal that comes in the middle of the so manieth step from here, on rank 0 alone."""
    steps = iter(range(1, 1000))
    return lambda: 15 if next(steps) == step and os.environ["RANK"] == "0" else None


def main():
    models.quiet_libraries()
    sharding.shard = told
    device = torch.device("cpu")
    sharding.join(FOLDER / "meeting", device, timedelta(seconds=60))
    made = []
    for one in json.loads((FOLDER / "cells.json").read_text()):
        cell = Cell(one["run_id"], Config.of(one["config"]), ())
        folder = FOLDER / one["name"]
        stopped = 0
        for step in [*one["stops"], None]:
            try:
                part.train_part(cell, folder, device, stopping(step))
            except Interrupted:
                stopped += 1
        made.append({"name": one["name"], "stopped": stopped, "parts": dict(parts)})
    (FOLDER / f"told-{os.environ['RANK']}.json").write_text(json.dumps(made))


if __name__ == "__main__":
    main()
