"""The weights that a quantised base was made of, in the folder that it was read from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FURTHEST = 0.3
"""Relative distance of a quantised weight from its original: 0.01 in 8 bits, 0.1 in 4."""


def missing_originals(model: Any, keys: Iterable[str]) -> Iterator[str]:
    """Why the weights of the layers `keys` cannot be read from where `model` was."""
    files = _files(model)
    if not files:
        name = getattr(model, "name_or_path", "") or "not named by this one"
        yield (
            f"decomposition='original' needs the folder that the model was read from, with {WHOLE} "
            f"in it (it is {name}); an adapter saved with save_projection=True does without"
        )
        return
    for key in keys:
        if f"{key}.weight" not in files:
            yield f"{_folder(model)} holds no {key}.weight"


def original_of(model: Any, key: str, quantised: Tensor) -> Tensor:
    """The weight (d_out, d_in) that the layer `key` of `model` had before it was quantised.

    Raises:
        ValueError: What lies there is not what the quantised weight (as numbers) was made of.
    """
    name = f"{key}.weight"
    with safe_open(_files(model)[name], framework="pt") as file:
        found: Tensor = file.get_tensor(name).to(quantised.device)
    alike = found.shape == quantised.shape and found.is_floating_point()
    wide = quantised.float()
    if not alike or not (found.float() - wide).norm() < FURTHEST * wide.norm():
        raise ValueError(
            f"decomposition='original': {name} in {_folder(model)} is not what the layer was "
            "quantised from"
        )
    return found


def _folder(model: Any) -> Path:
    return Path(getattr(model, "name_or_path", "") or "")


def _files(model: Any) -> dict[str, Path]:
    """Where each tensor lies."""
    folder = _folder(model)
    if (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_text())["weight_map"]
        return {name: folder / file for name, file in names.items()}
    if not (folder / WHOLE).is_file():
        return {}
    with safe_open(folder / WHOLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), folder / WHOLE)
