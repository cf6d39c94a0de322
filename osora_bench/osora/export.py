"""Export of a trained OSoRA adapter: as a standard LoRA adapter, or merged into the base model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import (
    SAFETENSORS_WEIGHTS_NAME,
    ModulesToSaveWrapper,
    get_peft_model_state_dict,
)
from torch import Tensor

from .checkpoint import each_once
from .config import PEFT_TYPE, OsoraConfig
from .layer import OsoraLayer
from .older_peft import BEFORE_20, needs
from .saving import as_new_files, save_tensors


@torch.no_grad()
def to_lora(
    model: PeftModel, adapter_name: str = "default"
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The LoRA adapter that is equal to an OSoRA adapter, on the original base weights.

    Exact: A = V_r^T and B = diag(O) U_r diag(S) - diag(O_0) U_r diag(S_0) (with O on the input, A
    is scaled instead), alpha = r. OSoRA+DoRA becomes LoRA with use_dora.

    Returns:
        The configuration, and the tensors as PEFT stores them, in float32 (float64 on such a base)
        also where S and O are kept in 16 bits; modules and biases as they are.

    Raises:
        ValueError: No such OSoRA adapter, or a row of zeros under DoRA (LoRA divides by its norm).
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, OsoraConfig):
        names = [n for n, c in model.peft_config.items() if c.peft_type == PEFT_TYPE]
        there = f"there are: {', '.join(names)}" if names else "the model has none"
        raise ValueError(f"no OSoRA adapter is called {adapter_name!r}; {there}")
    stored = get_peft_model_state_dict(model, adapter_name=adapter_name)
    tensors = {
        key: _own(tensor)
        for key, tensor in each_once(model, stored, adapter_name).items()
        if ".osora_" not in key
    }
    ranks, turned = {}, False
    for name, layer in model.named_modules():
        if isinstance(layer, OsoraLayer) and adapter_name in layer.osora_S:
            tensors.update(_layer_tensors(name, layer, adapter_name))
            ranks[name.removeprefix("base_model.model.")] = len(layer.osora_S[adapter_name])
            turned = turned or layer.fan_in_fan_out
    return _lora_config(config, ranks, turned), tensors


def _layer_tensors(name: str, layer: OsoraLayer, adapter_name: str) -> dict[str, Tensor]:
    wide = torch.promote_types(layer.osora_S[adapter_name].dtype, torch.float32)
    a, b = layer.lora_factors(adapter_name, wide)
    tensors = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    if adapter_name in layer.osora_magnitude:
        if not (layer.osora_norm0[adapter_name] > 0).all():
            raise ValueError(f"{name} has a row of zeros, which LoRA's use_dora cannot hold")
        tensors[f"{name}.lora_magnitude_vector"] = layer.osora_magnitude[adapter_name].to(wide)
    return {key: _own(tensor) for key, tensor in tensors.items()}


def _own(tensor: Tensor) -> Tensor:
    """A copy: layers, adapters and tied modules may share memory, which safetensors refuses."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _lora_config(config: OsoraConfig, ranks: dict[str, int], fan_in_fan_out: bool) -> LoraConfig:
    other = {re.escape(name): r for name, r in ranks.items() if r != config.r}
    same = {
        name: getattr(config, name)
        for name in (
            "r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
            "modules_to_save", "use_dora", "task_type", "inference_mode",
            "base_model_name_or_path", "revision",
        )
    }  # fmt: skip
    bias = "lora_only" if config.bias == "osora_only" else config.bias
    return LoraConfig(
        **same,
        bias=bias,
        fan_in_fan_out=fan_in_fan_out,
        lora_alpha=config.r,
        lora_dropout=0.0,
        rank_pattern=other,
        alpha_pattern=dict(other),
    )


def save_lora(model: PeftModel, folder: str | Path, adapter_name: str = "default") -> None:
    """Write `to_lora` as a folder that plain PEFT loads without this package."""
    config, tensors = to_lora(model, adapter_name)
    config.inference_mode = True
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, Path(folder, SAFETENSORS_WEIGHTS_NAME), {"format": "pt"})
    config.save_pretrained(str(folder))


def save_merged(model: PeftModel, folder: str | Path, adapter_name: str = "default") -> None:
    """Write the base model with the adapter merged in (Eq. 7), as a safetensors model folder.

    The model in memory ends as it was, bit for bit.

    Raises:
        ValueError: Adapters are merged already, the base is quantised, or the merged weights would
            not be finite.
    """
    layers = [m for m in model.modules() if isinstance(m, OsoraLayer)]
    if any(layer.merged for layer in layers):
        raise ValueError("adapters are merged already; unmerge them first")
    if any(layer.quantization_backend is not None for layer in layers):
        raise ValueError(
            "the base is quantised, and merged weights would be rounded anew: export the adapter "
            "as LoRA"
        )
    _need_base_tensors()
    try:
        model.merge_adapter(adapter_names=[adapter_name], safe_merge=True)
        write_base(model, folder, adapter_name)
    finally:
        for layer in layers:
            if layer.merged:
                layer.unmerge()


def _need_base_tensors() -> None:
    if BEFORE_20:
        raise ValueError(
            needs("a merged folder", "0.20") + "; model.merge_and_unload() works with any"
        )


def write_base(model: PeftModel, folder: str | Path, adapter_name: str) -> None:
    """Write the base model as a model folder, its weights as they are now, and the modules that an
    adapter trains whole (`modules_to_save`) as the adapter has them."""
    from peft.utils.save_and_load import get_base_model_state_dict

    base: Any = model.get_base_model()
    tensors = get_base_model_state_dict(model)
    for name, module in base.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            trained = module.modules_to_save[adapter_name].state_dict()
            tensors.update({f"{name}.{key}": tensor for key, tensor in trained.items()})
    with as_new_files(Path(folder)), _as_tied_as_it_is(base, adapter_name):
        base.save_pretrained(folder, state_dict=tensors)


@contextmanager
def _as_tied_as_it_is(base: Any, adapter_name: str) -> Iterator[None]:
    """Have the configuration say that output layer and embedding are two, within the block, where
    an adapter trains one of a tied pair whole: who reads the folder would tie them again."""
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    own = [
        end.modules_to_save[adapter_name]
        for end in ends
        if isinstance(end, ModulesToSaveWrapper) and adapter_name in end.modules_to_save
    ]
    tied = getattr(base.config, "tie_word_embeddings", False)
    if not (tied and own) or (len(own) == 2 and own[0].weight is own[1].weight):
        yield
        return
    base.config.tie_word_embeddings = False
    try:
        yield
    finally:
        base.config.tie_word_embeddings = True
