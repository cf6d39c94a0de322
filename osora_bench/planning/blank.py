"""A model before it has weights: where it lies, and its modules on the meta device.

Planning asks for modules only where a spelling of them has to be looked up; torch is loaded then.
"""

from textwrap import shorten
from typing import TYPE_CHECKING, Any

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.planning.config import Config, ModelConfig

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


def adapted_layers(model: "nn.Module", target_modules: list[str]) -> dict[str, tuple[int, int]]:
    """Names of the modules that PEFT would adapt, with (d_out, d_in) of each.

    Raises:
        UserError: a name that matches no module, or a module that is no matrix.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    shapes: dict[str, tuple[int, int]] = {}
    for target in target_modules:
        matches = {n: m for n, m in model.named_modules() if f".{n}".endswith(f".{target}")}
        if not matches:
            linear = {
                n.rpartition(".")[2]
                for n, m in model.named_modules()
                if isinstance(m, nn.Linear | Conv1D)
            }
            raise UserError(
                f"model.target_modules: {target!r} matches no module. "
                f"Linear layers here: {', '.join(sorted(linear))}"
            )
        for name, module in matches.items():
            weight = getattr(module, "weight", None)
            if weight is None or weight.dim() != 2:
                raise UserError(
                    f"model.target_modules: {name} ({type(module).__name__}) is no matrix"
                )
            shapes[name] = (weight.shape[0], weight.shape[1])
    return shapes


def check_rank(cfg: Config, skeleton: Any) -> None:
    """Refuse a rank that an adapted layer cannot have, or modules that match nothing.

    Args:
        skeleton: the model's modules; their shapes are all that is read.
    """
    model, method = cfg.model, cfg.method
    shapes = adapted_layers(skeleton, model.target_modules)
    name, shape = min(shapes.items(), key=lambda item: min(item[1]))
    if method.rank_bounded and (method.rank or 0) > min(shape):
        raise UserError(
            f"{model.name} {method.name}: rank {method.rank} is above min(d_out, d_in) of "
            f"{name} ({shape[0]} x {shape[1]}); the largest rank for {method.name} here is "
            f"{min(shape)}"
        )


def rank_problem(cfg: Config) -> str | None:
    """Why the model's layers cannot have a method's rank; None too where they are not known."""
    if cfg.method.peft is None or not cfg.method.rank_bounded:
        return None
    try:
        modules = blank(cfg.model)
    except OSError:  # transformers', of a hub model that is not on this machine
        return None
    try:
        check_rank(cfg, modules)
    except UserError as error:
        return str(error)
    return None
