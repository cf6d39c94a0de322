"""osora-bench data: what the data folder has, whether it is right, fetching the rest."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from osora_bench.benchdata import fetch
from osora_bench.benchdata.sets import DataSet, FileState, examine, named_sets, state_of_file
from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown

ACTIONS = ("list", "verify", "fetch")
HELP = {
    "data": """\
usage: osora-bench data list|verify|fetch [--replace] [SET ...]

The benchmark sets, all or those that are named (docs/data.md).

  list                 licence, number of questions, state and source
  verify               checksums and rows; exit status 1 unless all are right
  fetch                download what is missing
  --replace            with fetch: also what is wrong
"""
}


def summary_of_set(chosen_set: DataSet) -> str:
    """In a few words, what the data folder has of a set: complete, or what stands against it."""
    states = {file.path: state_of_file(file) for file in chosen_set.files}
    parts = []
    for kind in (FileState.WRONG, FileState.MISSING):
        matches = [path for path, state in states.items() if state is kind]
        if kind is FileState.MISSING and len(matches) == len(states):
            parts.append("missing")
        elif matches:
            parts.append(f"{kind.value}: {', '.join(Path(path).name for path in matches)}")
    return "; ".join(parts) or "complete"


def listing(names: Sequence[str]) -> Iterator[str]:
    """One line a set: name, licence, questions, state, source."""
    heads = ("set", "licence", "questions", "in the data folder", "source")
    rows = [heads] + [
        (
            name,
            data_set.licence,
            "-" if data_set.questions is None else f"{data_set.questions:,}",
            summary_of_set(data_set),
            data_set.source + (" (gated)" if data_set.gated else ""),
        )
        for name, data_set in named_sets(names).items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield f"data folder (OSORA_DATA): {paths.data_root()}"


def verify(names: Sequence[str]) -> int:
    """Print every file of the sets with what was found; exit status 1 unless all are right."""
    counts = {"right": 0, "missing": 0, "wrong": 0}
    for name, data_set in named_sets(names).items():
        for file in data_set.files:
            finding = examine(file)
            counts[finding.kind] += 1
            text = f"WRONG: {finding.told}" if finding.kind == "wrong" else finding.told
            print(f"{name:14s} {file.path:42s} {text}")
    text = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    print(f"{sum(counts.values())} files below {paths.data_root()}: {text}")
    if counts["missing"]:
        print("`osora-bench data fetch` gets what is missing")
    return int(counts["missing"] + counts["wrong"] > 0)


def data_verb(arguments: Sequence[str]) -> int:
    """Where the benchmark sets come from, what of them is here, and getting the rest."""
    action = arguments[0] if arguments else ""
    if action not in ACTIONS:
        raise UserError(unknown("action of `data`", action, ACTIONS))
    flags = [a for a in arguments[1:] if a.startswith("-")]
    if wrong := [a for a in flags if a != "--replace" or action != "fetch"]:
        raise UserError(f"unknown option {wrong[0]}; `data fetch` alone has one, --replace")
    names = [a for a in arguments[1:] if a not in flags]
    if action == "fetch":
        return fetch.fetch(names, replace="--replace" in flags)
    if action == "verify":
        return verify(names)
    print("\n".join(listing(names)))
    return 0
