"""configuration -> adapter: transformers' Trainer around a model that PEFT has wrapped."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from osora_bench.common import interruption, progress
from osora_bench.models.adapter_config import own_optimizer
from osora_bench.models.base import inside
from osora_bench.planning.config import Config
from osora_bench.training import checkpoint
from osora_bench.training.attention import trained_with
from osora_bench.training.callbacks import Diverged, own_callbacks
from osora_bench.training.collator import (
    Collator,
    micro_batches,
    piece,
    takes_places,
    with_places,
)
from osora_bench.training.costs import Meter
from osora_bench.training.data import IGNORED_LABEL, TokenisedTask
from osora_bench.training.effect import Effect, with_effect
from osora_bench.training.hidden_state import ChangingState
from osora_bench.training.linear_loss import linear_loss

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
    def of(cls, record: dict[str, Any]) -> "Training":
        """A training as it was written down."""
        held_out = record["validation"]
        return cls(**{**record, "validation": None if held_out is None else Validation(**held_out)})


def arguments(cfg: Config, folder: Path, device: torch.device) -> TrainingArguments:
    """The cell's trainer section in the Trainer's own terms."""
    trainer = cfg.trainer
    # one process takes an optimiser step's rows as one batch, and shares them out itself
    rows = trainer.micro_batch_size if trainer.processes > 1 else trainer.batch_size
    trainer_arguments = TrainingArguments(
        output_dir=str(folder),
        learning_rate=trainer.learning_rate,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=trainer.batch_size // (rows * trainer.processes),
        num_train_epochs=trainer.epochs,
        max_steps=trainer.max_steps if trainer.max_steps is not None else -1,
        warmup_steps=trainer.warmup_ratio,
        lr_scheduler_type=trainer.schedule,
        weight_decay=trainer.weight_decay,
        optim=trainer.optimizer,
        max_grad_norm=trainer.max_grad_norm,
        bf16=trainer.precision == "bfloat16",
        fp16=trainer.precision == "float16",
        activation_checkpointing=trainer.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        seed=cfg.seed,
        data_seed=cfg.seed,
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
    trainer_arguments._n_gpu = min(trainer_arguments.n_gpu, 1)
    return trainer_arguments


@dataclass(frozen=True)
class TrainingSetup:
    """What a training takes beside the model.

    `held_out` are rows to take the loss of when it is done. `checkpoints` is the folder where they
    are kept, and gone on from. `label` names the cell in the progress bar. `log` is told of each
    step's loss, learning rate, speed and memory. `meter` counts seconds and tokens.
    """

    config: Config
    rows: TokenisedTask
    held_out: TokenisedTask | None
    pad_token_id: int
    checkpoints: Path
    device: torch.device
    label: str
    log: Callable[[dict[str, float]], None]
    meter: Meter = field(default_factory=Meter)


class WholeTrainer(Trainer):
    """Takes the rows of an optimiser step as one batch and shares them out into micro-batches; in
    checkpoints it keeps all that training changes in the model, and gives it back in place.

    Args:
        most_rows: of a micro-batch.
        labelled_only: compute logits where there are labels only.
        make_optimizer: the method's own; None: the recipe's.
    """

    def __init__(
        self,
        *,
        most_rows: int,
        labelled_only: bool,
        make_optimizer: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.most_rows = most_rows
        self.labelled_only = labelled_only
        self.make_optimizer = make_optimizer
        parameters = sum(p.numel() for p in self.model.parameters())
        self.enough = piece(self.args.device, parameters)
        self.changing = ChangingState(self.model)

    def create_optimizer(self, model: Any = None) -> Any:
        if self.make_optimizer is None or self.optimizer is not None:
            return super().create_optimizer(model)
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        made = self.make_optimizer(model=self.model, optimizer_cls=kind, **settings)
        self.optimizer: Any = made
        return made

    def training_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The loss of an optimiser step's rows, by micro-batches whose gradients add up."""
        parts = self._micro_batches(inputs)
        self.current_gradient_accumulation_steps = len(parts)  # of a loss that is a mean over rows
        step = super().training_step
        return torch.stack([step(model, part, num_items_in_batch) for part in parts]).sum()

    def _micro_batches(self, batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        if self.model_accepts_loss_kwargs:  # then each token counts alike, wherever it stands
            shares = micro_batches(lengths, self.most_rows, self.enough)
        else:  # the mean of the rows' means, which depends on who stands beside whom
            rows = range(len(lengths))
            shares = [list(rows[i : i + self.most_rows]) for i in rows[:: self.most_rows]]
        longest = [max(lengths[i] for i in share) for share in shares]
        parts = [
            {name: values[share, :length] for name, values in batch.items()}
            for share, length in zip(shares, longest, strict=True)
        ]
        return [with_places(part) for part in parts] if self.labelled_only else parts

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        torch.save(self.changing.take(), Path(output_dir) / checkpoint.STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        place = Path(resume_from_checkpoint) / checkpoint.STATE
        self.changing.put(torch.load(place, map_location="cpu", weights_only=True))


def train(
    model: Any,
    setup: TrainingSetup,
    trainer_class: type[Any] | None = None,
    callbacks: Sequence[TrainerCallback] | None = None,
) -> Training:
    """Train the adapter of `model` in place, from the newest checkpoint on.

    Args:
        trainer_class: for a model whose weights are shared out; None: this process has it whole.
        callbacks: beside the loop's own; None: checkpoints in time and on a signal.
    """
    with with_effect(model, setup.config.method):
        effect = Effect(model, setup.rows.rows) if trainer_class is None else None
        trainer = _trainer(model, setup, trainer_class, callbacks, effect)
        training = _run(trainer, model, setup, on_whole=effect is not None)
        if effect is not None:
            effect.check_answers(model, trainer.args)
    return training


def _run(trainer: Any, model: Any, setup: TrainingSetup, on_whole: bool) -> Training:
    """Train; the model's forward pass is its own again afterwards."""
    cfg, on_cpu = setup.config.trainer, setup.device.type == "cpu" and on_whole
    start = checkpoint.newest(setup.checkpoints)
    if start is not None:
        progress.say(f"{setup.label}: goes on from {start}")
    try:
        loss = linear_loss(model) if on_cpu else nullcontext()
        with trained_with(model, cfg.attention, on_cpu=on_cpu), loss:
            trainer.train(resume_from_checkpoint=None if start is None else str(start))
            _need_numbers(model)
            return _summary(trainer, setup)
    finally:
        _without_autocast(model)
        if cfg.gradient_checkpointing:  # else the base's next cell has it too
            inside(model).gradient_checkpointing_disable()


def _trainer(
    model: Any,
    setup: TrainingSetup,
    trainer_class: type[Any] | None,
    callbacks: Sequence[TrainerCallback] | None,
    effect: Effect | None,
) -> Any:
    """The Trainer of `train`."""
    if callbacks is None:
        seconds, signals = checkpoint.every(setup.config), interruption.current()
        callbacks = [checkpoint.Checkpoints(setup.checkpoints, seconds, signals)]
    labelled_only, cfg, method = takes_places(model), setup.config.trainer, setup.config.method
    make: Callable[..., Any] = trainer_class or partial(
        WholeTrainer,
        most_rows=cfg.micro_batch_size,
        labelled_only=labelled_only,
        make_optimizer=own_optimizer(method),
    )
    whole = trainer_class is None
    own = own_callbacks(model, setup.label, setup.log, method, effect)
    trainer = make(
        model=model,
        args=arguments(setup.config, setup.checkpoints, setup.device),
        train_dataset=setup.rows.rows,
        data_collator=Collator(setup.pad_token_id, labelled_only and not whole),
        callbacks=[*own, setup.meter, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _need_numbers(model: Any) -> None:
    """Whatever watched the steps: what is saved must be numbers. Of shares, each looks at its own.

    Raises:
        Diverged: they are not.
    """
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            own = weight.detach()
            own = own.to_local() if hasattr(own, "to_local") else own
            if not bool(own.isfinite().all()):
                raise Diverged(f"after the training, {name} holds NaN or infinite numbers")


def _without_autocast(model: Any) -> None:
    """Give a model its own forward pass back.

    accelerate puts one in the training's precision over it and leaves it there: what is computed
    afterwards would be another model's than the one that is saved. Nor would a model that it has
    marked as prepared be given the precision of the next training.
    """
    held = vars(model)
    own = held.pop("_original_forward", None)
    held.pop("_is_accelerate_prepared", None)
    if own is None:
        return
    del model.forward
    if model.forward != own:  # it had been exchanged before
        model.forward = own


def _summary(trainer: Any, setup: TrainingSetup) -> Training:
    """What a record says of a training that is done; the loss on the held-out rows is taken."""
    losses = [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e]
    return Training(
        steps=trainer.state.global_step,
        rows=len(setup.rows.rows),
        truncated_rows=setup.rows.truncated,
        tokens=int(trainer.state.num_input_tokens_seen),
        loss=_brief(losses, CURVE_POINTS),
        validation=_validate(trainer, setup),
    )


def _validate(trainer: Any, setup: TrainingSetup) -> Validation | None:
    """The loss on the held-out rows, each token counting alike whatever batch it stands in; longest
    rows first, so that batches have little padding and too little memory shows at once."""
    if setup.held_out is None:
        return None
    model, rows, total, tokens = trainer.model, setup.held_out.rows, 0.0, 0
    rows_by_length = sorted(rows, key=lambda row: -len(row["input_ids"]))
    size = setup.config.trainer.micro_batch_size
    collator = Collator(setup.pad_token_id, takes_places(model))
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for begin in range(0, len(rows_by_length), size):
            batch = collator(rows_by_length[begin : begin + size])
            labels = batch["labels"][:, 1:]
            token_count = int((labels != IGNORED_LABEL).sum())
            inputs = {key: value.to(model.device) for key, value in batch.items()}
            total += float(model(**inputs).loss) * token_count
            tokens += token_count
    model.train()
    if not math.isfinite(total):
        raise Diverged(f"the loss on the validation rows is {total / tokens}")
    return Validation(len(rows), tokens, round(total / tokens, 6))


def _brief(losses: list[tuple[int, float]], points: int) -> list[list[float]]:
    """Means over at most `points` equal stretches of the curve, each at its last step."""
    width = max(1, -(-len(losses) // points))
    stretches = [losses[i : i + width] for i in range(0, len(losses), width)]
    return [[s[-1][0], round(sum(loss for _, loss in s) / len(s), 6)] for s in stretches]
