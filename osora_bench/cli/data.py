"""osora-bench data: what the data folder has, whether it is right, fetching the rest."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from osora_bench.benchdata import fetch
from osora_bench.benchdata.sets import DataSet, FileState, examine, named_sets, state_of_file
from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown


def summary_of_set(chosen_set: DataSet) -> str:
    """In a few words, what the data folder has of a set: complete, or what stands against it."""
    states = {file.path: state_of_file(file) for file in chosen_set.files}
    parts = []
    for kind in (FileState.WRONG, FileState.MISSING):
        found = [path for path, is_ in states.items() if is_ is kind]
        if kind is FileState.MISSING and len(found) == len(states):
            parts.append("missing")
        elif found:
            parts.append(f"{kind.value}: {', '.join(Path(path).name for path in found)}")
    return "; ".join(parts) or "complete"


def listing(names: Sequence[str]) -> Iterator[str]:
    """One line a set: name, licence, questions, state, source."""
    head = ("set", "licence", "questions", "in the data folder", "source")
    rows = [head] + [
        (
            name,
            each.licence,
            "-" if each.questions is None else f"{each.questions:,}",
            summary_of_set(each),
            each.source + (" (gated)" if each.gated else ""),
        )
        for name, each in named_sets(names).items()
    ]
    width = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        yield "  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip()
    yield f"data folder (OSORA_DATA): {paths.data_root()}"


def verify(names: Sequence[str]) -> int:
    """Print every file of the sets with what was found; exit status 1 unless all are right."""
    counts = {"right": 0, "missing": 0, "wrong": 0}
    for name, each in named_sets(names).items():
        for file in each.files:
            finding = examine(file)
            counts[finding.kind] += 1
            told = f"WRONG: {finding.told}" if finding.kind == "wrong" else finding.told
            print(f"{name:14s} {file.path:42s} {told}")
    told = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    print(f"{sum(counts.values())} files below {paths.data_root()}: {told}")
    if counts["missing"]:
        print("`osora-bench data fetch` gets what is missing")
    return int(counts["missing"] + counts["wrong"] > 0)


def data_verb(arguments: Sequence[str]) -> int:
    """Where the benchmark sets come from, what of them is here, and getting the rest."""

    action = arguments[0] if arguments else ""
    if action not in ("list", "verify", "fetch"):
        raise UserError(unknown("action of `data`", action, ("list", "verify", "fetch")))
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
