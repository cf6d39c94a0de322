"""Which rank an adapter may have: what the layers that it adapts allow."""

from typing import TYPE_CHECKING, Any

from osora_bench.common.errors import UserError
from osora_bench.planning.blank import blank
from osora_bench.planning.config import Config

if TYPE_CHECKING:
    from torch import nn


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
    name, shape = _narrowest(cfg, skeleton)
    if method.rank_bounded and (method.rank or 0) > min(shape):
        raise UserError(
            f"{model.name} {method.name}: rank {method.rank} is above min(d_out, d_in) of "
            f"{name} ({shape[0]} x {shape[1]}); the largest rank for {method.name} here is "
            f"{min(shape)}"
        )


def largest_rank(cfg: Config) -> int | None:
    """The largest rank that a method may have on the model's layers; None where it has no bound, or
    where they are not known, as of a model of the hub that is not on this machine.

    Raises:
        UserError: modules that match nothing.
    """
    if cfg.method.peft is None or not cfg.method.rank_bounded:
        return None
    try:
        modules = blank(cfg.model)
    except OSError:  # transformers', of a hub model that is not on this machine
        return None
    return min(_narrowest(cfg, modules)[1])


def _narrowest(cfg: Config, skeleton: Any) -> tuple[str, tuple[int, int]]:
    """The adapted layer that allows the least, with its (d_out, d_in)."""
    shapes = adapted_layers(skeleton, cfg.model.target_modules)
    return min(shapes.items(), key=lambda item: min(item[1]))
