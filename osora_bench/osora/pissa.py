"""PiSSA's start (arXiv 2404.02948) from the same decompositions as OSoRA's."""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from .store import decompose


@torch.no_grad()
def start_pissa(model: PeftModel, adapter_name: str = "default") -> None:
    """Turn fresh LoRA layers into PiSSA's: A = S_r^(1/2) V_r^T, B = U_r S_r^(1/2), W0 - B A.

    The same definition as PEFT's ``init_lora_weights="pissa"``, which decomposes every weight
    anew for each run; here the decompositions come from the store, if one is in use. Make the
    model with ``init_lora_weights=True``, then call this. The base weights change, as in PEFT.

    Raises:
        ValueError: A rank above min(d_in, d_out), or an adapter that is not fresh (B is not 0).
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and adapter_name in layer.lora_A
    }
    for name, layer in layers.items():
        r, limit = layer.r[adapter_name], min(layer.get_base_layer().weight.shape)
        if r > limit:
            raise ValueError(f"rank {r} is too large for {name}: PiSSA allows at most {limit}")
        if layer.lora_B[adapter_name].weight.any():
            raise ValueError(f"adapter {adapter_name!r} is not fresh: lora_B of {name} is not zero")
    for layer in layers.values():
        _start(layer, adapter_name)


def _start(layer: LoraLayer, adapter_name: str) -> None:
    weight = layer.get_base_layer().weight
    turned = isinstance(layer.get_base_layer(), Conv1D)
    original = weight.data.T if turned else weight.data
    u, s, vh = decompose(original, layer.r[adapter_name])
    root = (s / layer.scaling[adapter_name]).sqrt()
    a, b = root[:, None] * vh, u * root
    layer.lora_A[adapter_name].weight.data = a.contiguous()
    layer.lora_B[adapter_name].weight.data = b.contiguous()
    rest = (original.to(a.dtype) - layer.scaling[adapter_name] * (b @ a)).to(weight.dtype)
    weight.data = rest.T.contiguous() if turned else rest
