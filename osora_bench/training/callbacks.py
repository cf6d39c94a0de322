"""What happens beside the training loop: progress, curves, divergence, rank budgets."""

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from osora_bench.common import progress
from osora_bench.common.errors import UserError
from osora_bench.models import memory
from osora_bench.models.adapter_config import hooks
from osora_bench.planning.config import MethodConfig
from osora_bench.training.effect import Effect


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
        timestamp, tokens = time.monotonic(), state.num_input_tokens_seen
        self.log(
            {
                "step": state.global_step,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "tokens_per_second": (tokens - self.tokens) / (timestamp - self.time),
                "memory_gb": memory.used(args.device) / 1e9,
            }
        )
        self.tokens, self.time = tokens, timestamp


class Diverged(ArithmeticError):
    """The loss is no number any more; nothing that follows could bring it back."""


class LossGuard(TrainerCallback):
    """Stops a training at the step whose loss is NaN or infinite, or whose gradients are: they
    have spoilt the weights already, unless float16's scaling has left the step out."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        quantities = {"loss": "loss"} | (
            {} if args.fp16 else {"grad_norm": "norm of the gradients"}
        )
        for key, name in quantities.items():
            if logs and not math.isfinite(logs.get(key, 0.0)):
                raise Diverged(
                    f"the {name} is {logs[key]} at step {state.global_step} of {state.max_steps}; "
                    "a smaller trainer.learning_rate, a warm-up or trainer.precision=float32 may "
                    "help"
                )


class Allocation(TrainerCallback):
    """Moves a rank budget between layers as AdaLoRA and its kin ask: PEFT leaves the call, between
    the optimiser's step and the zeroing of gradients, to the training loop."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """AdaLoRA's schedule ends with the training, however many steps a recipe comes to."""
        allocator: Any = getattr(model.base_model, "rankallocator", None)
        if not hasattr(allocator, "set_total_step"):
            return
        settings = model.active_peft_config
        if settings.tinit >= state.max_steps - settings.tfinal:
            raise UserError(
                f"the training has {state.max_steps} steps: method.peft.tinit={settings.tinit} and "
                f"method.peft.tfinal={settings.tfinal} leave none in which ranks are given out"
            )
        # at its last step it judges by the steps before, of which a training of one has none
        allocator.set_total_step(max(state.max_steps, 2))

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        model.base_model.update_and_allocate(state.global_step + 1)  # not counted yet


def own_callbacks(
    model: Any,
    label: str,
    log: Callable[[dict[str, float]], None],
    method: MethodConfig,
    effect: Effect | None,
) -> list[TrainerCallback]:
    """The loop's own, and what the method asks for: by a budget that its tuner gives out, or by
    the callbacks that its file names.

    Args:
        effect: None where this process has a share of the model, whose gradients may well be 0.
    """
    allocates = hasattr(getattr(model, "base_model", None), "update_and_allocate")
    return [
        ProgressBar(label),
        Curves(log),
        LossGuard(),
        *([] if effect is None else [effect]),
        *([Allocation()] if allocates else []),
        *hooks(method),
    ]
