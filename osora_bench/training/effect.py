"""Whether a training changes anything: its tensors, and what the model answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from osora_bench.common.errors import UserError
from osora_bench.models.trial import plain_losses, trial_texts
from osora_bench.planning.config import MethodConfig
from osora_bench.training.hidden_state import mark

ROWS, TOKENS = 8, 256
"""Training rows whose answers are compared, and how many of a row's last tokens are read: a method
may act on tokens that no made-up text has."""
FEW = 10
"""Steps whose changes numbers of 16 bits may round away."""


class NoEffect(UserError):
    """What is trained is nothing, or something that the model's answers do not depend on."""


class Effect(TrainerCallback):
    """Stops a training that moves nothing. After two steps a trained number has had a gradient
    other than 0, or no loss has depended on any; and at the full learning rate a trained tensor
    is not what it was, or a callback, say, takes back what the steps do. `check_answers`, at the
    end, is for tensors that change without the model.

    Warm-up counts by the rates that the steps have had: one at 0 changes nothing.

    Args:
        model: as it is before any step, also of a training that goes on from a checkpoint.
        rows: that it is trained on.
    """

    STEPS = 2

    def __init__(self, model: Any, rows: Sequence[dict[str, list[int]]]) -> None:
        self.moves = False
        self.rates, self.steps = 0.0, 0
        self.checked = False
        self.start = dict(_marks(model))
        ends = [row["input_ids"][-TOKENS:] for row in rows[:ROWS]]
        self.texts = [*trial_texts(model), *(end for end in ends if len(end) > 1)]
        self.answers = self._answers(model)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        if state.global_step < self.STEPS and not self.moves:
            gradients = (p.grad for p in model.parameters() if p.grad is not None)
            self.moves = any(bool(gradient.any()) for gradient in gradients)

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        if not getattr(optimizer, "step_was_skipped", False):  # float16's scaling does
            self.rates += max(float(group["lr"]) for group in optimizer.param_groups)
            self.steps += 1

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == min(self.STEPS, state.max_steps) and not self.moves:
            raise NoEffect(
                f"changes nothing: after {state.global_step} steps every gradient is 0, the loss "
                "does not depend on what is trained"
            )
        trained = (p for p in model.parameters() if p.requires_grad)
        if not self.checked and self.steps >= self.STEPS and self._enough(args, trained):
            self.checked = True
            if all(self.start.get(name) == now for name, now in _marks(model)):
                raise NoEffect(
                    f"changes nothing: after {state.global_step} steps every trained tensor is "
                    "what it was at the start, as if something took the steps back"
                )

    def check_answers(self, model: Any, args: Any) -> None:
        """Once the training is over and the model's forward pass its own again.

        Raises:
            NoEffect: each loss of the texts is bit for bit what it was.
        """
        if not self._enough(args, model.parameters()):
            return
        if torch.equal(self._answers(model), self.answers):
            raise NoEffect(
                f"changes nothing: after {self.steps} steps the model gives every token of "
                f"{len(self.texts)} texts, training rows among them, the probability that it gave "
                "it before any: what is trained does not act, or trainer.learning_rate="
                f"{args.learning_rate} is far too small"
            )

    def _enough(self, args: Any, tensors: Any) -> bool:
        """Whether the steps so far, by their rates, must have changed tensors of such numbers."""
        exact = all(torch.finfo(t.dtype).bits >= 32 for t in tensors if t.is_floating_point())
        return self.rates > 0 and self.rates >= args.learning_rate * (1 if exact else FEW)

    def _answers(self, model: Any) -> torch.Tensor:
        """The loss of each token of the texts; the model is left in its modes."""
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        with torch.random.fork_rng():
            losses = torch.cat([plain_losses(model, text) for text in self.texts])
        for module, training in modes:
            module.training = training
        return losses


def _marks(model: Any) -> Iterator[tuple[str, Any]]:
    """What tells each trained tensor from another."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, mark(parameter)


@contextmanager
def with_effect(model: Any, method: MethodConfig) -> Iterator[None]:
    """Refuses a training that moves nothing, in the name of its method.

    Raises:
        NoEffect: see there.
    """
    told = f"method {method.name}"
    if not any(p.requires_grad for p in model.parameters()):
        raise NoEffect(f"{told} trains nothing: every parameter of the model is frozen")
    try:
        yield
    except NoEffect as error:
        raise NoEffect(f"{told} {error}") from error
    except RuntimeError as error:
        if "does not require grad" not in str(error):  # torch's, of a loss
            raise
        raise NoEffect(
            f"{told} changes nothing: the loss does not depend on what is trained"
        ) from error
