"""Base models: what can be known without weights, and a workspace that loads each once."""

import gc
import hashlib
import json
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from osora_bench.common import paths
from osora_bench.common.errors import UserError

WEIGHT_FILES = ("*.safetensors", "*.bin")


def quiet() -> None:
    """Keep transformers' own bars, warnings and advice off the terminal of a sweep."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def location(model: dict[str, Any]) -> str:
    """What `from_pretrained` is given: a folder on disk, or the hub id.

    Raises:
        UserError: a folder that is not there or holds no model.
    """
    place = paths.resolve(model["path"])
    if place is None:
        return str(model["path"])
    if not place.is_dir():
        raise UserError(f"model {model['name']}: no folder {place}")
    if not (place / "config.json").is_file():
        raise UserError(f"model {model['name']}: {place} holds no config.json")
    return str(place)


def _local_snapshot(model: dict[str, Any]) -> Path:
    """The folder with the model's files, which must be on this machine already."""
    place = paths.resolve(model["path"])
    if place is not None:
        return Path(location(model))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(model["path"], revision=model["revision"], local_files_only=True)
    except LocalEntryNotFoundError as error:
        gate = f" (accept its licence there first: {model['licence']})" if model["gated"] else ""
        pinned = f" --revision {model['revision']}" if model["revision"] else ""
        raise UserError(
            f"model {model['name']}: the weights of {model['path']} are not on this machine. "
            f"`hf download {model['path']}{pinned}` fetches them{gate}, "
            "or name a folder: model.path=/folder"
        ) from error
    return Path(found)


def check_weights(model: dict[str, Any]) -> None:
    """Raise UserError unless weights of the model's architecture lie on this machine, those that
    the config.json beside them describes."""
    folder = _local_snapshot(model)
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise UserError(
            f"model {model['name']}: {folder} holds no weights ({' or '.join(WEIGHT_FILES)})"
        )
    if model["architecture"] is not None:
        _check_architecture(model, folder)
    _check_fit(folder)


def _check_architecture(model: dict[str, Any], folder: Path) -> None:
    """Raise UserError if config.json is not of the architecture that the model's file names."""
    found = AutoConfig.from_pretrained(folder)
    differing = [
        f"{key} {getattr(found, key, None)} in place of {expected}"
        for key, expected in model["architecture"].items()
        if getattr(found, key, None) != expected
    ]
    if differing:
        raise UserError(
            f"model {model['name']}: {folder} is another model than conf/model/"
            f"{model['name']}.yaml says: {', '.join(differing)}. "
            "A model of your own takes a file of its own there"
        )


@cache
def _check_fit(folder: Path) -> None:
    """Raise UserError unless the weights are the tensors that config.json asks for: transformers
    starts missing ones at random and leaves out what has no place. Only shapes are read."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        _, found = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are counted below
            local_files_only=True,
        )
    except Exception as error:  # transformers, safetensors and pickle each raise their own
        raise UserError(f"{folder}: cannot be loaded: {shorten(str(error), 200)}") from error
    mismatched = [f"{key} {list(has)}" for key, has, _ in found["mismatched_keys"]]
    problems = {
        "missing": found["missing_keys"],
        "of another shape": mismatched,
        "without a place": found["unexpected_keys"],
    }
    told = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in problems.items() if keys]
    if told:
        raise UserError(
            f"{folder}: its weights are not those of the model that its config.json describes: "
            f"tensors {', '.join(told)}"
        )


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:2]
    return ", ".join(first + ["..."] * (len(names) > len(first)))


def blank(model: dict[str, Any]) -> nn.Module:
    """A model of the configured architecture on the meta device, a new one at each call: from the
    model's file alone, or, where that says nothing of it, from the config.json that `path` holds.

    Raises:
        UserError: an architecture that transformers has no causal language model for.
    """
    if model["architecture"] is None:
        return _blank(AutoConfig.from_pretrained(location(model), local_files_only=True))
    try:
        return _blank(AutoConfig.for_model(**model["architecture"]))
    except Exception as error:  # whatever a class makes of values that it does not expect
        raise UserError(
            f"model {model['name']}: transformers makes no causal language model of its "
            f"configuration: {shorten(str(error), 200)}"
        ) from error


def _blank(config: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def device_of(cfg: dict[str, Any]) -> torch.device:
    """The device that `device: auto|cpu|cuda` names on this machine."""
    wanted = cfg["device"]
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device here: device=cpu or auto")
    return torch.device(wanted)


def adapted_layers(model: nn.Module, target_modules: list[str]) -> dict[str, tuple[int, int]]:
    """Names of the modules that PEFT would adapt, with (d_out, d_in) of each.

    Raises:
        UserError: a name that matches no module, or a module that is no matrix.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for target in target_modules:
        matched = {n: m for n, m in model.named_modules() if f".{n}".endswith(f".{target}")}
        if not matched:
            linear = {
                n.rpartition(".")[2]
                for n, m in model.named_modules()
                if isinstance(m, nn.Linear | Conv1D)
            }
            raise UserError(
                f"model.target_modules: {target!r} matches no module. "
                f"Linear layers here: {', '.join(sorted(linear))}"
            )
        for name, module in matched.items():
            weight = getattr(module, "weight", None)
            if weight is None or weight.dim() != 2:
                raise UserError(
                    f"model.target_modules: {name} ({type(module).__name__}) is no matrix"
                )
            shapes[name] = (weight.shape[0], weight.shape[1])
    return shapes


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's repeated layers, as its class in transformers names them; perhaps none."""
    names = getattr(model, "_no_split_modules", None) or ()
    return [module for module in model.modules() if type(module).__name__ in names]


def checksums(model: nn.Module) -> dict[str, int]:
    """A 64-bit checksum of every parameter and buffer, to tell whether a weight was touched."""
    return {
        name: int(torch.hash_tensor(tensor.detach()).item())
        for name, tensor in model.state_dict().items()
    }


def content(model: nn.Module) -> str:
    """A hash of every parameter and buffer."""
    return digest(checksums(model))


def digest(sums: dict[str, int]) -> str:
    """One hash of many checksums."""
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


@dataclass
class Base:
    """A base model in memory, with its tokenizer and the checksums of its weights as loaded."""

    model: Any
    tokenizer: Any
    checksums: dict[str, int]


class Workspace:
    """Keeps one base model loaded from cell to cell and vouches for its weights."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._base: Base | None = None
        self.loads = 0

    def base(self, cfg: dict[str, Any]) -> Base:
        """The base model of a cell, its weights as loaded; kept until another one is asked for."""
        model, device = cfg["model"], device_of(cfg)
        key = (model["path"], model["revision"], model["dtype"], device)
        if self._base is None or self._key != key:
            self._base = None  # free the old one before the new one is loaded
            self._base = load(model, device)
            self._key = key
            self.loads += 1
        return self._base

    def clear(self) -> None:
        """Free the memory of the base model, for others to use."""
        self._base = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def release(self, adapted: Any) -> None:
        """Take the adapter off after a cell. What cannot be shown to be as loaded is dropped, so
        that the next cell reads it from disk (PiSSA, for one, writes into the base weights)."""
        base: Base | None = self._base
        if base is None:
            return
        if adapted is not base.model:
            unload = getattr(adapted, "unload", None)  # prompt methods have none
            if unload is None or unload() is not base.model:
                self._base = None
                return
        base.model.zero_grad(set_to_none=True)
        base.model.requires_grad_(True)
        base.model.eval()
        if checksums(base.model) != base.checksums:
            self._base = None


def load(model: dict[str, Any], device: torch.device) -> Base:
    """Read a base model and its tokenizer from disk."""
    path = location(model)
    options = {"revision": model["revision"], "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, model["dtype"]), **options
    ).to(device)
    loaded.eval()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model {model['name']}: no tokenizer can be had of {path}: {why}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    if model["chat"] and tokenizer.chat_template is None:
        raise UserError(f"model {model['name']}: chat=true, but its tokenizer has no chat template")
    return Base(loaded, tokenizer, checksums(loaded))


def inside(model: Any) -> Any:
    """The transformers model inside a PEFT model: its layers carry the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
