"""Layout `against`: how far the Avg. of one method is from each other's, question by question."""

from collections.abc import Mapping, Sequence

import pandas as pd

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.experiments import TableSpec
from osora_bench.reporting.layouts.notes import edge_note, two_seeds_note
from osora_bench.reporting.numbers import probability, signed
from osora_bench.reporting.rows import Row, by_model
from osora_bench.reporting.statistics import comparisons, difference, verdict
from osora_bench.reporting.table import Table

COLUMNS = ("95 % interval", "p (Holm)", "so")


def against(name: str, spec: TableSpec, rows: Sequence[Row]) -> Table:
    """Each method beside `baseline` on the same model, blank on a model without it; `so` is what
    the test says at 5 %, after Holm's adjustment.

    Raises:
        UserError: a baseline that is not among the methods.
    """
    lines: list[list[str]] = []
    groups: list[str] = []
    shown: list[Row] = []
    held: list[Row | None] = []
    pairs: list[tuple[Row, Row]] = []
    baselines = baselines_of("table", name, spec.baseline, rows) if rows else {}
    label = label_of(baselines) or str(spec.baseline)
    for model, compared in by_model(rows).items():
        baseline = baselines[model]
        others = [row for row in compared if row is not baseline]
        lines += _lines(label, baseline, others)
        groups += [model] * len(others)
        shown += others
        held += [baseline] * len(others)
        pairs += [(baseline, other) for other in others if baseline is not None]
    frame = pd.DataFrame(lines, columns=["Method", f"{label} less it", *COLUMNS], dtype=str)
    best = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    notes = [*_notes(pairs, len(set(groups)) > 1, rows), *without_note(baselines)]
    notes += [*of_one_seed(rows), *two_seeds_note(rows), *edge_note(rows)]
    of, beside = (dict.fromkeys(frame.columns[1:], rows_) for rows_ in (shown, held))
    return Table(name, spec.title, frame, best, notes, apart(groups), of=of, beside=beside)


def apart(groups: list[str]) -> list[str] | None:
    """Headings of models, where there are several."""
    return groups if len(set(groups)) > 1 else None


def baselines_of(
    what: str, name: str, wanted: str | None, rows: Sequence[Row]
) -> dict[str, Row | None]:
    """By model the row of a table's or figure's baseline; None where the model has none.

    Raises:
        UserError: no row at all is of it, or several of one model are.
    """
    names = dict.fromkeys(row.cell.config.method.name for row in rows)
    if wanted not in names:
        raise UserError(f"{what} {name}: {unknown('baseline', str(wanted), names)}")
    found: dict[str, Row | None] = {}
    for model, of_model in by_model(rows).items():
        own = [row for row in of_model if row.cell.config.method.name == wanted]
        if len(own) > 1:
            raise UserError(
                f"{what} {name}: on {model} {len(own)} rows are of baseline {wanted}: "
                "`select` or `eval` says which"
            )
        found[model] = own[0] if own else None
    return found


def label_of(baselines: Mapping[str, Row | None]) -> str | None:
    """What the baseline is called."""
    found = [row.cell.config.method.label for row in baselines.values() if row is not None]
    return found[0] if found else None


def without_note(baselines: Mapping[str, Row | None]) -> list[str]:
    """Which models have no row of the baseline, if some have."""
    without = [model for model, row in baselines.items() if row is None]
    if not without:
        return []
    return [f"Left blank, since no row of {label_of(baselines)} is there: {', '.join(without)}."]


def _lines(label: str, baseline: Row | None, others: Sequence[Row]) -> list[list[str]]:
    own = None if baseline is None else baseline.answers(baseline.datasets)
    compared = [None if own is None else row.answers(row.datasets) for row in others]
    scored = [answers for answers in compared if answers is not None]
    tested = iter([] if own is None else comparisons(own, scored))
    lines = []
    for row, answers in zip(others, compared, strict=True):
        cells = ["", "", "", ""]
        if own is not None and answers is not None:
            gap, p = next(tested)
            interval = f"{signed(gap.low)} to {signed(gap.high)}"
            cells = [signed(gap.points), interval, probability(p), f"{label} {verdict(gap, p)}"]
        lines.append([row.name + row.edge, *cells])
    return lines


def _notes(pairs: Sequence[tuple[Row, Row]], models: bool, rows: Sequence[Row]) -> list[str]:
    """What the intervals and tests hold, and which test each pair had."""
    tested = [
        (_told(other, models), own.single and answers.single)
        for baseline, other in pairs
        if (own := baseline.answers(baseline.datasets)) is not None
        and (answers := other.answers(other.datasets)) is not None
    ]
    if not tested:
        return nothing_to_compare(rows)
    family = "p is of one comparison"
    if len(tested) > 1:
        whose = "each model's" if models else f"the table's {len(tested)}"
        family = (
            f"p is adjusted (Holm) for {whose} comparisons; a ranking's is for all pairs, and may "
            "leave open what is told apart here"
        )
    return [
        "Avg. in points, paired by question. Intervals hold the spread of the questions and, where "
        "several ran, of the seeds, and are of one comparison each; "
        f"{family}.",
        *which_test([label for label, exact in tested if exact], [n for n, e in tested if not e]),
        *_without_spread(pairs),
    ]


def _told(row: Row, models: bool) -> str:
    """A method, with its model where there are several."""
    config = row.cell.config
    return f"{config.method.label} on {config.model.label}" if models else config.method.label


def _without_spread(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    """Where all questions of a set differ alike, which an interval cannot be made of."""
    names = [
        other.name
        for baseline, other in pairs
        if (own := baseline.answers(baseline.datasets)) is not None
        and (answers := other.answers(other.datasets)) is not None
        and difference(own, answers).error == 0
    ]
    if not names:
        return []
    return [
        "No question of a set differs by more than another, so that the interval has no width, "
        f"which is no certainty: {', '.join(dict.fromkeys(names))}."
    ]


def nothing_to_compare(rows: Sequence[Row]) -> list[str]:
    """Why a table of comparisons has none."""
    complete = [row.name for row in rows if row.answers(row.datasets) is not None]
    if not any(row.shown for row in rows):
        return ["No run has finished yet."]
    told = (
        f"complete are {', '.join(complete)} only" if complete else "no method's runs are complete"
    )
    return [f"There is nothing to compare here: {told}."]


def which_test(exact: Sequence[str], others: Sequence[str]) -> list[str]:
    """Names the test of what is compared, each where they differ."""
    kinds = [
        ("McNemar's exact test (one seed each, one set)", exact),
        ("Student's t of the paired difference (normal where seeds show no spread)", others),
    ]
    used = [(kind, dict.fromkeys(names)) for kind, names in kinds if names]
    if len(used) < 2:
        return [f"Test: {kind}." for kind, _ in used]
    told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in used)
    return [f"Tests: {told}."]


def of_one_seed(rows: Sequence[Row]) -> list[str]:
    """What intervals and tests cannot hold."""
    trained = [row for row in rows if row.cell.config.trains and row.runs]
    single = [row.cell.config.method.label for row in trained if len(row.runs) == 1]
    if not single:
        return []
    return [
        f"Of one seed ({', '.join(dict.fromkeys(single))}) no spread between seeds is known: "
        "such intervals and tests are of these adapters alone, not of the methods."
    ]
