"""The cross entropy of a frozen output layer, without the logits of all tokens at once.

A vocabulary is much wider than a model. On a CPU, the logits of a micro-batch do not fit into its
cache, and transformers' loss goes over them about ten times: as float32, in the softmax, in its
gradient, and back. Here a few hundred tokens at a time get their logits, their losses and the
gradient of their hidden states, while all that lies in the cache; a frozen layer needs no other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from osora_bench.models.base import inside
from osora_bench.training.data import IGNORED_LABEL

PRODUCT_ROWS = 256
"""Tokens that share a product with the output layer: so many, that reading it is worth it."""
SOFTMAX_BYTES = 2**21
"""Logits in float32 that the softmax goes over at once: what a core's own cache holds."""


class LinearCrossEntropy(torch.autograd.Function):
    """-sum log softmax(H W^T) of the labels; the gradient of H is (softmax - one hot) W."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """The summed loss in float32 of `hidden` (tokens, d) under `weight` (vocabulary, d)."""
        needed = ctx.needs_input_grad[0]
        rows, losses, gradients = hidden.to(weight.dtype), [], []
        parts = -(-len(rows) // PRODUCT_ROWS)  # of like size: a short one would be slow
        for part, wanted in zip(rows.chunk(parts), labels.chunk(parts), strict=True):
            logits = part @ weight.T
            losses.append(_softmax_in_place(logits, wanted, needed))
            if needed:
                gradients.append(logits @ weight)
        if needed:
            ctx.save_for_backward(torch.cat(gradients))
            ctx.dtype = hidden.dtype
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outer[0]).to(ctx.dtype), None, None


def _softmax_in_place(logits: Tensor, labels: Tensor, needed: bool) -> Tensor:
    """The summed loss; `logits` become softmax - one hot where that is needed."""
    size = max(1, SOFTMAX_BYTES // (4 * logits.shape[1]))
    losses = []
    for rows, wanted in zip(
        torch.split(logits, size), torch.split(labels[:, None], size), strict=True
    ):
        scores = rows.float()
        target, largest = scores.gather(1, wanted), scores.amax(1, keepdim=True)
        weights = scores.softmax(1)
        # the largest weight is 1 / sum exp(score - largest)
        losses.append((largest - weights.amax(1, keepdim=True).log() - target).sum())
        if needed:
            weights.scatter_add_(1, wanted, torch.full_like(target, -1.0))
            rows.copy_(weights)
    return torch.stack(losses).sum()


def _loss(  # noqa: PLR0917 (transformers' own order)
    layer: nn.Linear,
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORED_LABEL,
    shift_labels: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """As transformers' `ForCausalLMLoss`, of hidden states in place of logits."""
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    wanted = shift_labels.reshape(-1)
    places = (wanted != ignore_index).nonzero()[:, 0]
    weight = layer.weight
    if torch.is_autocast_enabled("cpu"):
        weight = weight.to(torch.get_autocast_dtype("cpu"))
    hidden = logits.reshape(-1, logits.shape[-1])[places]
    with torch.autocast("cpu", enabled=False):
        total: Tensor = LinearCrossEntropy.apply(hidden, weight, wanted[places])  # type: ignore[no-untyped-call]
    return total / (len(places) if num_items_in_batch is None else num_items_in_batch)


@contextmanager
def linear_loss(model: Any) -> Iterator[None]:
    """Have a model hand its hidden states to the loss above for as long as a CPU trains it, where
    the output layer is frozen and nothing comes between it and transformers' own loss."""
    base = inside(model)
    layer = base.get_output_embeddings()
    if not _is_plain(base, layer) or not _hands_on(model, layer):
        yield
        return
    layer.forward = _unchanged
    try:
        with _exchanged_loss(base, partial(_loss, layer)):
            yield
    finally:
        del layer.forward


def _unchanged(hidden: Tensor) -> Tensor:
    return hidden


@contextmanager
def _exchanged_loss(base: Any, loss: Callable[..., Tensor]) -> Iterator[None]:
    base.loss_function = loss
    try:
        yield
    finally:
        del base._loss_function  # what transformers' own setter has set


def _is_plain(base: Any, layer: Any) -> bool:
    """Whether it is the product with frozen weights that a model of transformers ends in."""
    if type(layer) is not nn.Linear or layer.weight.requires_grad:
        return False
    changed = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    own_loss = hasattr(base, "_loss_function") or base.loss_function is not ForCausalLMLoss
    return not (changed or own_loss or isinstance(layer.bias, Tensor))


def _hands_on(model: Any, layer: nn.Linear) -> bool:
    """Whether what the output layer returns is what the loss is given, and what that returns is the
    model's own: models scale or bound their logits in between, methods have losses of their own.
    Tried on two tokens."""
    training, returned, given = model.training, list[Tensor](), list[Tensor]()
    zero = torch.zeros(())

    def loss(logits: Tensor, *_: Any, **__: Any) -> Tensor:
        given.append(logits)
        return zero

    hook = layer.register_forward_hook(lambda _layer, _input, output: returned.append(output))
    model.eval()
    try:
        with (
            _exchanged_loss(inside(model), loss),
            torch.random.fork_rng(devices=[]),  # what follows draws what it would have drawn
            torch.no_grad(),
        ):
            ids = torch.ones(1, 2, dtype=torch.long)
            found = model(input_ids=ids, attention_mask=ids, labels=ids).loss
    finally:
        hook.remove()
        model.train(training)
    return len(returned) == len(given) == 1 and returned[0] is given[0] and found is zero
