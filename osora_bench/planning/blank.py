"""A model before it has weights: where it lies, and its modules on the meta device.

Planning asks for modules only where a spelling of them has to be looked up; torch is loaded then.
"""

from textwrap import shorten
from typing import TYPE_CHECKING, Any

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.planning.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn


def location(model: ModelConfig) -> str:
    """What `from_pretrained` is given: a folder on disk, or the hub id.

    Raises:
        UserError: a folder that is not there or holds no model.
    """
    folder = paths.resolve(model.path)
    if folder is None:
        return str(model.path)
    if not folder.is_dir():
        raise UserError(f"model {model.name}: no folder {folder}")
    if not (folder / "config.json").is_file():
        raise UserError(f"model {model.name}: {folder} holds no config.json")
    return str(folder)


def blank(model: ModelConfig) -> "nn.Module":
    """A model of the configured architecture on the meta device, a new one at each call: from the
    model's file alone, or, where that says nothing of it, from the config.json that `path` holds.

    Raises:
        UserError: an architecture that transformers has no causal language model for.
    """
    from transformers import AutoConfig

    if model.architecture is None:
        return _made(AutoConfig.from_pretrained(location(model), local_files_only=True))
    try:
        return _made(AutoConfig.for_model(**model.architecture))
    except Exception as error:  # whatever a class makes of values that it does not expect
        raise UserError(
            f"model {model.name}: transformers makes no causal language model of its "
            f"configuration: {shorten(str(error), 200)}"
        ) from error


def _made(config: Any) -> "nn.Module":
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model
