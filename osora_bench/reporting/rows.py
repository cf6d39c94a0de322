"""Records grouped into the rows of tables: cells that differ in their seed only."""

import json
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from math import sqrt
from typing import Any

import numpy as np

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import Config, DatasetConfig, EvalConfig, plain
from osora_bench.planning.experiments import FigureSpec, TableSpec
from osora_bench.planning.identity import numerics_version, run_id
from osora_bench.records.record import portable, read_ledger
from osora_bench.records.schema import Record
from osora_bench.reporting.numbers import mean, percent, shown_values
from osora_bench.reporting.reference import Key
from osora_bench.reporting.statistics import Answers
from osora_bench.reporting.table import EDGE, LIMITED, Number


@dataclass(frozen=True)
class Row:
    """Cells that differ in their seed only, with the runs that have finished.

    `others` are runs of other seeds or of a part of the questions: in a table on request only.
    """

    cell: Cell
    runs: list[Record]
    seeds: int = 1
    others: list[Record] = field(default_factory=list)

    def answers(self, datasets: Sequence[str], *, corrected: bool = False) -> Answers | None:
        """Right or wrong, of each of these sets and each seed; None where a run lacks one, or a
        limit cut it, or runs of another kind are shown with them."""
        if self.others:
            return None
        by_set = []
        for name in datasets:
            scores = [run["scores"].get(name) for run in self.runs]
            if not scores or any(s is None or s["n"] != self.planned(name) for s in scores):
                return None
            judged = [(corrected and s["corrected"]) or s for s in scores if s is not None]
            by_set.append([_verdicts(j["right"], self.planned(name)) for j in judged])
        return Answers(by_set)

    @property
    def datasets(self) -> list[str]:
        return [d.name for d in self.cell.config.eval.datasets]

    @property
    def shown(self) -> list[Record]:
        return self.runs + self.others

    def planned(self, dataset: str) -> int:
        """How many questions of a set count as all: those that the suite's own limit leaves."""
        suite = self.cell.config.eval
        (chosen_set,) = (d for d in suite.datasets if d.name == dataset)
        return _planned(suite, chosen_set)

    def values(self, dataset: str, *, corrected: bool = False) -> list[Decimal]:
        """Accuracies by seed on one dataset, those without known mistakes if `corrected`: one that
        was cut short is left out, unless asked for."""
        scores = [run["scores"][dataset] for run in self.shown if dataset in run["scores"]]
        full = [s for s in scores if s["n"] == self.planned(dataset) or self.others]
        judged = [(corrected and s["corrected"]) or s for s in full]
        return [percent(j["k"], s["n"]) for j, s in zip(judged, full, strict=True)]

    def unread(self) -> list[Decimal]:
        """Answers by seed in which nothing could be read, of all sets together."""
        return [Decimal(sum(s["unread"] for s in run["scores"].values())) for run in self.shown]

    def averages(self, *, corrected: bool = False) -> list[Decimal]:
        """Avg. of the datasets by seed."""
        by_set = [self.values(name, corrected=corrected) for name in self.datasets]
        if any(len(values) < len(self.shown) for values in by_set):
            return []
        return [mean(values) for values in zip(*by_set, strict=True)]

    def standard_error(self) -> float:
        """Binomial standard error of one run's Avg., in points: questions are what varies."""
        variances = []
        for run in self.shown:
            scores = [run["scores"][name] for name in self.datasets]
            terms = [s["k"] / s["n"] * (1 - s["k"] / s["n"]) / s["n"] for s in scores]
            variances.append(sum(terms) / len(scores) ** 2)
        return 100 * sqrt(max(variances, default=0.0))

    def show(self, values: Sequence[Decimal]) -> str:
        """`_show`, with the number of seeds where some of the experiment's are missing, and a mark
        where a run is not one of the experiment's own full ones."""
        text = shown_values(values)
        if text and len(values) < self.seeds:
            text += f" ({len(values)} of {self.seeds} seeds)"
        return text + LIMITED if text and self.others else text

    @property
    def name(self) -> str:
        """`LoRA r=16`."""
        method = self.cell.config.method
        return method.label if method.rank is None else f"{method.label} r={method.rank}"

    @property
    def edge(self) -> str:
        """A mark, if its settings were chosen at the end of those tried."""
        return EDGE if (self.cell.config.tuning or {}).get("edge") else ""

    def key(self, column: str) -> Key:
        config = self.cell.config
        return Key(config.model.name, config.method.name, config.method.rank, column)


def _verdicts(packed: str, n: int) -> Any:
    """`unpack` as an array of a byte an answer."""
    return np.unpackbits(np.frombuffer(b64decode(packed), np.uint8), count=n).astype(np.bool_)


def rows(cells: Sequence[Cell], records: dict[str, Record], *, others: bool = False) -> list[Row]:
    """Cells grouped over their seeds, in the order of the experiment.

    With `others`, records that are not of these cells but differ from one only in seed or in how
    many questions were asked join its row, and limited ones count.
    """
    grouped: dict[tuple[str, ...], list[Cell]] = {}
    texts: dict[int, str] = {}  # of sections, which cells share
    for cell in cells:
        grouped.setdefault(_but_seed(cell.config, texts), []).append(cell)
    families: dict[tuple[str, ...], list[Record]] = {}
    for record in records.values() if others else ():
        if (family := _recorded_family(record)) is not None:
            families.setdefault(family, []).append(record)
    result = []
    for group in grouped.values():
        run_ids = {cell.run_id for cell in group}
        runs = [records[cell.run_id] for cell in group if cell.run_id in records]
        other_runs: list[Record] = []
        if others:
            relatives = families.get(_family(group[0].config, group[0].fingerprints), [])
            other_runs = [r for r in relatives if r["run_id"] not in run_ids or _limited(r)]
            runs = [run for run in runs if not _limited(run)]
        result.append(Row(group[0], runs, len(group), other_runs))
    return result


def _but_seed(config: Config, texts: dict[int, str]) -> tuple[str, ...]:
    """All of a configuration but its seed, to compare by."""
    sections = [getattr(config, f.name) for f in fields(config) if f.name != "seed"]
    for section in sections:
        if id(section) not in texts:
            texts[id(section)] = json.dumps(plain(section), sort_keys=True)
    return tuple(texts[id(section)] for section in sections)


def _limited(record: Record) -> bool:
    return any(score["n"] < score["questions"] for score in record["scores"].values())


def _family(config: Config, content: Mapping[str, str]) -> tuple[str, ...]:
    """What runs share that differ in seed or in the number of questions only: the questions of
    every set among it, by the content of its files, and how they are asked and counted.

    Args:
        content: of the files that the configuration names, by path or by its last part.
    """
    method = config.method
    trainer = json.dumps(plain(config.trainer), sort_keys=True) if config.trains else ""
    names = [part.name for part in (config.model, method, config.task, config.eval)]
    by_name = {portable(path): value for path, value in content.items()}
    asked = [
        [d.name, d.config, d.metric, *(by_name.get(portable(file), "") for file in d.files)]
        for d in config.eval.datasets
    ]
    settings = json.dumps([method.peft, asked], sort_keys=True)
    return (*names, str(method.rank), settings, trainer, str(numerics_version(config)))


def _recorded_family(record: Record) -> tuple[str, ...] | None:
    """Of a record; None where its numbers are of a version that this program no longer makes: its
    run id is then not the one that its configuration has now."""
    content = record["provenance"].get("fingerprints", {})
    places = {"ledger": "", "runs": ""}
    config = Config.of({**record["config"], **places})
    if run_id(config, dict(content)) != record["run_id"]:
        return None
    return _family(config, content)


def recorded_rows(cells: Sequence[Cell], *, others: bool = False) -> tuple[list[Row], list[str]]:
    """The rows of cells with the records of their ledgers, and a line for each damaged one."""
    records: dict[str, Record] = {}
    damaged: list[str] = []
    for folder in sorted({cell.ledger for cell in cells}):
        ledger = read_ledger(folder)
        records |= ledger.records
        damaged += ledger.damaged
    return rows(cells, records, others=others), damaged


VARIED: dict[str, Callable[[Config], Any]] = {
    "ranks": lambda config: config.method.rank,
    "rows": lambda config: config.task.max_rows,
    "rates": lambda config: config.trainer.learning_rate,
}
"""By kind of table or figure, the setting whose values it shows beside each other."""


def by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by their model's label, or by its name where two have the same: only those of one are
    compared with each other."""
    labels = {row.cell.config.model.name: row.cell.config.model.label for row in rows}
    models: dict[str, list[Row]] = {}
    for row in rows:
        model = row.cell.config.model
        shared = [*labels.values()].count(model.label) > 1
        models.setdefault(model.name if shared else model.label, []).append(row)
    return models


def limit_mark(suite: EvalConfig, dataset: DatasetConfig) -> str:
    """Marks a set of which the suite asks a part only."""
    return LIMITED if _planned(suite, dataset) < dataset.questions else ""


def _planned(suite: EvalConfig, dataset: DatasetConfig) -> int:
    return dataset.questions if suite.limit is None else len(suite.asked(dataset))


def check_selection(what: str, spec: TableSpec | FigureSpec, rows: Sequence[Row]) -> None:
    """Raise UserError if what a table or a figure selects is in no row of its experiment.

    Args:
        what: is told first, `table ranks`.
    """
    methods = [row.cell.config.method for row in rows]
    names = {method.name for method in methods}
    for part in spec.select or ():
        if wrong := [key for key in part if key not in ("method", "rank")]:
            raise UserError(f"{what}: {unknown('key of select', wrong[0], ('method', 'rank'))}")
        if not isinstance(part.get("method"), list):
            raise UserError(f"{what}: select: {part} names no methods; method: [A, B]")
    listed = [name for part in spec.select or () for name in part["method"]]
    for name in (*(spec.methods or ()), *listed):
        if name not in names:
            raise UserError(f"{what}: {unknown('method', name, names)}")
    for part in spec.select or ():
        for name in part["method"] if "rank" in part else ():
            ranks = {method.rank for method in methods if method.name == name}
            if part["rank"] not in ranks:
                valid = ", ".join(map(str, sorted(ranks, key=lambda r: r or 0)))
                raise UserError(
                    f"{what}: select: no cell of {name} has rank {part['rank']}; valid: {valid}"
                )


def selected(row: Row, spec: TableSpec | FigureSpec) -> bool:
    """Whether a table or a figure shows a row."""
    method = row.cell.config.method
    if spec.methods is not None and method.name not in spec.methods:
        return False
    if spec.eval is not None and row.cell.config.eval.name != spec.eval:
        return False
    return spec.select is None or any(
        method.name in s["method"] and s.get("rank", method.rank) == method.rank
        for s in spec.select
    )


def numbers_of(
    chosen: Sequence[Row | None], column: str, values: Sequence[Decimal | None]
) -> list[Number | None]:
    return [
        None if row is None else Number(row.key(column), value)
        for row, value in zip(chosen, values, strict=True)
    ]
