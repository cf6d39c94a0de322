"""What one of the processes does that share a training: it meets the others and trains its part."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers

from osora_bench.models import adapters
from osora_bench.models.base import device_of, load_base, quiet_libraries
from osora_bench.planning.cell import Cell
from osora_bench.training import checkpoint, data
from osora_bench.training import train as training
from osora_bench.training.costs import CostMeter
from osora_bench.training.fsdp import launch, sharding

PATIENCE = timedelta(hours=2)
"""How long they wait for one another; one that dies is seen by the cell's process, not by this."""


def join_and_train(cell: Cell, folder: Path, signal_number: Callable[[], int | None]) -> None:
    """Meet the others, then train.

    Raises:
        Interrupted: asked to stop; what was done is kept.
    """
    quiet_libraries()
    device = device_of(cell.config)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    sharding.join(folder / launch.MEETING, device, PATIENCE)
    train_part(cell, folder, device, signal_number)


def train_part(
    cell: Cell, folder: Path, device: torch.device, signal_number: Callable[[], int | None]
) -> None:
    """Train a part of the cell's model; rank 0 writes down what all have made."""
    base = load_base(cell.config.model, torch.device("cpu"))
    meter = CostMeter(base.model, device)
    transformers.set_seed(cell.config.seed)
    model = meter.started(lambda: adapters.with_fresh_adapter(base.model, cell))
    trainable = adapters.trainable(model)
    sharding.shard(model, base.model, device)
    setup = training.TrainingSetup(
        cell.config,
        rows=data.tokenised(cell.config, base.tokenizer),
        held_out=data.held_out(cell.config, base.tokenizer),
        pad_token_id=base.tokenizer.pad_token_id,
        checkpoints=cell.paths.shards(cell.config.processes),
        device=device,
        label=cell.label,
        log=_log(folder),
        meter=meter.loop,
    )
    callbacks = _callbacks(cell, signal_number)
    with meter.training(sharded=True):
        summary = training.train(model, setup, sharding.ShardedTrainer, callbacks)
    tensors = sharding.whole(model)
    if os.environ["RANK"] == "0":
        adapters.save(model, base, cell, tensors)
        made = {"training": asdict(summary), "trainable": trainable, "costs": meter.costs()}
        (folder / launch.TRAINING).write_text(json.dumps(made), encoding="utf-8")


def _callbacks(cell: Cell, signal_number: Callable[[], int | None]) -> list[Any]:
    shards, every = cell.paths.shards(cell.config.processes), checkpoint.every(cell.config)
    return [sharding.SharedCheckpoints(shards, every, signal_number)]


def _log(folder: Path) -> Callable[[dict[str, float]], None]:
    """Adds what rank 0 has to tell of each step to a file, a line each, for the process that tracks
    the cell."""

    def log(values: dict[str, float]) -> None:
        if os.environ["RANK"] == "0":
            with (folder / launch.LOGS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    return log
