"""An adapter before it has weights: the method's PEFT class, and what a saved one's folder says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osora_bench.common.errors import UserError
from osora_bench.planning.config import MethodConfig


def read_settings(place: Path) -> dict[str, Any]:
    """What a JSON file of a model or an adapter says.

    Raises:
        UserError: it is not one.
    """
    try:
        settings = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{place}: is no JSON ({error})") from error
    if not isinstance(settings, dict):
        raise UserError(f"{place}: holds no settings by name")
    return settings


def check_adapter(folder: Path) -> None:
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        raise UserError(f"--adapter {folder}: no folder with an adapter_config.json")
    if "peft_type" not in read_settings(settings):
        raise UserError(f"{settings}: names no peft_type, so PEFT did not write it")
    tensors = ("adapter_model.safetensors", "adapter_model.bin")
    if not any((folder / name).is_file() for name in tensors):
        raise UserError(f"--adapter {folder}: lacks its tensors, {' or '.join(tensors)}")


def start(method: MethodConfig) -> Callable[[Any], None]:
    """The function that `method.start` names, or one that does nothing.

    Raises:
        UserError: it cannot be imported.
    """
    if method.start is None:
        return lambda _: None
    from hydra.utils import get_method

    try:
        function: Callable[[Any], None] = get_method(method.start)
    except Exception as error:  # Hydra wraps an ImportError in several others
        raise UserError(f"method {method.name}: start: {error}") from error
    return function


DATA_STEPS = ("eva", "lora_ga", "corda")
"""Starts of PEFT's LoRA from activations or gradients, which its user has to collect beforehand."""


def check_start(method: MethodConfig) -> None:
    """Refuse starts that would not happen, or that the saved adapter would not come back from.

    Raises:
        UserError: see there; the method's settings are wrong.
    """
    how = str(getattr(instantiate(method), "init_lora_weights", ""))
    told = f"method {method.name}: init_lora_weights={how}"
    if how.startswith(DATA_STEPS):
        raise UserError(
            f"{told} starts from activations or gradients on data, a step that is not done here; "
            "without it PEFT gives plain LoRA"
        )
    if "_niter_" in how:
        raise UserError(
            f"{told} draws random numbers for what it takes off the base weights: loaded again, "
            "the saved adapter would stand on others; method=pissa starts from the exact factors"
        )


def instantiate(method: MethodConfig) -> Any:
    """Build the method's PEFT configuration from its `peft` section.

    Raises:
        UserError: a class that cannot be imported or is none of PEFT's kind, or arguments that it
            refuses.
    """
    from hydra.errors import HydraException
    from hydra.utils import instantiate as build
    from peft import PeftConfig

    try:
        # PEFT saves its configuration as JSON and cannot write OmegaConf's containers
        settings = build(method.peft, _convert_="all")
    except HydraException as error:
        cause = error.__cause__ or error
        raise UserError(f"method {method.name}: {cause}") from error
    if not isinstance(settings, PeftConfig):
        target = (method.peft or {}).get("_target_")
        raise UserError(
            f"method {method.name}: peft._target_={target} makes no PEFT configuration "
            "(a subclass of peft.PeftConfig)"
        )
    return settings
