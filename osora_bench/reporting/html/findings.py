"""What an experiment asks and what came out, in a sentence each: of its file and the numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence

from osora_bench.planning.experiments import Experiment, TableSpec
from osora_bench.reporting.numbers import shown_points
from osora_bench.reporting.rows import Row, by_model, selected
from osora_bench.reporting.statistics import (
    ALPHA,
    Answers,
    adjusted_pairs,
    comparisons,
    mean,
    verdict,
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
    models = by_model(rows)
    parts = []
    for model, of_model in models.items():
        compared = [
            (row, answers) for row in of_model if (answers := row.answers(row.datasets)) is not None
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
        f"(95 % interval {estimate.told})"
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
    row, answers = own[0]
    others = [other for one, other in compared if one is not row]
    found = Counter(verdict(gap, p) for gap, p in comparisons(answers, others))
    return (
        f"; {row.name} wins against {found['wins']}, ties with {found['ties']} and loses to "
        f"{found['loses']} of {len(others)} others (paired tests, Holm, 5 %)"
    )


def baseline(specs: Iterable[TableSpec]) -> str | None:
    """The method that tables hold the others against, if one does; `against` before others."""
    found = [spec for spec in specs if spec.baseline]
    found.sort(key=lambda spec: spec.layout != "against")
    return found[0].baseline if found else None
