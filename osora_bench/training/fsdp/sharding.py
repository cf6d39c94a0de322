"""A model whose weights are shared out among processes (FSDP2), and transformers' Trainer on it.

Every process makes the whole model with its adapter; `shard` then leaves each with its part. The
Trainer is told that the model looks after itself, as those do that transformers shards when it
loads them, so accelerate wraps nothing. docs/fsdp.md says why it is done so.
"""

import math
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.data_loader import SeedableRandomSampler
from peft import get_peft_model_state_dict
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

from osora_bench.common.interruption import Interrupted, Interruption
from osora_bench.models.base import checksums
from osora_bench.models.skeleton import decoder_layers
from osora_bench.training.checkpoint import SHARDS, Checkpoints, seal
from osora_bench.training.data import IGNORED_LABEL

SCHEDULER = "scheduler.pt"
# frozen weights are read from the model's own files
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def join(meeting: Path, device: torch.device, patience: timedelta) -> None:
    """Make this one of the processes that the environment numbers and that meet at a file."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=patience,
    )


def shard(model: Any, base: Any, device: torch.device) -> None:
    """Leave each process its part of every parameter, on its device; buffers stay whole.

    A decoder layer is gathered while it is computed, all outside of them for the whole step.

    Args:
        model: `base`, or the PEFT model around it; the same in every process.

    Raises:
        RuntimeError: the processes do not hold the same model.
    """
    _need_the_same(checksums(model))
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in decoder_layers(base):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    base._is_distributed_loading_by_transformers = True  # what the Trainer asks it


def _need_the_same(sums: dict[str, int]) -> None:
    """Parts of different tensors would make up one that nobody meant."""
    all_sums: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_sums, sums)
    for other_sums in all_sums:
        if other_sums != sums:
            names = sorted(
                n for n in sums.keys() | other_sums.keys() if sums.get(n) != other_sums.get(n)
            )
            raise RuntimeError(
                f"the processes start from different weights: {', '.join(names[:3])} ...; "
                "the method's start depends on more than the seed"
            )


def together() -> None:
    """Wait until every process is here."""
    dist.all_reduce(torch.zeros(1))


def whole(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a sharded model that are saved (those that PEFT saves of it, or all), gathered
    on the CPU of rank 0, none elsewhere. Every process must call this."""
    state = model.state_dict()
    if hasattr(model, "peft_config"):
        saved_ids = {id(t) for t in get_peft_model_state_dict(model, state_dict=state).values()}
        names = {name for name, tensor in state.items() if id(tensor) in saved_ids}
    else:  # tied ones by their first name
        names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    gathered = {}
    for name, tensor in state.items():
        if name not in names:
            continue
        full_tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if dist.get_rank() == 0:
            gathered[name] = full_tensor.cpu()
    return gathered


class Shares(Sampler[list[int]]):
    """A process's rows of each batch: those of one process's order, dealt out in turn.

    Where rows run out, a process gets the `filler`, whose loss is nothing, and not rows from the
    beginning again, as accelerate does: a step sees the rows that it would see in one process.
    """

    def __init__(self, order: Any, size: int, filler: int) -> None:
        self.order = order
        self.size = size
        self.filler = filler

    def __len__(self) -> int:
        return math.ceil(len(self.order) / (self.size * dist.get_world_size()))

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.order)
        for batch in range(len(self)):
            first = (batch * dist.get_world_size() + dist.get_rank()) * self.size
            yield rows[first : first + self.size] or [self.filler]

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, another order."""
        self.order.set_epoch(epoch)


class Loader(DataLoader[Any]):
    """Hands the epoch on, for which the Trainer asks the loader itself."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, Shares)
        self.batch_sampler.set_epoch(epoch)


class ShardedTrainer(Trainer):
    """Trains a sharded model on the rows, steps and losses of one process, to round-off."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not self.model_accepts_loss_kwargs:
            raise RuntimeError(
                "this model's loss is a mean over the rows at hand, not over those of all "
                "processes: trainer.processes=1"
            )

    def get_train_dataloader(self) -> Loader:
        filler = {"input_ids": [self.data_collator.pad_token_id], "labels": [IGNORED_LABEL]}
        order = SeedableRandomSampler(self.train_dataset, data_seed=self.args.data_seed)
        size = self.args.per_device_train_batch_size
        rows: Any = [*self.train_dataset, filler]
        return Loader(
            rows,
            batch_sampler=Shares(order, size, len(self.train_dataset)),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _track_num_input_tokens(self, inputs: dict[str, torch.Tensor]) -> None:
        if bool((inputs["labels"] == IGNORED_LABEL).all()):  # the filler
            inputs = {**inputs, "attention_mask": torch.zeros_like(inputs["attention_mask"])}
        super()._track_num_input_tokens(inputs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Of a checkpoint: nothing; what is trained is saved with the optimiser."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save(self._shards(), checkpoint_id=Path(output_dir) / SHARDS)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing yet: the optimiser that it is loaded with has not been made."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = self._shards()
        load(state, checkpoint_id=Path(checkpoint) / SHARDS)
        set_state_dict(
            self.model,
            self.optimizer.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=TRAINED,
        )
        scheduler = torch.load(Path(checkpoint) / SCHEDULER, weights_only=True)
        self.lr_scheduler.load_state_dict(scheduler)

    def _shards(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer.optimizer, options=TRAINED)
        return {"model": model, "optimizer": optimizer}


class Stop(Interruption):
    """A signal that the processes have agreed on."""

    def safe_point(self) -> None:
        if self.number is not None:
            raise Interrupted(self.number)


class SharedCheckpoints(Checkpoints):
    """Checkpoints of all processes at the steps that rank 0 says, whole when the last has written.

    Args:
        signal_number: the number of the signal that rank 0's parent has had, if any.
    """

    def __init__(
        self, folder: Path, every: float | None, signal_number: Callable[[], int | None]
    ) -> None:
        super().__init__(folder, every, Stop())
        self.signal_number = signal_number

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.interruption.number = self.signal_number()
        super().on_step_end(args, state, control)
        decision = torch.tensor([control.should_save, self.interruption.number or 0])
        dist.broadcast(decision, src=0)
        control.should_save, self.interruption.number = bool(decision[0]), int(decision[1]) or None

    def _seal(self, folder: Path) -> None:
        together()  # all have written
        if dist.get_rank() == 0:
            seal(folder)
        together()  # it counts before any of them ends
