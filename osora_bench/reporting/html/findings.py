"""What an experiment asks and what came out, in a sentence each: of its file and the numbers."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from osora_bench.planning.config import Config
from osora_bench.planning.experiments import Experiment, TableSpec
from osora_bench.reporting.numbers import scientific, shown_points
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
    """The rows that the experiment is about: all of the suite that its first table of scores is of,
    but those that only try settings."""
    scored = [row for row in rows if not row.cell.is_trial]
    specs = [spec for spec in experiment.tables.values() if spec.layout in SCORED]
    chosen = [row for row in scored if not specs or selected(row, specs[0])] or scored
    return [row for row in scored if row.cell.config.eval.name == chosen[0].cell.config.eval.name]


def question(experiment: Experiment, rows: Sequence[Row]) -> str:
    """`How accurate are Base; LoRA at rank 16; VeRA and OSoRA at rank 64 on ...?`"""
    if not rows:
        return f"{experiment.title}."
    configs = [row.cell.config for row in rows]
    models = listed([c.model.label for c in configs])
    if not experiment.trains:
        asked = "How many parameters has" if _counts(experiment) else "Which settings has"
        return f"{asked} each of {_methods(configs)}, with {models}?"
    suite = configs[0].eval
    count = sum(len(suite.asked(dataset)) for dataset in suite.chosen)
    sets = listed([dataset.label for dataset in suite.chosen])
    tasks = [c.task.label for c in configs if c.trains]
    trained = f", trained on {listed(tasks)}" if tasks else ""
    return (
        f"How accurate are {_methods(configs)} on {sets} ({count:,} questions){trained}, "
        f"with {models}{_seeds(rows)}?"
    )


def _counts(experiment: Experiment) -> bool:
    """Whether what an experiment that runs nothing shows are parameters."""
    return any(figure.kind == "parameters" for figure in experiment.figures.values())


def _methods(configs: Sequence[Config]) -> str:
    """The methods, those with the same ranks together."""
    ranks: dict[str, dict[int, None]] = {}
    for config in configs:
        rank = config.method.rank
        ranks.setdefault(config.method.label, {}).update({} if rank is None else {rank: None})
    together: dict[tuple[int, ...], list[str]] = {}
    for label, own in ranks.items():
        together.setdefault(tuple(sorted(own)), []).append(label)
    return "; ".join(listed(labels) + _at(own) for own, labels in together.items())


def _at(ranks: Sequence[int]) -> str:
    if not ranks:
        return ""
    return f" at rank{'s' * (len(ranks) > 1)} {listed([str(rank) for rank in ranks])}"


def _seeds(rows: Sequence[Row]) -> str:
    """How many seeds each that is trained has; what trains nothing has none."""
    counts = sorted({row.seeds for row in rows if row.cell.config.trains})
    if not counts:
        return ""
    ends = [str(count) for count in dict.fromkeys([counts[0], counts[-1]])]
    number = "one" if counts == [1] else " to ".join(ends)
    all_trained = all(row.cell.config.trains for row in rows)
    whose = "each" if all_trained else "for each that is trained"
    return f" and {number} seed{'s' * (counts != [1])} {whose}"


def listed(names: Sequence[str]) -> str:
    """`A, B and C`, each once; of many the first, and how many more."""
    once = list(dict.fromkeys(names))
    if len(once) > MOST_NAMES + 1:
        once = [*once[:MOST_NAMES], f"{len(once) - MOST_NAMES} more"]
    return once[0] if len(once) == 1 else f"{', '.join(once[:-1])} and {once[-1]}"


def answer(experiment: Experiment, rows: Sequence[Row]) -> str:
    """Which is highest, what no test tells from it, and how the baseline stands."""
    if not experiment.trains:
        told = "parameters are counted" if _counts(experiment) else "settings are listed"
        return f"Nothing is run for it: {told}."
    models = by_model(rows)
    parts = []
    for model, of_model in models.items():
        if any(row.answers(row.datasets) is not None for row in of_model):
            said = _of_model(experiment, of_model)
            parts.append(said if len(models) == 1 else f"{model}: {said}")
    if not parts:
        return "No run has finished yet."
    return f"{'; '.join(parts)}.{_of_one_seed(rows)}"


def _of_one_seed(rows: Sequence[Row]) -> str:
    """Of which adapters alone the sentence is, and of no method."""
    trained = {name: row for name, row in zip(names(rows), rows, strict=True)
               if row.cell.config.trains and row.shown}  # fmt: skip
    single = [name for name, row in trained.items() if len(row.shown) == 1]
    if not single:
        return ""
    whose = " each" if len(single) == len(trained) else f" ({listed(single)})"
    return f" Of one seed{whose}, this is said of these adapters, not of the methods."


def names(rows: Sequence[Row]) -> list[str]:
    """What rows are called, by what tells them apart: method and rank, and where these do not, the
    task, its rows, and the learning rate."""
    told = [row.name for row in rows]
    for of in MORE:
        more = [of(row.cell.config) for row in rows]
        values: dict[str, set[str]] = {}
        for name, value in zip(told, more, strict=True):
            values.setdefault(name, set()).add(value)
        told = [
            f"{name}, {value}" if len(values[name]) > 1 else name
            for name, value in zip(told, more, strict=True)
        ]
    return told


MORE: tuple[Callable[[Config], str], ...] = (
    lambda config: config.task.label,
    lambda config: f"{config.task.max_rows or 'all'} rows",
    lambda config: f"rate {scientific(config.trainer.learning_rate)}",
)


def _of_model(experiment: Experiment, rows: Sequence[Row]) -> str:
    called = dict(zip(map(id, rows), names(rows), strict=True))
    scored = [(row, answers) for row in rows if (answers := row.answers(row.datasets)) is not None]
    compared = sorted(scored, key=lambda entry: -entry[1].averages.mean())
    best, answers = compared[0]
    estimate = mean(answers)
    few = f"the {len(compared)} of {len(rows)} that have finished"
    among = few if len(compared) < len(rows) else f"all {len(rows)}"
    said = (
        f"{called[id(best)]} has the highest accuracy of {among}, {shown_points(estimate.points)} "
        f"% (95 % interval {estimate.told})"
    )
    if len(compared) > 1:
        p = adjusted_pairs([entry for _, entry in compared])[0]
        tied = [called[id(row)] for (row, _), value in zip(compared[1:], p[1:], strict=True)
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
        f"{found['loses']} of the {len(others)} others (paired tests, Holm, 5 %)"
    )


def baseline(specs: Iterable[TableSpec]) -> str | None:
    """The method that tables hold the others against, if one does; `against` before others."""
    found = [spec for spec in specs if spec.baseline]
    found.sort(key=lambda spec: spec.layout != "against")
    return found[0].baseline if found else None
