"""configuration -> adapter: transformers' Trainer around a model that PEFT has wrapped."""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss

from osora_bench.common import interruption, progress
from osora_bench.models import memory
from osora_bench.models.base import inside
from osora_bench.training import checkpoint
from osora_bench.training.data import IGNORED_LABEL, TokenisedTask

CURVE_POINTS = 50
"""Points of the loss curve that a record keeps."""


@dataclass(frozen=True)
class Validation:
    """The mean loss of `tokens` tokens (nats) in the rows that were kept out of training."""

    rows: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Training:
    """What a record says of a training run. `loss` holds [step, mean loss since the last one]."""

    steps: int
    rows: int
    truncated_rows: int
    tokens: int
    loss: list[list[float]]
    validation: Validation | None = None

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Training":
        """A training as it was written down."""
        held_out = told["validation"]
        return cls(**{**told, "validation": None if held_out is None else Validation(**held_out)})


class Collator:
    """Pads rows on the right to the longest of the batch.

    Args:
        labelled_only: have the model compute logits only where one of the rows has a label. With
            the loss on the answers these are few, and the vocabulary is a model's widest layer.
    """

    def __init__(self, pad_token_id: int, labelled_only: bool = False) -> None:
        self.pad_token_id = pad_token_id
        self.labelled_only = labelled_only

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Stack rows into int64 tensors of shape (batch, longest row)."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, value: int) -> torch.Tensor:
            return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

        mask = [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows]
        labels = padded("labels", IGNORED_LABEL)
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "attention_mask": torch.tensor(mask),
            "labels": labels,
            **(_places(labels) if self.labelled_only else {}),
        }


def _places(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Where in (batch, length) any row has a next token to learn, and these: (batch, places)."""
    ahead = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    places = (ahead != IGNORED_LABEL).any(dim=0).nonzero()[:, 0]
    if not len(places):  # rows without a label: a loss of nothing
        places = torch.zeros(1, dtype=torch.long)
    return {"logits_to_keep": places, "shift_labels": ahead[:, places].contiguous()}


def takes_places(model: Any) -> bool:
    """Whether a model computes the loss of some places only: transformers' own loss for causal
    language models, and no virtual tokens that move the places."""
    base = inside(model)
    adapter = getattr(model, "active_peft_config", None)
    return (
        "logits_to_keep" in inspect.signature(base.forward).parameters
        and base.loss_function is ForCausalLMLoss
        and not getattr(adapter, "is_prompt_learning", False)
    )


class ProgressBar(TrainerCallback):
    """One line a cell: steps done, time left, the last loss."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = progress.bar(state.max_steps, f"train {self.label}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


class Curves(TrainerCallback):
    """Hands on what a tracker shows of each step. Not transformers' own callbacks: they call the
    tracker's library in the middle of training, which then waits for it or dies with it."""

    def __init__(self, log: Callable[[dict[str, float]], None]) -> None:
        self.log = log
        self.tokens, self.time = 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tokens, self.time = state.num_input_tokens_seen, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now, tokens = time.monotonic(), state.num_input_tokens_seen
        self.log(
            {
                "step": state.global_step,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "tokens_per_second": (tokens - self.tokens) / (now - self.time),
                "memory_gb": memory.used(args.device) / 1e9,
            }
        )
        self.tokens, self.time = tokens, now


class Diverged(ArithmeticError):
    """The loss is no number any more; nothing that follows could bring it back."""


class LossGuard(TrainerCallback):
    """Stops a training at the step whose loss is NaN or infinite, or whose gradients are: they
    have spoilt the weights already, unless float16's scaling has left the step out."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        watched = {"loss": "loss"} | ({} if args.fp16 else {"grad_norm": "norm of the gradients"})
        for key, what in watched.items():
            if logs and not math.isfinite(logs.get(key, 0.0)):
                raise Diverged(
                    f"the {what} is {logs[key]} at step {state.global_step} of {state.max_steps}; "
                    "a smaller trainer.learning_rate, a warm-up or trainer.precision=float32 may "
                    "help"
                )


class Allocation(TrainerCallback):
    """Moves a rank budget between layers as AdaLoRA and its kin ask: PEFT leaves the call, between
    the optimiser's step and the zeroing of gradients, to the training loop."""

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        model.base_model.update_and_allocate(state.global_step + 1)  # not counted yet


def _own_callbacks(
    model: Any, label: str, log: Callable[[dict[str, float]], None]
) -> list[TrainerCallback]:
    allocates = hasattr(getattr(model, "base_model", None), "update_and_allocate")
    return [ProgressBar(label), Curves(log), LossGuard(), *([Allocation()] if allocates else [])]


def arguments(cfg: dict[str, Any], folder: Path, device: torch.device) -> TrainingArguments:
    """The cell's trainer section in the Trainer's own terms."""
    trainer = cfg["trainer"]
    at_once = trainer["micro_batch_size"] * trainer["processes"]
    made = TrainingArguments(
        output_dir=str(folder),
        learning_rate=trainer["learning_rate"],
        per_device_train_batch_size=trainer["micro_batch_size"],
        gradient_accumulation_steps=trainer["batch_size"] // at_once,
        num_train_epochs=trainer["epochs"],
        max_steps=trainer["max_steps"] if trainer["max_steps"] is not None else -1,
        warmup_steps=trainer["warmup_ratio"],
        lr_scheduler_type=trainer["schedule"],
        weight_decay=trainer["weight_decay"],
        optim=trainer["optimizer"],
        max_grad_norm=trainer["max_grad_norm"],
        bf16=trainer["precision"] == "bfloat16",
        fp16=trainer["precision"] == "float16",
        activation_checkpointing=trainer["gradient_checkpointing"],
        activation_checkpointing_kwargs={"use_reentrant": False},
        seed=cfg["seed"],
        data_seed=cfg["seed"],
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        report_to=[],
        logging_steps=1,
        save_strategy="no",  # Checkpoints says when
        save_total_limit=checkpoint.KEPT,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        include_num_input_tokens_seen="non_padding",
        # a shard's gradient is summed over the processes as it comes: the whole one, which would
        # wait for the step's last rows, may not fit
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    )
    # a cell has one GPU; on a machine with several the Trainer would copy the model to each, and a
    # batch would be as many times as large
    made._n_gpu = min(made.n_gpu, 1)
    return made


def train(
    model: Any,
    task: TokenisedTask,
    cfg: dict[str, Any],
    *,
    held_out: TokenisedTask | None = None,
    pad_token_id: int,
    folder: Path,
    device: torch.device,
    label: str,
    log: Callable[[dict[str, float]], None],
    trainer_class: type[Any] = Trainer,
    callbacks: Sequence[TrainerCallback] | None = None,
) -> Training:
    """Train the adapter of `model` in place on the tokenised rows, from the newest checkpoint on.

    Args:
        held_out: rows to take the loss of when training is done.
        folder: where checkpoints are kept.
        label: names the cell in the progress bar.
        log: told of each step's loss, learning rate, speed and memory.
        callbacks: beside the loop's own; None: checkpoints in time and on a signal.
    """
    if callbacks is None:
        every, asked = checkpoint.every(cfg), interruption.current()
        callbacks = [checkpoint.Checkpoints(folder, every, asked)]
    trainer = trainer_class(
        model=model,
        args=arguments(cfg, folder, device),
        train_dataset=task.rows,
        data_collator=Collator(pad_token_id, takes_places(model)),
        callbacks=[*_own_callbacks(model, label, log), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    start = checkpoint.newest(folder)
    if start is not None:
        progress.say(f"{label}: goes on from {start}")
    trainer.train(resume_from_checkpoint=None if start is None else str(start))
    losses = [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e]
    return Training(
        steps=trainer.state.global_step,
        rows=len(task.rows),
        truncated_rows=task.truncated,
        tokens=int(trainer.state.num_input_tokens_seen),
        loss=_brief(losses, CURVE_POINTS),
        validation=None if held_out is None else _validate(trainer, held_out.rows),
    )


def _validate(trainer: Any, rows: list[dict[str, list[int]]]) -> Validation:
    """The loss on rows, each token counting alike whatever batch it stands in; longest rows first,
    so that batches have little padding and too little memory shows at once."""
    model, total, tokens = trainer.model, 0.0, 0
    ordered = sorted(rows, key=lambda row: -len(row["input_ids"]))
    size = trainer.args.per_device_train_batch_size
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for begin in range(0, len(ordered), size):
            batch = trainer.data_collator(ordered[begin : begin + size])
            labels = batch["labels"][:, 1:]
            counted = int((labels != IGNORED_LABEL).sum())
            moved = {key: value.to(model.device) for key, value in batch.items()}
            total += float(model(**moved).loss) * counted
            tokens += counted
    model.train()
    if not math.isfinite(total):
        raise Diverged(f"the loss on the validation rows is {total / tokens}")
    return Validation(len(rows), tokens, round(total / tokens, 6))


def _brief(losses: list[tuple[int, float]], points: int) -> list[list[float]]:
    """Means over at most `points` equal stretches of the curve, each at its last step."""
    width = max(1, -(-len(losses) // points))
    stretches = [losses[i : i + width] for i in range(0, len(losses), width)]
    return [[s[-1][0], round(sum(loss for _, loss in s) / len(s), 6)] for s in stretches]
