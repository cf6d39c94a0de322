"""Whether OSoRA can adapt the layers that a configuration names, told before anything changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .config import FORMAT_VERSION, OF_ITS_OWN, OsoraConfig
from .older_peft import BEFORE_21, needs
from .quantised import MISSING, backend_of, kind_of, precision_of, problem_of, weight_shape

AS_LORA = (
    ". 4 bits are too far from the rest for the adapter itself; its update goes onto any of them "
    "as LoRA: load it where it was trained, and osora_bench.osora.save_lora(model, folder)"
)
"""The way for an adapter that cannot go along."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CLASSIFIER_NAMES = {"classifier", "score", "qa_outputs"}
"""What a classifier's head may be called: PEFT adds the names, whichever the model has."""


def target_problems(
    config: OsoraConfig, model: nn.Module, targets: Mapping[str, nn.Module]
) -> Iterator[str]:
    """Why OSoRA cannot adapt the layers `targets` (by name) of `model` as `config` says."""
    for key, layer in targets.items():
        yield from layer_problems(config, key, layer)
    yield from _unmatched(config, model, list(targets))
    yield from _several_names(model, targets)
    if BEFORE_21 and config.bias != "none":
        yield needs(f"bias={config.bias!r}", "0.21")


def _several_names(model: nn.Module, targets: Mapping[str, nn.Module]) -> Iterator[str]:
    """PEFT would put an adapter in one of the places where a layer stands."""
    names: dict[int, list[str]] = {}
    for key, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(key)
    for layer in targets.values():
        places = names.get(id(layer), [])
        if len(places) > 1:
            yield f"{' and '.join(places)} are one layer, of which PEFT would adapt the first alone"


def shared_weights(model: nn.Module, layers: Mapping[str, Any]) -> Iterator[str]:
    """Which of the adapted `layers` (by name) have a weight that another module uses as well."""
    users: dict[int, set[str]] = {}
    for key, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), set()).add(key.removesuffix(".base_layer"))
    for key, layer in layers.items():
        others = sorted(users.get(id(layer.get_base_layer().weight), set()) - {key})
        if others:
            yield f"{key} shares its weight with {', '.join(others)}"


def rank_of(config: OsoraConfig, key: str, base: Any) -> int:
    r: int = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), key), config.r)
    return min(r, *weight_shape(base)) if config.clip_rank else r


def _unmatched(config: OsoraConfig, model: nn.Module, targets: list[str]) -> Iterator[str]:
    """Which names of the configuration match no layer, and so would silently do nothing."""
    keys = [key for key, _ in model.named_modules()]
    names = {
        "target_modules": config.target_modules,
        "exclude_modules": config.exclude_modules,
        "modules_to_save": set(config.modules_to_save or ()) - CLASSIFIER_NAMES,
    }
    for option, values in names.items():
        for name in () if values is None or isinstance(values, str) else sorted(values):
            if any(f".{key}".endswith(f".{name}") for key in keys):
                continue
            owner = _owner(model, name)
            if owner is not None:
                yield f"{option} {name!r} is a parameter of {owner}, no module: {OF_ITS_OWN}"
            elif targets:
                yield f"{option} {name!r} matches nothing"
    if not targets:
        return  # PEFT says so itself
    for pattern in config.rank_pattern:
        if not any(get_pattern_key([pattern], key) == pattern for key in targets):
            yield f"rank_pattern {pattern!r} matches no adapted layer"


def _owner(model: nn.Module, name: str) -> str | None:
    """The first module with a parameter that is called so, and its class."""
    for key, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            if f".{key}.{own}".endswith(f".{name}"):
                return f"{key} ({kind_of(module)})"
    return None


def layer_problems(config: OsoraConfig, key: str, base: nn.Module) -> Iterator[str]:
    """Why OSoRA cannot adapt the layer `base`, which is called `key`."""
    kind = kind_of(base)
    backend = backend_of(base)
    weight = getattr(base, "weight", None)
    if backend is not None or kind.startswith("bitsandbytes."):
        problem = problem_of(base, backend)
        yield from [f"{key} {problem}"] if problem else _too_large(config, key, base)
    elif not isinstance(base, nn.Linear | Conv1D) or not isinstance(weight, Tensor):
        yield f"{key} is no linear layer but a {kind}; supported: torch.nn.Linear, Conv1D"
    elif weight.dtype not in FLOATS:
        yield f"{key} ({kind}) is of {weight.dtype}; supported: float32, float16, bfloat16"
    else:
        yield from _too_large(config, key, base)
        if not weight.is_meta and not torch.isfinite(weight).all():
            yield f"the weight of {key} holds NaN or inf"


def _too_large(config: OsoraConfig, key: str, base: nn.Module) -> Iterator[str]:
    r, shape = rank_of(config, key, base), weight_shape(base)
    if r > min(shape):
        yield (
            f"rank {r} is too large for {key} of shape {tuple(shape)}: at most {min(shape)} "
            "(or clip_rank=True)"
        )


def _how(quantisation: str | None) -> str:
    """To load a base that is quantised so."""
    if quantisation is None:
        return ""
    install = "" if find_spec("bitsandbytes") else f"; {MISSING}"
    return f" (quantization_config of transformers{install})"


def check_quantisation(config: OsoraConfig, targets: Mapping[str, nn.Module]) -> None:
    """Note how the base is quantised; refuse an adapter that was trained on it quantised otherwise.

    With U_r and V_r of its own an adapter goes between 8 bits and none: the weights differ by a
    hundredth, less than the fingerprints of two models do. 4 bits change them by a tenth.

    Raises:
        ValueError: It was, and does not bring its own U_r and V_r, or 4 bits are one of the two.
    """
    found = sorted({precision_of(base) or "" for base in targets.values()} - {""})
    here, there = ", ".join(found) or None, config.base_quantization
    four_bits = "4" in f"{here} {there}"
    if config.saved is not None and here != there and (four_bits or not config.save_projection):
        raise ValueError(
            "the adapter was trained on base weights "
            f"{f'quantised to {there}' if there else 'that were not quantised'}, these are "
            f"{f'quantised to {here}' if here else 'not quantised'}: load the base as it was"
            f"{_how(there)}"
            + (AS_LORA if four_bits else ", or save the adapter with save_projection=True")
        )
    if here is None and config.decomposition == "original" and config.saved is None:
        raise ValueError("decomposition='original' has no effect: the base is not quantised")
    config.base_quantization = here
    if here is not None:
        config.format_version = FORMAT_VERSION
