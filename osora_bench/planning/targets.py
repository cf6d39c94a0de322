"""Which modules are adapted, spelled in one way: two spellings of the same modules are one choice.

PEFT takes a list of names, a regular expression or `all-linear`. A list of last names (`q_proj`)
says by itself what it matches; anything else is looked up in the model's modules and becomes such a
list, or one of whole names where last names would match more. Lists count in any order.
"""

import json
import re
from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from osora_bench.common.errors import UserError
from osora_bench.planning.blank import blank, location
from osora_bench.planning.config import Config, ModelConfig, plain

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output layer."""
KEY = "target_modules"


def spelled_out(cfg: Config) -> Config:
    """The configuration with the modules to adapt as a list, for the model and for the method.

    Raises:
        UserError: what matches no module, or is no regular expression; a model whose modules have
            to be looked up and are not known.
    """
    model, method = cfg.model, cfg.method
    chosen = _spelled(model, model.target_modules, "model.target_modules")
    if chosen is not model.target_modules:
        cfg = replace(cfg, model=replace(model, target_modules=chosen))
    own = (method.peft or {}).get(KEY)
    if not isinstance(own, str | list) or not own:
        return cfg
    said = _spelled(model, own, f"method {method.name}: peft.target_modules")
    if said is own:
        return cfg
    return replace(cfg, method=replace(method, peft={**(method.peft or {}), KEY: said}))


def _spelled(model: ModelConfig, targets: Any, key: str) -> Any:
    """`targets` as the list that stands for what they match; the same object if they are that."""
    if isinstance(targets, list) and all(re.fullmatch(r"\w+", str(name)) for name in targets):
        names = sorted(set(targets))
        return targets if targets == names else names
    section = ModelConfig(name=model.name, path=model.path, architecture=model.architecture)
    section.revision = model.revision
    told = None
    if model.architecture is None and (folder := location(model)) != model.path:
        told = (Path(folder) / "config.json").read_text(encoding="utf-8")
    written = targets if isinstance(targets, str) else tuple(targets)
    return [*_looked_up(json.dumps(plain(section)), told, written, key)]


@lru_cache(maxsize=256)
def _looked_up(
    section: str, told: str | None, targets: str | tuple[str, ...], key: str
) -> tuple[str, ...]:
    """`told` is what the model's file says, should it change while its section stays the same."""
    names, linear = _modules(section, told)
    matched: set[str] = set()
    for target in (targets,) if isinstance(targets, str) else targets:
        if target == ALL_LINEAR and target == targets:
            found = set(linear)
        else:
            found = _matching(names, target if target == targets else [target], key)
        if not found:
            shown = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UserError(f"{key}: {target!r} matches no module. Linear layers here: {shown}")
        matched |= found
    last = {name.rpartition(".")[2] for name in matched}
    whole = {name for name in names if name.rpartition(".")[2] in last}
    return tuple(sorted(last if whole == matched else matched))


def _matching(names: Collection[str], targets: str | list[str], key: str) -> set[str]:
    """The modules that PEFT would adapt."""
    from peft.tuners.tuners_utils import check_target_module_exists

    asked = SimpleNamespace(target_modules=targets)
    try:
        return {name for name in names if check_target_module_exists(asked, name)}
    except re.error as error:
        raise UserError(f"{key}: {targets!r} is no regular expression ({error})") from error


@lru_cache(maxsize=16)
def _modules(section: str, told: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a model's modules, and of those that `all-linear` means."""
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    model = ModelConfig(**json.loads(section))
    try:
        modules = blank(model)
    except OSError as error:  # transformers', of a hub model that is not on this machine
        raise UserError(
            f"model {model.name}: its modules are not known here: name them one by one in "
            "model.target_modules, e.g. [q_proj,v_proj]"
        ) from error
    asked = SimpleNamespace(target_modules=ALL_LINEAR, task_type="CAUSAL_LM")
    linear = _maybe_include_all_linear_layers(asked, modules).target_modules
    names = tuple(name for name, _ in modules.named_modules() if name)
    return names, tuple(sorted(linear))
