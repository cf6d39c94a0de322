"""What a checkpoint must fit: its tensors, and the base weights that it was trained on.

A checkpoint holds S and O but not U_r and V_r, so it means nothing on other base weights. A
fingerprint of each layer's weight and of its subspace is stored beside them and checked on loading.
"""

from __future__ import annotations

import math
import re

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from .config import OsoraConfig

WEIGHT_PROBES = 2
SUBSPACE_PROBES = 4
PROBES = WEIGHT_PROBES + SUBSPACE_PROBES
FINGERPRINT_SIZE = 1 + PROBES
ROWS = 64
# Differences allowed, relative to the size that each entry has for unrelated weights. Round-off
# between machines stays below 1e-5; another precision of the same weights does not.
TOLERANCE = 1e-4
# With U_r and V_r in the file only another model is refused, not another precision.
LOOSE_TOLERANCE = 0.05


def fingerprint(weight: Tensor, u: Tensor, vh: Tensor) -> Tensor:
    """Sketch of a weight (d_out, d_in) and of its singular vectors u (d_out, r), vh (r, d_in).

    Entries (float32): the Frobenius norm; ``p^T W q / ||W||`` for fixed probes p, q; and
    ``sum_i c_i (p^T u_i)(v_i^T q) / sqrt(r)`` for fixed signs c, which the free sign of a pair
    (u_i, v_i) leaves alone and a mixing of pairs does not.
    """
    wide, device = torch.float64, weight.device
    p, q = ([_probe(n, k, device) for k in range(PROBES)] for n in weight.shape)
    sums = torch.zeros(1 + WEIGHT_PROBES, dtype=wide, device=device)
    # a few rows at a time stay in the cache; all of W in float64 would be read back from memory
    for rows, *left in zip(
        *(torch.split(t, ROWS) for t in (weight, *p[:WEIGHT_PROBES])), strict=True
    ):
        block = rows.to(wide)
        flat = block.reshape(-1)
        sums += torch.stack(
            [flat @ flat, *(a @ (block @ b) for a, b in zip(left, q, strict=False))]
        )
    norm = sums[0].sqrt()
    entries = [norm[None], sums[1:] / norm.clamp_min(torch.finfo(torch.float32).tiny)]
    u, vh = u.to(wide), vh.to(wide)
    for k in range(WEIGHT_PROBES, PROBES):
        signs = _probe(u.shape[1], k, device).sign()
        entries.append(((p[k] @ u * signs) @ (vh @ q[k]) / math.sqrt(u.shape[1]))[None])
    return torch.cat(entries).to(torch.float32)


def _probe(size: int, k: int, device: torch.device) -> Tensor:
    """A fixed vector that looks random: a chirp, the same on every machine to round-off."""
    i = torch.arange(1, size + 1, dtype=torch.float64, device=device)
    return torch.cos(math.pi * math.sqrt((2, 3, 5, 7, 11, 13)[k]) * i.square())


def difference(stored: Tensor, here: Tensor, with_projection: bool) -> str | None:
    """Say how two fingerprints of one layer differ; None if they agree."""
    if stored.shape != here.shape:
        return f"the fingerprint has {tuple(stored.shape)} entries, {tuple(here.shape)} expected"
    stored, here = (t.detach().cpu().to(torch.float64) for t in (stored, here))
    tolerance = LOOSE_TOLERANCE if with_projection else TOLERANCE
    scale = torch.ones_like(here)
    scale[0] = here[0].clamp_min(torch.finfo(torch.float32).tiny)
    off = ~((stored - here).abs() <= tolerance * scale)
    if off[0]:
        return f"the weight's Frobenius norm is {stored[0]:.6g} there and {here[0]:.6g} here"
    if off[: 1 + WEIGHT_PROBES].any():
        told = "the weight's norm agrees but its entries do not"
        other_precision = (
            " (if it is the same model in another precision: load it in the first one, or save the "
            "adapter with save_projection=True)"
        )
        return told if with_projection else told + other_precision
    if off.any() and not with_projection:
        return (
            "the weight agrees but its singular subspace could not be reproduced (close singular "
            "values at the rank's cut); save the adapter with save_projection=True"
        )
    return None


def check_folder(config: OsoraConfig, model: nn.Module) -> None:
    """Refuse an adapter's folder that PEFT could not load, before `model` is changed for it.

    Raises:
        ValueError: The folder of a saved adapter holds no weights, or those of `modules_to_save`
            are missing or wrongly shaped.
    """
    saved = config.saved
    if saved is None:
        return
    if saved.without_weights and (config.inference_mode or saved.inference_mode):
        raise ValueError(
            f"{saved.folder} holds a configuration and no weights of an adapter; to start a new "
            "adapter from it, use dataclasses.replace(config, inference_mode=False)"
        )
    if saved.shapes is None:
        return
    problems = []
    for key, module in model.named_modules():
        if not any(key.endswith(name) for name in config.modules_to_save or ()):
            continue
        whole = module.original_module if isinstance(module, ModulesToSaveWrapper) else module
        for name, tensor in whole.state_dict().items():
            shape = saved.shapes.get(f"base_model.model.{key}.{name}")
            if shape is None:
                problems.append(f"missing {key}.{name}")
            elif shape != tensor.shape:
                here = tuple(tensor.shape)
                problems.append(f"{key}.{name} has shape {shape}, the model needs {here}")
    if problems:
        raise ValueError("the checkpoint does not fit modules_to_save: " + shortened(problems))


def each_once(model: nn.Module, given: dict[str, Tensor], adapter_name: str) -> dict[str, Tensor]:
    """A checkpoint without what PEFT writes beside an adapter's tensors: with ``bias="all"`` the
    biases of `modules_to_save` a second time, under the wrapper's name less the adapter's; before
    0.21 the tensors of the model's other adapters, whose names then follow this one's."""
    here = model.state_dict().keys()
    wrapper = f".modules_to_save.{adapter_name}."
    biases = {key for key in here if wrapper in key and key.endswith(".bias")}
    twice = {key.replace(wrapper, ".modules_to_save.") for key in biases} - here
    others = re.compile(rf"\.osora_\w+\.{re.escape(adapter_name)}\.")
    return {k: tensor for k, tensor in given.items() if k not in twice and not others.search(k)}


def check_tensors(expected: dict[str, Tensor], given: dict[str, Tensor], known: set[str]) -> None:
    """Refuse a checkpoint whose tensors are not the `expected` ones of the adapter.

    `known` are all names in the model: other modules' tensors may be in the file as well.

    Raises:
        ValueError: Missing, extra, wrongly shaped or non-finite tensors, all of them named.
    """
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"not part of this model: {name}" for name in given if name not in known]
    for name, tensor in given.items():
        if name in expected and tensor.shape != expected[name].shape:
            here = tuple(expected[name].shape)
            problems.append(f"{name} has shape {tuple(tensor.shape)}, the model needs {here}")
        elif name in expected and not tensor.is_floating_point():
            problems.append(f"{name} is of {tensor.dtype}, not a floating-point type")
        elif name in expected and not torch.isfinite(tensor).all():
            problems.append(f"{name} holds NaN or inf")
    if problems:
        raise ValueError("the checkpoint does not fit the adapter: " + shortened(problems))


def shortened(problems: list[str], limit: int = 5) -> str:
    """The first few of a list of problems, and how many more there are."""
    more = f"; and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + more
