"""The lines below a table."""

from collections.abc import Sequence

from osora_bench.planning.config import trains
from osora_bench.reporting.rows import Row, limit_mark
from osora_bench.reporting.table import CORRECTED, LIMITED


def rules_below(chosen: Sequence[Row]) -> list[str]:
    """What the corrected scores of each set mend."""
    rules = {
        f"{d['label']}: {score['corrected']['rule']}": None
        for row in chosen
        for d in row.cell.config["eval"]["datasets"]
        for run in row.shown
        if (score := run["scores"].get(d["name"])) and score["corrected"]
    }
    told = f"{CORRECTED}: without what OpenCompass misreads ({'; '.join(rules)})."
    return [told] if rules else []


def _cut(finished: Sequence[Row]) -> list[str]:
    """The most answers of each set that one run left unfinished; records of before do not say."""
    told = []
    for d in finished[0].cell.config["eval"]["datasets"]:
        scores = [r["scores"][d["name"]] for row in finished for r in row.shown
                  if d["name"] in r["scores"]]  # fmt: skip
        most, of = max(((s.get("cut", 0), s["n"]) for s in scores), default=(0, 0))
        if most:
            told.append(f"{most} of {of} ({d['label']})")
    return [f"Answers cut at the length limit, in one run at most: {', '.join(told)}."] * bool(told)


def notes_below(chosen: Sequence[Row]) -> list[str]:
    """How many questions and seeds, how far Avg. may be off by chance, what warns of the task."""
    tasks = [row.cell.config["task"] for row in chosen if trains(row.cell.config)]
    warnings = list(dict.fromkeys(f"Warning: {t['warning']}." for t in tasks if t["warning"]))
    finished = [row for row in chosen if row.shown]
    if not finished:
        return ["No run has finished yet.", *warnings]
    sets = finished[0].cell.config["eval"]["datasets"]
    counts = " + ".join(f"{finished[0].planned(d['name'])} {d['label']}" for d in sets)
    seeds = max(len(row.shown) for row in finished)
    full = [row for row in finished if not row.others and row.averages()]
    notes = []
    if full:
        error = max(row.standard_error() for row in full)
        average = "Avg." if len(sets) > 1 else "a value"
        notes.append(
            f"n = {counts} questions; {seeds} seed{'s' if seeds > 1 else ''}; "
            f"standard error of {average} from the questions alone at most {error:.1f} points. "
            "Best in bold."
        )
    empty = len(chosen) - len(finished)
    if empty:
        notes.append(f"{empty} of {len(chosen)} cells have not been run: left blank.")
    suite = finished[0].cell.config["eval"]
    if any(limit_mark(suite, d) for d in sets):
        of = " + ".join(str(d["questions"]) for d in sets)
        notes.append(f"{LIMITED} not the full set: evenly spread over its {of} questions.")
    without = {n for row in finished for n in row.cell.config["eval"].get("without") or ()}
    left_out = [d["label"] for d in sets if d["name"] in without]
    if left_out:
        notes.append(f"Left blank, since eval.without leaves it out: {', '.join(left_out)}.")
    to_score = [d for d in sets if d["name"] not in without]
    limited = [d["label"] for d in to_score if any(not row.values(d["name"]) for row in finished)]
    if limited:
        notes.append(f"Left blank, since a limit cut the set: {', '.join(limited)}.")
    notes += _cut(finished)
    if any(row.others for row in finished):
        counted = [s["n"] for row in finished for r in row.others for s in r["scores"].values()]
        notes.append(
            f"{LIMITED} fewer than all questions (as few as {min(counted)} of a set), "
            "or not a planned seed."
        )
    return notes + warnings
