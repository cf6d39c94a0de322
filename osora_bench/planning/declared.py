"""What each key of the configuration takes, and in plain words a value that it does not take:
OmegaConf says it in the words of its classes."""

from collections.abc import Collection, Iterator
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osora_bench.common.errors import unknown
from osora_bench.planning import config
from osora_bench.planning.checks import MODULES

TAKEN = {
    list: "a list in brackets, e.g. [a,b]",
    dict: "settings by name, e.g. {a: 1}",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "one text",
    type(None): "null",
}
"""What a key of each type takes, in words."""
FREE = {"model.target_modules": MODULES}
"""Keys of several types, of which Hydra would try to merge settings by name into the others."""


def key_problem(key: str, also: Collection[str] = ()) -> str | None:
    """Why the configuration has no such key. What is free-form, such as method.peft, has any.

    Args:
        also: what is named as valid beside the keys of the root.
    """
    hint: Any = config.Config
    prefix = ""
    for part in key.split("."):
        names = [f.name for s in _sections(hint) for f in fields(s)]
        if names and part not in names:
            valid = [f"{prefix}{name}" for name in names] + ([] if prefix else [*also])
            return unknown("key", f"{prefix}{part}", valid)
        if (
            not names
            and dict not in _kinds(hint)
            and not (list in _kinds(hint) and part.isdecimal())
        ):
            return f"{prefix[:-1]} takes {taken(prefix[:-1])}"
        hint = _step(hint, part)
        if hint is None:
            return None
        prefix += f"{part}."
    return None


def value_problem(key: str, value: Any) -> str | None:
    """Why a key cannot have a value; None too for a key that is not declared."""
    if key in FREE and isinstance(value, dict):
        return f"{key} takes {FREE[key]}"
    hint = _declared(key)
    if hint is None:
        return None
    holder = OmegaConf.structured(_holder(hint))
    try:
        OmegaConf.update(holder, "value", value, merge=True)
    except OmegaConfBaseException as error:
        inner = _dotted(error).removeprefix("value")
        if inner.startswith(".") and taken(f"{key}{inner}"):
            return f"{key}{inner} takes {taken(f'{key}{inner}')}"
        within = f" ({str(error).partition(chr(10))[0]})" if inner else ""  # an entry of a list
        return f"{key} takes {taken(key)}{within}"
    return None


def counts(key: str) -> bool:
    """Whether a key can change a cell's numbers: no field on the way to it only names, places or
    speeds things."""
    hint: Any = config.Config
    for part in key.split("."):
        for section in _sections(hint):
            for named in (f for f in fields(section) if f.name == part):
                if not named.metadata.get("identity", True) and "through" not in named.metadata:
                    return False
        hint = _step(hint, part)
    return True


def told(error: OmegaConfBaseException) -> str:
    """What OmegaConf refused, its key and what that takes in one sentence."""
    key, said = _dotted(error), str(error).partition("\n")[0]
    words = taken(key)
    return f"{key} takes {words}: {said}" if words else said


@lru_cache(maxsize=512)
def taken(key: str) -> str:
    """What a dotted key takes, in words; empty for one that no section declares."""
    kinds = [dict if is_dataclass(kind) else kind for kind in _kinds(_declared(key))]
    return " or ".join(TAKEN[kind] for kind in TAKEN if kind in kinds)


@lru_cache(maxsize=512)
def _declared(key: str) -> Any:
    """The type of a dotted key's value; None for what no section declares."""
    hint: Any = config.Config
    for part in key.split("."):
        hint = _step(hint, part)
        if hint is None:
            return None
    return hint


def _step(hint: Any, part: str) -> Any:
    """The type of what one part of a key names in a value of type `hint`."""
    for section in _sections(hint):
        return get_type_hints(section).get(part)
    if part.isdecimal():
        for member in _members(hint):
            if get_origin(member) is list:
                return get_args(member)[0]
    return None


def _sections(hint: Any) -> Iterator[Any]:
    return (member for member in _members(hint) if is_dataclass(member))


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _kinds(hint: Any) -> list[Any]:
    return [get_origin(member) or member for member in _members(hint)]


@lru_cache(maxsize=64)
def _holder(hint: Any) -> type:
    """A section of one key, `value`: OmegaConf knows types as those of a section's fields."""
    return make_dataclass("Holder", [("value", hint, field(default=MISSING))])


def _dotted(error: OmegaConfBaseException) -> str:
    """The key of an error, with list indices as parts of it."""
    return str(error.full_key or "").replace("[", ".").replace("]", "")
