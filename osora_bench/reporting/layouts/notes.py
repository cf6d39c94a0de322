"""The lines below a table."""

from collections.abc import Sequence

from osora_bench.planning.config import DatasetConfig
from osora_bench.reporting.rows import Row, by_model, limit_mark
from osora_bench.reporting.table import CORRECTED, EDGE, LIMITED, TIED


def rules_below(rows: Sequence[Row]) -> list[str]:
    """What the corrected scores of each set mend."""
    rules = {
        f"{d.label}: {score['corrected']['rule']}": None
        for row in rows
        for d in row.cell.config.eval.datasets
        for run in row.shown
        if (score := run["scores"].get(d.name)) and score["corrected"]
    }
    note = f"{CORRECTED}: without what OpenCompass misreads ({'; '.join(rules)})."
    return [note] if rules else []


def notes_below(rows: Sequence[Row], *, by_set: bool = False) -> list[str]:
    """How many questions and seeds, how far Avg. may be off by chance, what warns of the task.

    Args:
        by_set: the table has a column a set, beside Avg.
    """
    finished = [row for row in rows if row.shown]
    if not finished:
        return ["No run has finished yet.", *_warnings(rows)]
    return [
        *_precision(finished, by_set),
        *_not_run(rows, finished),
        *_not_the_full_set(finished),
        *_left_out(finished),
        *_limited(finished),
        *_cut(finished),
        *_other_runs(finished),
        *edge_note(finished),
        *_leakage(finished),
        *_warnings(rows),
    ]


def edge_note(rows: Sequence[Row]) -> list[str]:
    """What the mark of a choice at an end says, if there is one."""
    if not any(row.edge for row in rows):
        return []
    return [f"{EDGE}: at a setting that is the first or last of those tried; beyond may be better."]


def two_seeds_note(rows: Sequence[Row]) -> list[str]:
    """What two seeds of several methods do not hold (docs/statistics.md)."""
    trained = [row for row in rows if row.cell.config.trains and row.runs]
    if len(trained) < 3 or not any(len(row.runs) == 2 for row in trained):
        return []
    return [
        "Two seeds are too few for several methods: where seeds differ by points, equal methods "
        "are told apart more often than the 5 % of Holm's adjustment (docs/statistics.md)."
    ]


def _precision(finished: Sequence[Row], by_set: bool) -> list[str]:
    """Of the rows whose average is of all questions that were planned."""
    full = [row for row in finished if not row.others and row.averages()]
    if not full:
        return []
    sets = _sets(finished)
    counts = " + ".join(f"{finished[0].planned(d.name)} {d.label}" for d in sets)
    trained = [len(row.shown) for row in finished if row.cell.config.trains]
    seeds, least = max(trained, default=1), min(trained, default=1)
    runs = f"{least} to {seeds} seeds" if least < seeds else f"{seeds} seed{'s' * (seeds > 1)}"
    error = max(row.standard_error() for row in full)
    tests = _tests(finished, sets, by_set)
    tied = (
        f" Best in bold; {TIED}: not significantly below it ({tests}, Holm over a column's pairs)."
        if tests else ""
    )  # fmt: skip
    average = "Avg." if len(sets) > 1 else "a value"
    chance = (
        f"standard error of {average} from the questions alone at most {error:.1f} points"
        if error > 0
        else "all answers of a set are alike, and their spread does not say how far chance may move"
        f" {average}"
    )
    alone = ["What is said of one seed is of that adapter alone."] if least == 1 and trained else []
    return [
        f"n = {counts} questions; {runs}; {chance}.{tied}",
        *alone,
        *two_seeds_note(full),
    ]


def _tests(finished: Sequence[Row], sets: Sequence[DatasetConfig], by_set: bool) -> str:
    """Those of `statistics.p_values`, each pair's in a column of one set or of Avg.; pairs are of
    one model. Nothing where there is no pair."""
    by_column = by_set or len(sets) == 1
    own = [row for row in finished if not row.others and (by_set or row.averages())]
    exact = others = False
    for rows in by_model(own).values():
        single = sum(len(row.runs) == 1 for row in rows)
        exact |= by_column and single > 1
        others |= len(rows) > max(1, single if by_column else 1)
    if not exact:
        return "paired t" * others
    between = " between rows of one run" * others
    if len(sets) > 1:
        return f"McNemar{between} in a set's column, else paired t"
    return f"McNemar{between}, else paired t" if others else "McNemar"


def _not_run(rows: Sequence[Row], finished: Sequence[Row]) -> list[str]:
    empty = len(rows) - len(finished)
    return [f"{empty} of {len(rows)} cells have not been run: left blank."] if empty else []


def _not_the_full_set(finished: Sequence[Row]) -> list[str]:
    suite, sets = finished[0].cell.config.eval, _sets(finished)
    if not any(limit_mark(suite, d) for d in sets):
        return []
    sizes = " + ".join(str(d.questions) for d in sets)
    return [f"{LIMITED} not the full set: evenly spread over its {sizes} questions."]


def _left_out(finished: Sequence[Row]) -> list[str]:
    without = _without(finished)
    labels = [d.label for d in _sets(finished) if d.name in without]
    if not labels:
        return []
    return [f"Left blank, since eval.without leaves it out: {', '.join(labels)}."]


def _limited(finished: Sequence[Row]) -> list[str]:
    without = _without(finished)
    to_score = [d for d in _sets(finished) if d.name not in without]
    limited = [d.label for d in to_score if any(not row.values(d.name) for row in finished)]
    return [f"Left blank, since a limit cut the set: {', '.join(limited)}."] if limited else []


def _cut(finished: Sequence[Row]) -> list[str]:
    """The most answers of each set that one run left unfinished; records of before do not say."""
    cuts = []
    for d in _sets(finished):
        runs = (run["scores"] for row in finished for run in row.shown)
        scores = [by_set[d.name] for by_set in runs if d.name in by_set]
        most, total = max(((s.get("cut", 0), s["n"]) for s in scores), default=(0, 0))
        if most:
            cuts.append(f"{most} of {total} ({d.label})")
    return (
        [f"Answers cut at the length limit, in one run at most: {', '.join(cuts)}."] if cuts else []
    )


def _other_runs(finished: Sequence[Row]) -> list[str]:
    if not any(row.others for row in finished):
        return []
    counts = [s["n"] for row in finished for r in row.others for s in r["scores"].values()]
    return [
        f"{LIMITED} fewer than all questions (as few as {min(counts)} of a set), "
        "or not a planned seed."
    ]


def _leakage(finished: Sequence[Row]) -> list[str]:
    """Test questions in training rows, of each kind the most of one run, whose rows a seed draws;
    records of before do not say."""
    found = []
    for d in _sets(finished):
        runs = (run.get("leakage", {}) for row in finished for run in row.shown)
        counts = [by_set[d.name] for by_set in runs if d.name in by_set]
        if counts:
            exact, near, asked = (max(c[k] for c in counts) for k in ("exact", "near", "questions"))
            found.append(f"{d.label} {exact} and {near} of {asked}")
    if not found:
        return []
    return [
        "Warning: questions that stand in training rows, of one run at most, whole and in part: "
        f"{', '.join(found)}."
    ]


def _warnings(rows: Sequence[Row]) -> list[str]:
    tasks = [row.cell.config.task for row in rows if row.cell.config.trains]
    return list(dict.fromkeys(f"Warning: {t.warning}." for t in tasks if t.warning))


def _sets(finished: Sequence[Row]) -> list[DatasetConfig]:
    return finished[0].cell.config.eval.datasets


def _without(finished: Sequence[Row]) -> set[str]:
    """Names of the sets that some row leaves out."""
    return {name for row in finished for name in row.cell.config.eval.without or ()}
