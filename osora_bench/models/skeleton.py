"""A model without weights: its modules and their shapes, on the meta device."""

from collections import Counter
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from osora_bench.common.errors import UserError
from osora_bench.planning.config import Config


def adapted_layers(model: nn.Module, target_modules: list[str]) -> dict[str, tuple[int, int]]:
    """Names of the modules that PEFT would adapt, with (d_out, d_in) of each.

    Raises:
        UserError: a name that matches no module, or a module that is no matrix.
    """
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


def tied_layers(adapted: nn.Module) -> list[str]:
    """Adapted layers whose weight another module reads too, as an output layer may the embeddings':
    what is written into it (a merged adapter, a start's residual) changes that module with it."""
    readers = Counter(id(p) for m in adapted.modules() for p in m.parameters(recurse=False))
    return [
        name
        for name, module in adapted.named_modules()
        if isinstance(module, BaseTunerLayer)
        and readers[id(getattr(module.get_base_layer(), "weight", None))] > 1
    ]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's repeated layers, as its class in transformers names them; perhaps none."""
    names = getattr(model, "_no_split_modules", None) or ()
    return [module for module in model.modules() if type(module).__name__ in names]


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
