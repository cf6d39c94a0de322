"""Overrides in, resolved configuration out: Hydra's composition with errors a person can use."""

import copy
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Override,
    OverrideType,
    Quote,
    QuotedString,
)
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.common.process import without_collecting
from osora_bench.planning import config, declared
from osora_bench.planning.checks import check_config
from osora_bench.planning.targets import spelled_out


def _times(factor: float, number: int) -> int:
    """A whole number by another one, rounded up."""
    return math.ceil(factor * number)


OmegaConf.register_new_resolver("times", _times, replace=True)  # `${times:1.5,${method.rank}}`


def group_choices(group: str) -> list[str]:
    """The files of one config group, e.g. every model."""
    return list(paths.conf_files(group))


def check_overrides(
    overrides: Sequence[str], also: Collection[str] = (), where: str | None = None
) -> None:
    """Refuse an unknown key or group member, and a value that its key does not take, before Hydra
    composes anything.

    Hydra names the members of a group but not the keys of a node, has OmegaConf's words for a
    value, and stops at the first.

    Args:
        also: what may stand among them and is no key of the configuration.
        where: what they are of, told before what is wrong.
    """
    for override in overrides:
        try:
            _parsed(override)
        except HydraException as error:
            raise UserError(f"{override!r} is not KEY=VALUE as Hydra reads it: {error}") from error
    problems = [problem for o in overrides for problem in _override_problems(o, also)]
    if problems:
        raise UserError(
            "\n".join(problems if where is None else [f"{where}: {p}" for p in problems])
        )


@lru_cache(maxsize=4096)
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _override_problems(text: str, also: Collection[str]) -> Iterator[str]:
    override = _parsed(text)
    key = override.key_or_group
    if key in also or key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return
    if key in config.GROUPS:
        value = override.value()
        members = value.list if isinstance(value, ChoiceSweep) else [value]
        for member in members:
            name = str(getattr(member, "text", member))
            if (problem := member_problem(key, name)) is not None:
                yield problem
        return
    if (problem := declared.key_problem(key, also)) is not None:
        yield problem if key in problem else f"{text}: {problem}"
    elif override.type != OverrideType.DEL:
        for one in _one_by_one(text):
            if (problem := _value_problem(one)) is not None:
                yield f"{one}: {problem}"


def _one_by_one(text: str) -> Iterable[str]:
    """An override as one for each of the values that it sweeps over, if they can be counted."""
    override = _parsed(text)
    if not override.is_sweep_override():
        return [text]
    if not override.is_discrete_sweep():
        return []
    key = override.get_key_element()
    return (f"{key}={value}" for value in override.sweep_string_iterator())


@lru_cache(maxsize=4096)
def _value_problem(text: str) -> str | None:
    override = _parsed(text)
    return declared.value_problem(override.key_or_group, override.value())


def member_problem(group: str, name: str) -> str | None:
    """Why a config group has no such member, or what is wrong with its file."""
    files = paths.conf_files(group)
    if name not in files:
        return unknown(group, name, files)
    return _file_problem(files[name])


@lru_cache(maxsize=512)
def _file_problem(file: Path) -> str | None:
    """What is wrong with a file of conf/ that Hydra would tell with a traceback, or not at all."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return f"{file}, line {line}: not YAML ({error.problem})"
    name = content.get("name", file.stem) if isinstance(content, dict) else file.stem
    return None if name == file.stem else f"{file}: name: {name}, but its file is {file.name}"


def quoted(text: str) -> str:
    """A text as the value of an override, whatever is in it: the configuration holds it as it is.

    Hydra's grammar has no other escapes than those of the quotes; what OmegaConf would take for an
    interpolation is escaped for it.
    """
    return written(re.sub(r"(\\*)\$\{", r"\1\1\\${", text))


def written(value: Any) -> str:
    """A value of a YAML file as that of an override; interpolations in it stay interpolations."""
    if isinstance(value, str):
        return QuotedString(value, Quote.double).with_quotes()
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return json.dumps(value)


class OwnConf(SearchPathPlugin):
    """Has Hydra look into the user's own ./conf first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own = paths.own_conf()
        if own is not None:
            search_path.prepend("own", f"file://{own}")


def find_own_conf() -> None:
    """Have Hydra look into the user's own ./conf first, in this process.

    Raises:
        UserError: it holds what is not the user's to replace.
    """
    paths.own_conf()  # a plugin that raises ends in a traceback of Hydra's
    plugins = Plugins.instance()
    if OwnConf not in plugins.discover(SearchPathPlugin):
        plugins.register(OwnConf)


@contextmanager
def composer() -> Iterator[None]:
    """Make `compose` usable: point Hydra at conf/, whatever an earlier user of Hydra set up."""
    GlobalHydra.instance().clear()
    find_own_conf()
    with (
        without_collecting(),
        hydra.initialize_config_dir(config_dir=str(paths.CONF), version_base="1.3"),
    ):
        yield


def compose(overrides: Sequence[str], where: str) -> DictConfig:
    """Compose one configuration, unresolved. Call inside `composer()`.

    Hydra composes each distinct choice of files once. Values are set on a copy of it, as Hydra
    sets them: after the files, in their order.

    Raises:
        UserError: what Hydra or OmegaConf refused, after `where`.
    """
    try:
        choices = [o for o in overrides if _parsed(o).key_or_group in config.GROUPS]
        values = [_parsed(o) for o in overrides if o not in choices]
        if not all(_sets_a_value(value) for value in values):
            return copy.deepcopy(_composed(_folders(), tuple(overrides)))
        cfg = copy.deepcopy(_composed(_folders(), tuple(choices)))
        try:
            for value in values:
                OmegaConf.update(cfg, value.key_or_group, value.value(), merge=True)
        except OmegaConfBaseException:  # Hydra refuses it too, and says what to do about it
            return copy.deepcopy(_composed(_folders(), tuple(overrides)))
        return cfg
    except (HydraException, OmegaConfBaseException) as error:
        said = [p for o in overrides for p in _override_problems(o, ())] or [with_cause(error)]
        raise UserError(f"{where}: " + "\n  ".join(said)) from error


def with_cause(error: Exception) -> str:
    """What Hydra says, and what OmegaConf said to it: Hydra itself names only the override."""
    message, cause = str(error).rstrip(), error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return f"{message}: {declared.told(cause)}"
    return message if cause is None else f"{message}: {str(cause).partition(chr(10))[0]}"


def _sets_a_value(override: Override) -> bool:
    """`key=value` for one key of a configuration, and nothing more than that."""
    return (
        override.type == OverrideType.CHANGE
        and override.package is None
        and not override.is_sweep_override()
        and not override.key_or_group.startswith(("hydra.", "hydra/"))
    )


def _folders() -> tuple[Path | None, ...]:
    return paths.own_conf(), paths.CONF


@lru_cache(maxsize=512)
def _composed(folders: tuple[Path | None, ...], overrides: tuple[str, ...]) -> DictConfig:
    """Hydra takes a tenth of a second; a process composes many cells alike. The files are read
    once: what is edited meanwhile counts from the next start on."""
    return hydra.compose("config", overrides=list(overrides))


def resolve(cfg: DictConfig, where: str) -> config.Config:
    """Resolve interpolations into a typed configuration and check it.

    Raises:
        UserError: a value that is missing, of the wrong type, or against another one.
    """
    (resolved,) = vary(cfg, [{}], where)
    return resolved


def vary(
    cfg: DictConfig, variants: Sequence[Mapping[str, Any]], where: str
) -> Iterator[config.Config]:
    """Set the values of each variant on `cfg`, then resolve and check as `resolve` does.

    What a variant changes is replaced in a copy of the variant before, and interpolations that it
    could reach are resolved anew; all else is the same object in every result, so none may be
    changed.

    Args:
        variants: values by dotted key, of the key's type; the keys are the same in all of them.

    Raises:
        UserError: as `resolve`.
    """
    try:
        previous: config.Like | None = None
        for data in _variants(cfg, variants):
            cell_config = config.Config.of(data, previous)
            check_config(cell_config, where)
            cell_config = spelled_out(cell_config)
            yield cell_config
            previous = data, cell_config
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {declared.told(error)}") from error


def _variants(cfg: DictConfig, variants: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    previous = variants[0]
    for key, value in previous.items():
        OmegaConf.update(cfg, key, value)
    data = _plain(cfg)
    yield data
    references = dict(_references(OmegaConf.to_container(cfg)))
    reachable = {key for key in previous if _could_reach(references.values(), key)}
    for values in variants[1:]:
        changes = {key: value for key, value in values.items() if value != previous[key]}
        for key, value in changes.items():
            data = _replaced(data, tuple(key.split(".")), value)
            if key in reachable:
                OmegaConf.update(cfg, key, value)
        for place in references if reachable & changes.keys() else ():
            data = _replaced(data, place, _plain_value(cfg, place))
        yield data
        previous = values


Place = tuple[str | int, ...]
"""Keys and indices from the root of a configuration to a value."""


def _references(node: Any, above: Place = ()) -> Iterator[tuple[Place, str]]:
    """Where in plain unresolved data an interpolation stands, and its text."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _references(value, (*above, key))
    elif isinstance(node, str) and "${" in node:
        yield above, node


def _could_reach(texts: Collection[str], key: str) -> bool:
    """Whether interpolations could lead to a key: they name a part of it, or make up what they
    name as they go."""
    dynamic = any(":" in text or text.count("${") > 1 for text in texts)
    return dynamic or any(part in text for text in texts for part in key.split("."))


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _plain_value(cfg: DictConfig, place: Place) -> Any:
    node: Any = cfg
    for key in place:
        node = node[key]
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    return node


def _replaced(node: Any, place: Place, value: Any) -> Any:
    """Plain data with another value at `place`; what lies beside the way there is shared."""
    if not place:
        return value
    clone = node.copy()
    clone[place[0]] = _replaced(node[place[0]], place[1:], value)
    return clone
