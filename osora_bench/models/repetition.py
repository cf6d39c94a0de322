"""Layers of a model without weights that are alike, so that counting one counts all.

A decoder has dozens of layers of one shape, and what an adapter adds to one it adds to each. Of
every kind of layer the first two are kept. Two, since what both of them hold in common (VeRA's
projections) is no layer's own; and since both must have got the same, or the whole is counted.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from osora_bench.planning.blank import blank, location
from osora_bench.planning.config import MethodConfig, ModelConfig, plain

KEPT = 2
COMMON = {"_target_", "task_type", "r", "target_modules"}
LAYERWISE = {
    "peft.LoraConfig": COMMON
    | {"lora_alpha", "lora_dropout", "use_dora", "use_rslora", "init_lora_weights"},
    "peft.VeraConfig": COMMON
    | {"vera_dropout", "save_projection", "projection_prng_key", "d_initial"},
    "osora_bench.osora.OsoraConfig": COMMON
    | {"train_s", "train_o", "o_side", "o_init", "o_init_std"}
    | {"use_dora", "dora_detach_norm", "save_projection"},
}
"""PEFT's configurations, and settings of theirs, with which like layers get like adapters,
whichever and however many they are. All else is counted on the whole model."""
ADAPTED = "base_model.model."
"""What PEFT puts before the names of the model's own modules."""


class Unlike(Exception):
    """Layers of one kind got different adapters: the whole model has to be counted."""


@dataclass(frozen=True)
class Thinned:
    """A model of which the first `KEPT` layers of each kind are left.

    Attributes:
        model: on the meta device; to be copied before it is adapted.
        stands_for: names of the layers that a kept one stands for, its own first, by its name.
        like: the name of the kept layer that it has to be the same as, by its name.
    """

    model: nn.Module
    stands_for: dict[str, list[str]] = field(default_factory=dict)
    like: dict[str, str] = field(default_factory=dict)

    def layer_of(self, name: str) -> str | None:
        """The kept layer that a tensor of the adapted model is in by its name, or None."""
        bare = name.removeprefix(ADAPTED)
        found = (layer for layer in self.stands_for if bare.startswith(f"{layer}."))
        return next(found, None)

    def times(self, names: Iterable[str]) -> int:
        """How often the whole model has a tensor that the thinned one knows by these names."""
        layers = {self.layer_of(name) for name in names}
        (layer,) = layers if len(layers) == 1 else (None,)
        return 1 if layer is None else len(self.stands_for[layer])

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Named tensors of the thinned model as the whole one has them (those of a kept layer and
        of what it stands for are one object)."""
        expanded = {}
        for name, tensor in tensors.items():
            layer = self.layer_of(name)
            if layer is None:
                expanded[name] = tensor
                continue
            bare = name.removeprefix(ADAPTED)
            before, inner = name[: len(name) - len(bare)], bare.removeprefix(f"{layer}.")
            for own in self.stands_for[layer]:
                expanded[f"{before}{own}.{inner}"] = tensor
        return expanded

    def check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raise Unlike if kept layers of one kind do not have the same named tensors."""
        held: dict[str | None, set[Any]] = {}
        for name, tensor in tensors.items():
            layer = self.layer_of(name)
            inner = name.removeprefix(f"{ADAPTED}{layer}.")
            shape = (inner, tensor.shape, tensor.dtype, tensor.requires_grad)
            held.setdefault(layer, set()).add(shape)
        if any(held.get(layer) != held.get(first) for layer, first in self.like.items()):
            raise Unlike


def is_layerwise(method: MethodConfig) -> bool:
    """Whether what the method adds to a layer does not depend on which it is and how many others
    there are: its class and settings are known for that, and its modules named without a number."""
    peft = method.peft or {}
    targets = peft.get("target_modules")
    if not isinstance(targets, list) or any(re.search(r"\d", str(name)) for name in targets):
        return False
    return set(peft) <= LAYERWISE.get(str(peft.get("_target_")), set())


def thinned(model: ModelConfig) -> Thinned:
    """The model with the first layers of each kind, a new one at each call.

    Raises:
        UserError: as `blank`.
    """
    if model.architecture is None:
        config = AutoConfig.from_pretrained(location(model), local_files_only=True)
        told = config.to_json_string(use_diff=False)
    else:
        told = json.dumps(model.architecture)
    once = _once(json.dumps(plain(model)), told)
    return Thinned(deepcopy(once.model), once.stands_for, once.like)


@lru_cache(maxsize=16)
def _once(section: str, told: str) -> Thinned:
    """`told` is what the model is, should its file change while its section stays the same."""
    thin = Thinned(blank(ModelConfig(**json.loads(section))))
    parameters = thin.model.named_parameters(remove_duplicate=False)
    buffers = thin.model.named_buffers(remove_duplicate=False)
    readers = Counter(id(tensor) for _, tensor in [*parameters, *buffers])
    inside = ""
    for path, layers in [*thin.model.named_modules()]:
        if isinstance(layers, nn.ModuleList) and not (inside and path.startswith(inside)):
            inside = f"{path}."
            _thin(thin, path, layers, readers)
    return thin


def _thin(thin: Thinned, path: str, layers: nn.ModuleList, readers: Counter[int]) -> None:
    kinds: dict[Any, list[str]] = {}
    for number, layer in layers.named_children():
        kinds.setdefault(_kind(layer, readers) or number, []).append(number)
    for numbers in kinds.values():
        kept = [f"{path}.{number}" for number in numbers[:KEPT]]
        thin.stands_for.update({name: [name] for name in kept})
        thin.stands_for[kept[-1]] += [f"{path}.{number}" for number in numbers[KEPT:]]
        thin.like.update(dict.fromkeys(kept[1:], kept[0]))
        for number in numbers[KEPT:]:
            del layers._modules[number]  # the others keep their names, as `del layers[i]` does not


def _kind(layer: nn.Module, readers: Counter[int]) -> Any:
    """What two layers have in common if they are alike; None for one with a tensor that stands
    elsewhere in the model too."""
    if any(readers[id(tensor)] > 1 for tensor in [*layer.parameters(), *layer.buffers()]):
        return None
    return tuple(
        (name, type(module), module.extra_repr(), _tensors(module))
        for name, module in layer.named_modules()
    )


def _tensors(module: nn.Module) -> tuple[Any, ...]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    unsaved = module._non_persistent_buffers_set
    return tuple((n, t.shape, t.dtype, t.requires_grad, n in unsaved) for n, t in own)
