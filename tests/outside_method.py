"""A PEFT method that lives outside the package: one trained scale for each output of a layer."""

from dataclasses import dataclass
from types import MappingProxyType

import torch
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn


@dataclass
class ScaleConfig(PeftConfig):
    """Trains `r` scales for each output, which are summed (so that there is a rank to set)."""

    r: int = 1
    target_modules: list[str] | None = None
    bias: str = "none"

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = "OUTSIDE"


class ScaledLinear(nn.Module, BaseTunerLayer):
    """W0 x, each output scaled by 1 plus the sum of its trained scales."""

    adapter_layer_names = ("outside_scale",)

    def __init__(self, base_layer, adapter_name, r):
        super().__init__()
        self.base_layer = base_layer
        self.outside_scale = nn.ParameterDict({})
        self._active_adapter = adapter_name
        self._disable_adapters = False
        weight = base_layer.weight
        scale = torch.zeros(r, weight.shape[0], dtype=torch.float32, device=weight.device)
        self.outside_scale[adapter_name] = nn.Parameter(scale)

    def forward(self, x, *args, **kwargs):
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            y = y * (1 + self.outside_scale[name].sum(0)).to(y.dtype)
        return y


class ScaleModel(BaseTuner):
    """The tuner: PEFT's base class does all but the making of the layers."""

    prefix = "outside_"
    tuner_layer_cls = ScaledLinear
    target_module_mapping = MappingProxyType({})

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, *, current_key, **_
    ):
        self._replace_module(
            parent, target_name, ScaledLinear(target, adapter_name, peft_config.r), target
        )


PEFT_TYPE_TO_CONFIG_MAPPING["OUTSIDE"] = ScaleConfig
PEFT_TYPE_TO_TUNER_MAPPING["OUTSIDE"] = ScaleModel
PEFT_TYPE_TO_PREFIX_MAPPING["OUTSIDE"] = "outside_"
