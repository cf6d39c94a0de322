"""OSoRA on a whole model."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn

from .config import OsoraConfig
from .layer import Linear, OsoraLayer


class OsoraModel(BaseTuner):  # type: ignore[misc]
    """A model with OSoRA on its target layers (arXiv 2505.14350).

    Made by `peft.get_peft_model(model, OsoraConfig(...))`.
    """

    prefix = "osora_"
    tuner_layer_cls = OsoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(
        self,
        peft_config: OsoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        r = _rank(peft_config, current_key)
        base = target.get_base_layer() if isinstance(target, OsoraLayer) else target
        limit = min(base.weight.shape)
        if r > limit and peft_config.clip_rank:
            r = limit
        if r > limit:
            raise ValueError(
                f"rank {r} is too large for {current_key} of shape {tuple(base.weight.shape)}: "
                f"the largest is {limit} (or set clip_rank=True)"
            )
        if isinstance(target, OsoraLayer):
            target.update_layer(adapter_name, r, peft_config)
            return
        layer = Linear(target, adapter_name, r, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def _rank(config: OsoraConfig, key: str) -> int:
    return config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), key), config.r)


