"""Templates of training rows: text with {column} and {column[key][0]} in it.

They are `str.format`'s, without what would train text that no row holds: attributes of Python's
objects (`{q.upper}`), the word None for a null, the printed form of a list.
"""

import re
import string
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from osora_bench.common.errors import UserError

FIELD = re.compile(r"(?P<column>[^.\[\]]+)(?P<keys>(\[[^\[\]]+\])*)")
BRACES = "braces that are meant as such are written {{ }}"


class Unfit(Exception):
    """A row that a template cannot be filled with; the message says why."""


@dataclass(frozen=True)
class Field:
    """One {...} of a template: a column of the row, perhaps keys or positions inside it."""

    column: str
    keys: tuple[str | int, ...]
    conversion: str | None
    spec: str
    written: str

    def value(self, row: dict[str, Any]) -> Any:
        """What it stands for in a row.

        Raises:
            Unfit: the row has no such value, or one that is no text, number or truth value.
        """
        if self.column not in row:
            has = ", ".join(sorted(map(str, row)))
            raise Unfit(f"the template asks for {self.column!r}; the row has {has} ({BRACES})")
        found: Any = row[self.column]
        for key in self.keys:
            holds_it = isinstance(found, list if isinstance(key, int) else dict)
            if not holds_it:
                raise Unfit(f"{{{self.written}}} asks for {key!r} of {_told(found)}")
            try:
                found = found[key]
            except LookupError:
                raise Unfit(f"{{{self.written}}} asks for {key!r}, which is not there") from None
        if not isinstance(found, str | int | float):
            raise Unfit(f"{{{self.written}}} is {_told(found)}")
        return found

    def text(self, row: dict[str, Any]) -> str:
        """Its value as text; raises Unfit as `value` does, or where the format is not for it."""
        value = self.value(row)
        if self.conversion is not None:
            value = string.Formatter().convert_field(value, self.conversion)
        try:
            return format(value, self.spec)
        except ValueError as error:
            raise Unfit(f"{{{self.written}:{self.spec}}}: {error}") from error


class Template:
    """A template, taken apart once.

    Raises:
        UserError: it is none: lone braces, `{}`, `{0}`, an attribute (`{question.stem}`).
    """

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where
        self._parts = self._taken_apart()

    def _taken_apart(self) -> list[str | Field]:
        parts: list[str | Field] = []
        try:
            for literal, name, spec, conversion in string.Formatter().parse(self.text):
                parts.append(literal)
                if name is not None:
                    parts.append(self._field(name, spec or "", conversion))
            if any("{" in part.spec for part in parts if isinstance(part, Field)):
                raise ValueError("a field within a field's format")
        except ValueError as error:
            raise self._refused(str(error)) from error
        return parts

    def _field(self, name: str, spec: str, conversion: str | None) -> Field:
        found = FIELD.fullmatch(name)
        if found is None or found["column"].isdigit():
            hint = ""
            if found is None and re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+)+", name):
                first, *rest = name.split(".")
                hint = f"; a value inside one is {{{first}{''.join(f'[{one}]' for one in rest)}}}"
            raise ValueError(f"{{{name}}} names no column{hint}")
        if conversion not in (None, "s", "r", "a"):
            raise ValueError(f"{{{name}!{conversion}}}: no such conversion")
        keys = re.findall(r"\[([^\[\]]+)\]", found["keys"])
        taken = tuple(int(key) if key.isdecimal() else key for key in keys)
        return Field(found["column"], taken, conversion, spec, name)

    def _refused(self, why: str) -> UserError:
        return UserError(f"{self.where}: {self.text!r} is no template: {why} ({BRACES})")

    @cached_property
    def fields(self) -> list[Field]:
        return [part for part in self._parts if isinstance(part, Field)]

    def filled(self, row: dict[str, Any]) -> str:
        """The text for a row; raises Unfit where the row has not what it takes."""
        made = "".join(p if isinstance(p, str) else p.text(row) for p in self._parts)
        try:
            made.encode()
        except UnicodeEncodeError as error:
            wrong = f"U+{ord(made[error.start]):04X}"
            raise Unfit(f"half a character ({wrong}, a lone surrogate) in {made!a:.80}") from error
        return made

    def says_nothing(self, row: dict[str, Any]) -> bool:
        """Whether nothing of a row is in its text: every column that it takes is blank."""
        taken = [field.text(row) for field in self.fields] or [self.text]
        return not any(text.strip() for text in taken)


def _told(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return kinds.get(type(value), f"the value {value!r}")
