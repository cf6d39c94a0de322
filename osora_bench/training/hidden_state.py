"""Everything that training changes in a model, so that a checkpoint gives back the model itself.

What PEFT saves of an adapter is what is needed to use it, not to train it on: p-tuning saves its
prompts without the encoder that makes them, AdaLoRA the ranks that it has kept so far. And some
methods keep state beside their tensors (AdaLoRA's importances, samples that MonteCLoRA has drawn
ahead), as attributes of modules or of objects that these hold. So a checkpoint holds, by name, what
is trained and whatever else is not as it was at the start.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from osora_bench.models.base import checksum

Place = tuple[str, ...]
"""A module's name, then names of attributes."""
OWN = frozenset({*vars(nn.Module()), "_is_accelerate_prepared"})
"""Attributes that torch keeps in every module (parameters, buffers, hooks, the mode), and
accelerate's mark: with it, a model that goes on would not be given the training's precision."""
LARGE = 1 << 20
"""Numbers of a tensor from which on its device takes its checksum."""
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


class ChangingState:
    """The state of a model that training changes, against what it was when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.start = {place: mark(value) for place, value in self._all()}

    def take(self) -> dict[Place, Any]:
        """What is trained, and what else has changed, by place."""
        trained = {("", name) for name, p in self.model.named_parameters() if p.requires_grad}
        return {
            place: value
            for place, value in self._all()
            if place in trained or self.start.get(place) != mark(value)
        }

    def put(self, state: dict[Place, Any]) -> None:
        """Give a freshly started model what `take` took of another; tensors in place.

        Raises:
            KeyError, RuntimeError: it is a model of another kind.
        """
        tensors = dict(self._tensors())
        for place, value in state.items():
            if place in tensors:
                with torch.no_grad():
                    tensors[place].copy_(value)
                continue
            module, *attributes, last = place
            holder: Any = self.model.get_submodule(module)
            for name in attributes:
                holder = getattr(holder, name)
            setattr(holder, last, value)

    def _all(self) -> Iterator[tuple[Place, Any]]:
        yield from self._tensors()
        seen: set[int] = set()
        for name, module in self.model.named_modules():
            for key, value in vars(module).items():
                if key not in OWN:
                    yield from _data((name, key), value, seen)

    def _tensors(self) -> Iterator[tuple[Place, torch.Tensor]]:
        for named in (self.model.named_parameters(), self.model.named_buffers()):
            for name, tensor in named:
                yield ("", name), tensor.detach()


def _data(place: Place, value: Any, seen: set[int]) -> Iterator[tuple[Place, Any]]:
    """The plain data that an attribute is, or that the object holds which it is."""
    if _plain(value):
        yield place, value
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | RemovableHandle):
        if callable(value) or id(value) in seen:
            return
        seen.add(id(value))
        for key, inner in vars(value).items():
            yield from _data((*place, key), inner, seen)


def _plain(value: Any) -> bool:
    """Whether a value is numbers, texts, tensors that nothing is differentiated by, or containers
    of such."""
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter) and not value.requires_grad
    if type(value) is dict:
        return all(_plain(k) and _plain(v) for k, v in value.items())
    if type(value) in (list, tuple, set):
        return all(map(_plain, value))
    return type(value) in PLAIN


def mark(value: Any) -> Any:
    """What tells plain data from other plain data."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, _digest(value.detach())
    if isinstance(value, dict):
        return [(key, mark(inner)) for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [mark(inner) for inner in value]
    return value


def _digest(tensor: torch.Tensor) -> int | str:
    """A digest of a tensor's bytes; of a large one, which may be far from the processor, the
    checksum that its device computes."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.numel() > LARGE:
        return checksum(tensor)
    whole = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(whole).hexdigest()
