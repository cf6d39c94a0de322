"""osora-bench params: every method's parameters and bytes as Markdown or CSV."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from tabulate import tabulate

from osora_bench.cli.options import members, own_options
from osora_bench.common.errors import UserError, unknown
from osora_bench.reporting import parameters
from osora_bench.reporting.parameters import CountLine

OPTIONS = ("model", "method", "rank", "config", "modules")
HELP = {
    "params": """\
usage: osora-bench params [KEY=VALUE ...] [--csv]

Trainable parameters, adapter and frozen bytes, from the architecture alone; by default of the
experiments' grid.

  model=A,B            files of conf/model
  config=FILE          any hub-style config.json instead, with each method's own rank
  method=C,D           files of conf/method, or all; exit status 2 if one cannot be counted
  rank=8,16            these ranks for all methods
  modules=M,N          the modules that are adapted, e.g. c_attn or all-linear
  --csv                for machines
"""
}
ALL = "all"


def params_verb(arguments: Sequence[str]) -> int:
    """Count parameters of models x methods x ranks; what is named must be counted."""
    options, rest = own_options(arguments, OPTIONS)
    if wrong := [a for a in rest if a != "--csv"]:
        raise UserError(unknown("option", wrong[0], ["--csv", *(f"{k}=" for k in OPTIONS)]))
    if "model" in options and "config" in options:
        raise UserError("model= and config= both say which model: name one of them")
    config = Path(options["config"]) if "config" in options else None
    # what is not in a config.json, the modules to adapt, is then any model's: q_proj and v_proj
    models = ["toy"] if config else members(options.get("model"), "model")
    methods = _methods(options.get("method"))
    ranks = None
    if "rank" in options:
        try:
            ranks = [int(text) for text in options["rank"].split(",")]
        except ValueError as error:
            raise UserError(f"rank={options['rank']}: whole numbers, e.g. rank=8,16") from error
        if min(ranks) < 1:
            raise UserError(f"rank={options['rank']}: a rank is at least 1")
    modules = _modules(options["modules"]) if "modules" in options else None

    lines = parameters.count_table(models, methods, ranks, config, modules)
    if any(line.count for line in lines):
        print(counts_csv(lines) if "--csv" in rest else counts_markdown(lines))
    check_counted(lines, named=options.get("method", ALL) != ALL)
    return 0


def check_counted(lines: Sequence[CountLine], named: bool) -> None:
    """Raise UserError if there is no count of what was asked for.

    Args:
        named: the methods are the user's choice. Of all methods some are refused as a matter of
            course, and the table says so.
    """
    problems = [str(line.problem) for line in lines if line.count is None]
    if problems and (named or len(problems) == len(lines)):
        raise UserError("\n".join(["not counted:", *dict.fromkeys(problems)]))


def _methods(selection: str | None) -> list[str] | None:
    """The methods that are named, with `all` every file; None: those of the experiments."""
    return None if selection is None else members(None if selection == ALL else selection, "method")


def _modules(text: str) -> list[str] | str:
    """Names with commas between them; anything else is a regular expression, or all-linear."""
    return text.split(",") if re.fullmatch(r"[\w.,]+", text) else text


def counts_markdown(lines: Sequence[CountLine]) -> str:
    """The counts as a table; a rank that a layer cannot have says so in place of numbers."""
    table = [
        {
            "Model": line.model,
            "Method": line.method,
            "r": "" if line.rank is None else str(line.rank),
            "Trainable": _thousands(line.count.trainable) if line.count else line.problem,
            "Adapter bytes": _thousands(line.count.adapter_bytes) if line.count else "",
            "Frozen extra bytes": _thousands(line.count.frozen_bytes) if line.count else "",
        }
        for line in lines
    ]
    alignment = ("left", "left", "right", "right", "right", "right")
    return str(
        tabulate(table, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=alignment)
    )


def counts_csv(lines: Sequence[CountLine]) -> str:
    """The counts for machines: one line each, numbers as they are."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "method", "rank", "trainable", "adapter_bytes", "frozen_bytes"])
    for line in lines:
        numbers = astuple(line.count) if line.count else (line.problem, "", "")
        writer.writerow([line.model, line.method, line.rank or "", *numbers])
    return stream.getvalue()


def _thousands(value: int) -> str:
    return f"{value:,}"
