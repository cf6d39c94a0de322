"""Base models: what can be known without weights, and a workspace that loads each once."""

import gc
import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from osora_bench.common.errors import UserError
from osora_bench.models import quantisation
from osora_bench.models.tokenizers import load_tokenizer
from osora_bench.planning.blank import location
from osora_bench.planning.config import Config, ModelConfig


def quiet_libraries() -> None:
    """Keep transformers' own bars, warnings and advice off the terminal of a sweep."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def device_of(cfg: Config) -> torch.device:
    """The device that `device: auto|cpu|cuda` names on this machine."""
    device_name = cfg.device
    if device_name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device_name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device here: device=cpu or auto")
    return torch.device(device_name)


def checksums(model: nn.Module) -> dict[str, int]:
    """A 64-bit checksum of every parameter and buffer, to tell whether a weight was touched."""
    return {name: checksum(tensor) for name, tensor in model.state_dict().items()}


def checksum(tensor: torch.Tensor) -> int:
    """The sum of a tensor's bytes in words of 64 bits, modulo 2^64; 0 of one without numbers.

    Words of memory, not numbers, are as fast as memory is read: torch.hash_tensor makes a float64
    of each number first. A sum, since an XOR does not see what changes a constant tensor's (a
    norm's, a bias's) numbers alike.
    """
    content = tensor.detach().contiguous().view(-1).view(torch.uint8)
    lacking = -content.numel() % 8
    if lacking or content.storage_offset() % 8:  # words begin where memory is aligned to them
        content = nn.functional.pad(content, (0, lacking))
    return int(content.view(torch.int64).sum().item())


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

    def base(self, cfg: Config, tokenizer: Path | None = None) -> Base:
        """The base model of a cell, its weights as loaded; kept until another one is asked for.

        Args:
            tokenizer: folder of an adapter's own; None: the model's.
        """
        model, device = cfg.model, device_of(cfg)
        key = (model.path, model.revision, model.dtype, model.quantization, device, tokenizer)
        if self._base is None or self._key != key:
            self._base = None  # free the old one before the new one is loaded
            self._base = load_base(model, device, tokenizer)
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
        for parameter in base.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())  # quantised ones have none
        base.model.eval()
        if checksums(base.model) != base.checksums:
            self._base = None


def load_base(model: ModelConfig, device: torch.device, folder: Path | None = None) -> Base:
    """Read a base model and its tokenizer, or that of an adapter's `folder`, from disk."""
    tokenizer = load_tokenizer(model, folder)
    loaded = _read(model, model.dtype, device)
    loaded.eval()
    return Base(loaded, tokenizer, checksums(loaded))


def weights_digest(model: ModelConfig, dtype: str) -> str:
    """The hash of a model's weights as they are read from disk in this precision."""
    return content(_read(model, dtype, torch.device("cpu")))


def _read(model: ModelConfig, dtype: str, device: torch.device) -> Any:
    options = {"revision": model.revision, "local_files_only": True}
    options |= quantisation.loading_options(model, dtype, device)
    loaded = AutoModelForCausalLM.from_pretrained(
        location(model), dtype=getattr(torch, dtype), **options
    )
    if model.quantization is None:
        return loaded.to(device)
    quantisation.keep_layout(loaded)
    return loaded


def inside(model: Any) -> Any:
    """The transformers model inside a PEFT model: its layers carry the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
