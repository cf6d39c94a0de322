"""A model without weights: its modules and their shapes, on the meta device."""

from collections import Counter

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


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
