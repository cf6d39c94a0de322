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

ROWS, TOKENS = 64, 256
"""Training rows whose answers are compared at most, and how many of a row's last tokens are read: a
method may act on tokens that few texts have."""
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
        self.kept = {} if _is_whole(model) else {n: p.detach().clone() for n, p in _trained(model)}
        ends = [row["input_ids"][-TOKENS:] for row in rows[:ROWS]]
        self.texts = [*(end for end in ends if len(end) > 1), *trial_texts(model)]

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
        trained = (parameter for _, parameter in _trained(model))
        if not self.checked and self.steps >= self.STEPS and self._enough(args, trained):
            self.checked = True
            if all(self.start.get(name) == now for name, now in _marks(model)):
                raise NoEffect(
                    f"changes nothing: after {state.global_step} steps every trained tensor is "
                    "what it was at the start, as if something took the steps back"
                )

    def check_answers(self, model: Any, args: Any) -> None:
        """Once the training is over and the model's forward pass its own again: some text's loss is
        another with the trained tensors than with those of the start, which the first one shows of
        nearly every method. Where every weight is trained there is nothing beside the model.

        Raises:
            NoEffect: the loss of each token of each text is bit for bit what it was.
        """
        if not self.kept or not self._enough(args, model.parameters()):
            return
        with _evaluated(model):
            trained = {name: parameter.data for name, parameter in _trained(model)}
            for text in self.texts:
                now, before = (_losses(model, text, by) for by in (trained, self.kept))
                if not torch.equal(now, before):
                    return
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


def _losses(model: Any, text: Sequence[int], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of each token of a text with these trained tensors in place of the model's own,
    which are given back also where a forward pass replaces them. One whose shape is not the
    parameter's is not put there."""
    pairs = [(p, tensors[name]) for name, p in _trained(model) if name in tensors]
    pairs = [(parameter, value) for parameter, value in pairs if parameter.shape == value.shape]
    own = [parameter.data for parameter, _ in pairs]
    for parameter, value in pairs:
        parameter.data = value
    try:
        return plain_losses(model, text)
    finally:
        for (parameter, _), value in zip(pairs, own, strict=True):
            parameter.data = value


@contextmanager
def _evaluated(model: Any) -> Iterator[None]:
    """Without dropout; afterwards every module is in its mode again, and what is drawn is what
    would have been."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _trained(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _is_whole(model: Any) -> bool:
    """Whether every weight is trained."""
    return all(p.requires_grad for p in model.parameters())


def _marks(model: Any) -> Iterator[tuple[str, Any]]:
    """What tells each trained tensor from another."""
    return ((name, mark(parameter)) for name, parameter in _trained(model))


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
