"""Layout `tuning`: the settings that were tried, and their losses."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from osora_bench.planning.experiments import TableSpec
from osora_bench.records.record import held_out_loss
from osora_bench.records.schema import ValidationRecord
from osora_bench.reporting.numbers import NOT_IN_GRID, scientific
from osora_bench.reporting.rows import Row, by_model
from osora_bench.reporting.table import EDGE, Table


def tuning(name: str, spec: TableSpec, rows: Sequence[Row]) -> Table:
    """The loss on held-out rows by method and learning rate, or by method and the settings that
    were tried where these are others; the lowest of each choice in bold, a mark where that is at
    the end of those tried."""
    only_rates = all(not row.cell.tries or _is_rate(row.cell.tries) for row in rows)
    frame, best, of = (_by_rate if only_rates else _by_settings)(rows)
    sizes = {(v["rows"], v["tokens"]) for r in rows for v in _validations(r)}
    lowest = "lowest" if only_rates else "lowest of those that one choice was among"
    notes = [
        f"Mean loss of {tokens} tokens in {count} rows that no run trains on; {lowest} in bold."
        for count, tokens in sorted(sizes)
    ]
    notes = notes or ["No run has finished yet."]
    return Table(name, spec.title, frame, best, [*notes, *_ends(rows)], of=of)


def _ends(rows: Sequence[Row]) -> list[str]:
    """Of choices at the end of what was tried: whether there may be more beyond."""
    at_edge: dict[str, list[str]] = {}
    for row in rows:
        if row.cell.edges:
            at_edge.setdefault(", ".join(row.cell.edges), []).append(row.name)
    lines = [
        f"{EDGE}: chosen at the end of what was tried ({what}: {', '.join(names)}); what lies "
        "beyond is not known."
        for what, names in at_edge.items()
    ]
    lines += [f"{row.name}: next, but refused: {why}." for row in rows for why in row.cell.refused]
    return lines + [
        f"{row.name}: chosen, the last there is: {why}." for row in rows for why in row.cell.ended
    ]


def _is_rate(tries: Sequence[str]) -> bool:
    return len(tries) == 1 and tries[0].startswith("rate=")


Shown = tuple[pd.DataFrame, pd.DataFrame, Mapping[str, Sequence[Row | None]]]
"""Texts, which are the lowest, and whose runs they are of."""


def _by_rate(rows: Sequence[Row]) -> Shown:
    """A column a rate."""
    by_label: dict[str, dict[float, Row]] = {}
    labels = _labels(rows)
    for row, label in zip(rows, labels, strict=True):
        by_label.setdefault(label, {})[row.cell.config.trainer.learning_rate] = row
    rates = sorted({rate for by_rate in by_label.values() for rate in by_rate})
    frame = pd.DataFrame(
        [
            [label, *(_loss(by_rate[r]) if r in by_rate else NOT_IN_GRID for r in rates)]
            for label, by_rate in by_label.items()
        ],
        columns=["Method", *map(scientific, rates)],
    )
    losses_only = frame.iloc[:, 1:].apply(pd.to_numeric, errors="coerce")
    best = losses_only.eq(losses_only.min(axis="columns"), axis="index")
    best.insert(0, "Method", False)
    for index, by_rate in enumerate(by_label.values()):
        for column, rate in enumerate(rates, start=1):
            if rate in by_rate and by_rate[rate].cell.edges:
                frame.iloc[index, column] += EDGE
    of = {scientific(r): [by_rate.get(r) for by_rate in by_label.values()] for r in rates}
    return frame, best, of


def _by_settings(rows: Sequence[Row]) -> Shown:
    """A row a trial: those that one choice was made among together, by the values tried."""
    by_choice: dict[str, list[Row]] = {}
    for row, label in zip(rows, _labels(rows), strict=True):
        by_choice.setdefault(label, []).append(row)
    shown = [(label, row) for label, tried in by_choice.items() for row in _by_values(tried)]
    lines = [[label, ", ".join(row.cell.tries), _loss(row)] for label, row in shown]
    frame = pd.DataFrame(lines, columns=["Method", "Tried", "Loss"], dtype=str)
    losses = pd.to_numeric(frame["Loss"], errors="coerce")
    best = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    best["Loss"] = losses.eq(losses.groupby(frame["Method"]).transform("min"))
    frame["Loss"] += [EDGE if row.cell.edges else "" for _, row in shown]
    return frame, best, {"Loss": [row for _, row in shown]}


def _by_values(tried: Sequence[Row]) -> list[Row]:
    """Trials of one choice by their first setting's value, then the next one's: numbers by size,
    words in the order in which they were first tried."""
    values = [[setting.partition("=")[2] for setting in row.cell.tries] for row in tried]
    orders = [_order(column) for column in zip(*values, strict=False)]

    def place(index: int) -> list[int]:
        return [order[value] for order, value in zip(orders, values[index], strict=False)]

    return [tried[index] for index in sorted(range(len(tried)), key=place)]


def _order(values: Sequence[str]) -> dict[str, int]:
    """The place of each value among those of a setting."""
    once = list(dict.fromkeys(values))
    if pd.to_numeric(pd.Series(once), errors="coerce").notna().all():
        once.sort(key=float)
    return {value: place for place, value in enumerate(once)}


def _labels(rows: Sequence[Row]) -> list[str]:
    """What a choice was made for: method, with the rank where that was not tuned itself, and the
    model where there are several."""
    several = len(by_model(rows)) > 1
    labels = []
    for row in rows:
        model, method = row.cell.config.model, row.cell.config.method
        tuned = any(setting.startswith("rank=") for setting in row.cell.tries)
        rank = "" if method.rank is None or tuned else f", r = {method.rank}"
        labels.append((f"{model.label}, " if several else "") + method.label + rank)
    return labels


def _loss(row: Row) -> str:
    losses = [validation["loss"] for validation in _validations(row)]
    return f"{np.mean(losses):.4f}" if losses else "diverged" if row.runs else ""


def _validations(row: Row) -> list[ValidationRecord]:
    """Of the runs that have a loss: one that diverged has none."""
    return [loss for run in row.runs if (loss := held_out_loss(run)) is not None]
