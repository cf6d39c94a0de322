"""An adapter before it has weights: the method's PEFT class, and what a saved one's folder says."""

import json
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osora_bench.common.errors import UserError
from osora_bench.planning.config import MethodConfig

if TYPE_CHECKING:
    from transformers import TrainerCallback


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


def imported(name: object, told: str) -> Any:
    """What a dotted name in a method's file stands for.

    Args:
        told: where the name stands.

    Raises:
        UserError: there is nothing of that name, or its module cannot be imported; then with the
            whole of what Python says, since that is about the user's own code.
    """
    told = f"{told}={name}"
    parts = str(name).split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            found: Any = import_module(module)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
                continue  # it is no module: perhaps a class, whose attribute is named
            own = traceback.format_exception(error)
            raise UserError(f"{told}: {module} cannot be imported:\n{''.join(own)}") from error
        for part in parts[length:]:
            if not hasattr(found, part):
                raise UserError(f"{told}: {module} has no {'.'.join(parts[length:])}")
            found = getattr(found, part)
        return found
    raise UserError(f"{told}: no module {parts[0]!r} can be found (is its folder on PYTHONPATH?)")


def start(method: MethodConfig) -> Callable[[Any], None]:
    """The function that `method.start` names, or one that does nothing.

    Raises:
        UserError: it cannot be imported, or is no function.
    """
    return _function(method, "start") or (lambda _: None)


def start_on_rows(method: MethodConfig) -> Callable[[Any, Any], None] | None:
    """The function that `method.start_on_rows` names, if it names one; raises as `start`."""
    return _function(method, "start_on_rows")


def _function(method: MethodConfig, key: str) -> Callable[..., None] | None:
    if (name := getattr(method, key)) is None:
        return None
    function = imported(name, f"method {method.name}: {key}")
    if not callable(function):
        raise UserError(f"method {method.name}: {key}={name} is no function")
    chosen: Callable[..., None] = function
    return chosen


def hooks(method: MethodConfig) -> "list[TrainerCallback]":
    """The method's own callbacks in the training loop, made anew.

    Raises:
        UserError: one cannot be imported, or is none of transformers' kind.
    """
    from transformers import TrainerCallback

    made = []
    for name in method.callbacks or ():
        kind = imported(name, f"method {method.name}: callbacks")
        if not (isinstance(kind, type) and issubclass(kind, TrainerCallback)):
            raise UserError(
                f"method {method.name}: callbacks={name} is no class of callbacks "
                "(a subclass of transformers.TrainerCallback)"
            )
        made.append(kind())
    return made


def own_optimizer(method: MethodConfig) -> Callable[..., Any] | None:
    """The function that makes the method's optimiser of `model`, `optimizer_cls` and that class's
    arguments, as `peft.optimizers` has them; None: the recipe's optimiser does.

    Raises:
        UserError: it cannot be imported.
    """
    if method.optimizer is None:
        return None
    settings = dict(method.optimizer)
    told = f"method {method.name}: optimizer._target_"
    return partial(imported(settings.pop("_target_", ""), told), **settings)


DATA_STEPS = ("eva", "lora_ga", "corda")
"""Starts of PEFT's LoRA from activations or gradients, which its user has to collect beforehand."""


def check_start(method: MethodConfig) -> None:
    """Refuse starts that would not happen, or that the saved adapter would not come back from.

    Raises:
        UserError: see there; the method's settings are wrong.
    """
    how = str(getattr(instantiate(method), "init_lora_weights", ""))
    told = f"method {method.name}: init_lora_weights={how}"
    if how.startswith(DATA_STEPS) and method.start_on_rows is None:
        raise UserError(
            f"{told} starts from activations or gradients on data, a step that nothing here does "
            "(method.start_on_rows names a function that would, as in method=eva); without it "
            "PEFT gives plain LoRA"
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

    if (target := (method.peft or {}).get("_target_")) is None:
        raise UserError(f"method {method.name}: peft._target_ is missing: name a PEFT class")
    imported(target, f"method {method.name}: peft._target_")
    try:
        # PEFT saves its configuration as JSON and cannot write OmegaConf's containers
        settings = build(method.peft, _convert_="all")
    except HydraException as error:
        cause = error.__cause__ or error
        raise UserError(f"method {method.name}: {cause}") from error
    if not isinstance(settings, PeftConfig):
        raise UserError(
            f"method {method.name}: peft._target_={target} makes no PEFT configuration "
            "(a subclass of peft.PeftConfig)"
        )
    return settings
