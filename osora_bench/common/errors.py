"""The one exception whose message is meant for the person at the terminal, and how it is told."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the user can mend: printed without a traceback, exit status 2."""


class Refused(UserError):
    """The same, found out when a part of a sweep has been run: told after what became of it."""


def tell(error: BaseException | str) -> None:
    """Print what stopped the command, or a part of it, on standard error."""
    print(f"osora-bench: {error}", file=sys.stderr)


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """Say that `name` is not one of `choices`, the nearest named first."""
    valid = sorted(choices)
    near = get_close_matches(name, valid, n=3)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Valid: {', '.join(valid)}"
