"""What an experiment asks and what came out, in a sentence each: of its file and the numbers."""

from collections.abc import Iterable, Sequence

import numpy as np

from osora_bench.planning.experiments import Experiment, TableSpec
from osora_bench.reporting.html.tables import interval
from osora_bench.reporting.numbers import shown_points
from osora_bench.reporting.rows import Row, selected
from osora_bench.reporting.statistics import (
    ALPHA,
    Answers,
    adjusted_pairs,
    difference,
    holm,
    mean,
    p_values,
)  # fmt: skip

SCORED = ("methods", "ranks", "rows", "rates", "ranking", "against")
"""Layouts that show scores."""
MOST_NAMES = 6


def main_rows(experiment: Experiment, rows: Sequence[Row]) -> list[Row]:
    """The rows that the experiment is about: those of its first table of scores, of one suite."""
    scored = [row for row in rows if not row.cell.is_trial]
    specs = [spec for spec in experiment.tables.values() if spec.layout in SCORED]
    chosen = [row for row in scored if not specs or selected(row, specs[0])]
    return [row for row in chosen if row.cell.config.eval.name == chosen[0].cell.config.eval.name]


def question(experiment: Experiment, rows: Sequence[Row]) -> str:
    """`How accurate are LoRA, VeRA and OSoRA on ...?`"""
    if not rows:
        return f"{experiment.title}."
    configs = [row.cell.config for row in rows]
    methods = listed([c.method.label for c in configs])
    suite = configs[0].eval
    counts = [len(suite.asked(dataset)) for dataset in suite.chosen]
    sets = listed([dataset.label for dataset in suite.datasets])
    tasks = [c.task.label for c in configs if c.trains]
    trained = f", trained on {listed(tasks)}" if tasks else ""
    ranks = sorted({c.method.rank for c in configs if c.method.rank is not None})
    by_rank = f" at ranks {ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else ""
    seeds = max(row.seeds for row in rows)
    runs = f"{seeds} seeds" if seeds > 1 else "one seed"
    models = listed([c.model.label for c in configs])
    return (
        f"How accurate are {methods}{by_rank} on {sets} ({sum(counts):,} questions){trained}, "
        f"with {models} and {runs} each?"
    )


def listed(names: Sequence[str]) -> str:
    """`A, B and C`, each once; of many the first, and how many more."""
    once = list(dict.fromkeys(names))
    if len(once) > MOST_NAMES + 1:
        once = [*once[:MOST_NAMES], f"{len(once) - MOST_NAMES} more"]
    return once[0] if len(once) == 1 else f"{', '.join(once[:-1])} and {once[-1]}"


def answer(experiment: Experiment, rows: Sequence[Row]) -> str:
    """Which is highest, what no test tells from it, and how the baseline stands."""
    models = list(dict.fromkeys(row.cell.config.model.label for row in rows))
    parts = []
    for model in models:
        compared = [
            (row, answers)
            for row in rows
            if row.cell.config.model.label == model
            and (answers := row.answers(row.datasets)) is not None
        ]
        if compared:
            said = _of_model(experiment, compared)
            parts.append(said if len(models) == 1 else f"{model}: {said}")
    if not parts:
        return "No run has finished yet."
    trained = [row for row in rows if row.cell.config.trains and row.shown]
    alone = " Of one seed each, this is said of these adapters, not of the methods."
    return f"{'; '.join(parts)}.{alone * any(len(row.shown) == 1 for row in trained)}"


def _of_model(experiment: Experiment, compared: list[tuple[Row, Answers]]) -> str:
    compared = sorted(compared, key=lambda entry: -entry[1].averages.mean())
    best, answers = compared[0]
    estimate = mean(answers)
    said = (
        f"{best.name} has the highest accuracy, {shown_points(estimate.points)} % "
        f"(95 % interval {interval(estimate)})"
    )
    if len(compared) > 1:
        p = adjusted_pairs([entry for _, entry in compared])[0]
        tied = [row.name for (row, _), value in zip(compared[1:], p[1:], strict=True)
                if value >= ALPHA]  # fmt: skip
        said += (
            f", which no test tells from that of {listed(tied)}" if tied
            else ", significantly above every other"
        )  # fmt: skip
    return said + _of_baseline(experiment, compared)


def _of_baseline(experiment: Experiment, compared: Sequence[tuple[Row, Answers]]) -> str:
    """How often the method that the tables compare wins, ties and loses."""
    name = baseline(experiment.tables.values())
    own = [entry for entry in compared if entry[0].cell.config.method.name == name]
    if len(own) != 1 or len(compared) < 2:
        return ""
    (row, answers), others = own[0], [e for e in compared if e[0] is not own[0][0]]
    raw = [p_values([answers, other])[0, 1] for _, other in others]
    p = holm(np.array(raw))
    gaps = [difference(answers, other).points for _, other in others]
    wins = sum(gap > 0 and value < ALPHA for gap, value in zip(gaps, p, strict=True))
    losses = sum(gap < 0 and value < ALPHA for gap, value in zip(gaps, p, strict=True))
    ties = len(others) - wins - losses
    return (
        f"; {row.name} wins against {wins}, ties with {ties} and loses to {losses} of "
        f"{len(others)} others (paired tests, Holm, 5 %)"
    )


def baseline(specs: Iterable[TableSpec]) -> str | None:
    """The method that tables hold the others against, if one does; `against` before others."""
    found = [spec for spec in specs if spec.baseline]
    found.sort(key=lambda spec: spec.layout != "against")
    return found[0].baseline if found else None
