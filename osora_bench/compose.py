"""Overrides in, resolved configuration out: Hydra's composition with errors a person can use."""

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osora_bench import config, paths
from osora_bench.errors import UserError, unknown


def group_choices(group: str) -> list[str]:
    """The files of one config group, e.g. every model."""
    return sorted(p.stem for p in (paths.CONF / group).glob("*.yaml"))


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse an unknown key or group member before Hydra composes anything.

    Hydra names the members of a group but not the keys of a node, and stops at the first.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(str(error)) from error
    found = [problem for o in parsed for problem in _override_problems(o)]
    if found:
        raise UserError("\n".join(found))


def _override_problems(override: Override) -> Iterator[str]:
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return
    if key in config.GROUPS:
        value = override.value()
        members = value.list if isinstance(value, ChoiceSweep) else [value]
        for member in members:
            name = str(getattr(member, "text", member))
            if name not in group_choices(key):
                yield unknown(key, name, group_choices(key))
        return
    node: Any = config.Config
    walked = ""
    for part in key.split("."):
        if not is_dataclass(node):
            return  # a free-form section, e.g. method.peft: PEFT's own class checks it
        names = [f.name for f in fields(node)]
        if part not in names:
            yield unknown("key", f"{walked}{part}", [f"{walked}{n}" for n in names])
            return
        node = get_type_hints(node)[part]
        walked += f"{part}."


@contextmanager
def composer() -> Iterator[None]:
    """Make `compose` usable: point Hydra at conf/, whatever an earlier user of Hydra set up."""
    GlobalHydra.instance().clear()
    with (
        without_collecting(),
        hydra.initialize_config_dir(config_dir=str(paths.CONF), version_base="1.3"),
    ):
        yield


@contextmanager
def without_collecting() -> Iterator[None]:
    """Look for no cycles of garbage: a fifth of the time where a million small objects are made."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def compose(overrides: Sequence[str], where: str) -> DictConfig:
    """Compose one configuration, unresolved. Call inside `composer()`.

    Raises:
        UserError: what Hydra or OmegaConf refused, after `where`.
    """
    try:
        return copy.deepcopy(_composed(paths.CONF, tuple(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{where}: {error}") from error


@lru_cache(maxsize=512)
def _composed(conf: Path, overrides: tuple[str, ...]) -> DictConfig:
    """Hydra takes a seventh of a second; a process composes many cells alike. The files are read
    once: what is edited meanwhile counts from the next start on."""
    return hydra.compose("config", overrides=list(overrides))


def resolve(cfg: DictConfig, where: str) -> dict[str, Any]:
    """Resolve interpolations into plain data and check it.

    Raises:
        UserError: a value that is missing, of the wrong type, or against another one.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {error}") from error
    assert isinstance(plain, dict)
    resolved = {str(key): value for key, value in plain.items()}
    config.check(resolved, where)
    return resolved
