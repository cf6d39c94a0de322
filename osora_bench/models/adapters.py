"""Adapters on a base model: fresh ones, and saved ones with what loading them takes."""

import json
import os
import warnings
from pathlib import Path
from textwrap import shorten
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError

from osora_bench.common.errors import UserError
from osora_bench.common.progress import say
from osora_bench.models import embeddings
from osora_bench.models.adapter_config import imported, instantiate, read_settings, start
from osora_bench.models.base import Base, digest, weights_digest
from osora_bench.osora import SvdStore, use_store
from osora_bench.osora.saving import as_new_files
from osora_bench.planning.cell import Cell
from osora_bench.planning.checks import DTYPES
from osora_bench.planning.config import Config, MethodConfig

ORIGIN = "osora_bench.json"
"""Beside an adapter that this project trained: its base's content, how the method starts, and its
class, whose module PEFT knows the method by once it is imported. Older ones call the content
`base`, by another checksum: of them it is not read."""


def write_origin(folder: Path, base: Any, method: MethodConfig) -> None:
    """Write down beside a trained adapter what loading it takes."""
    kind = (method.peft or {}).get("_target_")
    origin = {"weights": digest(base.checksums), "start": method.start, "class": kind}
    (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


def with_saved_adapter(base: Any, folder: Path, cfg: Config) -> Any:
    """The base model with the adapter of a folder.

    Raises:
        UserError: the adapter was trained on another base, or its tensors do not fit this one.
    """
    origin: dict[str, Any] = {"weights": None, "start": None, "class": None}
    if (folder / ORIGIN).is_file():
        origin |= read_settings(folder / ORIGIN)
    if origin["weights"] not in (None, digest(base.checksums)):
        _say_precision(origin["weights"], folder, cfg)
    if origin["class"] is not None:
        imported(origin["class"], f"{folder / ORIGIN}: class")
    try:
        embeddings.make_room(base.model, load_peft_weights(str(folder), device="cpu"))
        model = _load(base.model, folder, origin["start"])
    except SafetensorError as error:
        raise UserError(f"--adapter {folder}: its tensors cannot be read ({error})") from error
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = shorten(str(error), 300)
        raise UserError(f"--adapter {folder} is not for {cfg.model.name}: {reason}") from error
    base_path = model.active_peft_config.base_model_name_or_path
    if (
        origin["weights"] is None
        and base_path
        and Path(base_path).name != Path(cfg.model.path).name
    ):
        say(f"WARNING: {folder} says that it was made for {base_path}, not {cfg.model.path}")
    return model


def _say_precision(trained_on: str, folder: Path, cfg: Config) -> None:
    """Say that an adapter was trained on the same weights in another precision.

    Raises:
        UserError: on other weights.
    """
    for dtype in DTYPES:
        if dtype != cfg.model.dtype and weights_digest(cfg.model, dtype) == trained_on:
            say(
                f"WARNING: {folder} was trained on {cfg.model.name} in {dtype}: these are the same "
                f"weights in {cfg.model.dtype} (--dtype {dtype} evaluates it as it was trained)"
            )
            return
    raise UserError(
        f"--adapter {folder} was trained on other weights than those of {cfg.model.name}, in "
        f"{', '.join(DTYPES)}"
    )


def _load(base: Any, folder: Path, start: str | None) -> Any:

    if start is None:
        with warnings.catch_warnings():  # of missing keys: `_check_names` refuses them
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(base, str(folder))
    else:  # the base weights change with the start, and the saved tensors belong to the changed
        settings = PeftConfig.from_pretrained(str(folder))
        settings.inference_mode = False
        model = get_peft_model(base, settings)
        imported(start, f"{folder / ORIGIN}: start")(model)
        set_peft_model_state_dict(model, load_peft_weights(str(folder)))
    _check_names(model, folder)
    return model


def _check_names(model: Any, folder: Path) -> None:
    """PEFT passes over tensors without a place in the model, over places without a tensor, and over
    what is no number."""
    tensors = load_peft_weights(str(folder))
    expected, stored = set(get_peft_model_state_dict(model)), set(tensors)
    expected |= set(embeddings.saved_names(model.get_base_model(), tensors))
    if not_finite := [n for n, t in tensors.items() if not bool(t.isfinite().all())]:
        raise ValueError(
            f"{len(not_finite)} tensors hold NaN or infinite numbers, such as {not_finite[0]}"
        )
    if expected != stored:
        name = sorted(expected ^ stored)[0]
        where = "this model has" if name in expected else "only the file has"
        raise ValueError(
            f"{len(expected ^ stored)} tensors do not match, the first {where}: {name}"
        )


def with_fresh_adapter(model: Any, cell: Cell) -> Any:
    """A base model with the cell's fresh adapter on it; without one if all of it is trained."""
    method = cell.config.method
    if method.full:
        return model
    with use_store(_store(cell)):
        adapted = peft.get_peft_model(model, instantiate(method))
        start(method)(adapted)
    return adapted


def saved_again(base: Base, cell: Cell) -> Any:
    """The base model with the adapter that the cell has saved."""
    with use_store(_store(cell)):
        return with_saved_adapter(base, cell.paths.adapter, cell.config)


def _store(cell: Cell) -> SvdStore | None:
    """Where decompositions are shared by cells and later runs: below `runs` if not elsewhere."""
    return None if os.environ.get("OSORA_SVD_STORE") else SvdStore(cell.paths.decompositions)


def trainable(model: torch.nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def save(
    model: Any, base: Base, cell: Cell, tensors: dict[str, torch.Tensor] | None = None
) -> None:
    """Write what was trained as PEFT or transformers do, and beside it what loading it takes.

    Args:
        tensors: the model's, by name; None: as it holds them.
    """
    options = {} if tensors is None else {"state_dict": tensors}
    with as_new_files(cell.paths.adapter):
        model.save_pretrained(str(cell.paths.adapter), **options)
        write_origin(cell.paths.adapter, base, cell.config.method)
        if cell.config.method.full:  # a whole model, then
            base.tokenizer.save_pretrained(cell.paths.adapter)
