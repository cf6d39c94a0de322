"""records + layout -> tables: a pure function, with pandas and without torch.

Layouts, after the paper's tables:
    methods  rows model x method; `columns` says which columns, of COLUMNS, in the table's order
             (Tables 1, 2, 4 to 8); models without a column of their own head their rows
    ranks    rows rank, columns method, the value is Avg. (Table 3)
    rates    the same with rows learning rate
    tuning, against: comparison.py
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from math import sqrt
from typing import Any

import pandas as pd

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import asked, trains
from osora_bench.planning.experiments import Experiment, TableSpec
from osora_bench.records.record import read_ledger
from osora_bench.reporting.layouts import against
from osora_bench.reporting.numbers import CENT, mean, percent
from osora_bench.reporting.reference import AVERAGE, PARAMS, SETTINGS, Key, Printed, load
from osora_bench.reporting.render import LIMITED, SOURCE, Number, Table

NOT_IN_GRID = "-"
CORRECTED = "Avg. corrected"
COLUMNS = {
    "model": "Model",
    "method": "Method",
    "rank": SETTINGS[0],
    "learning_rate": SETTINGS[1],
    "batch_size": SETTINGS[2],
    "params": PARAMS,
    "datasets": "",
    "average": AVERAGE,
    "unread": "Unread",
    "corrected": CORRECTED,
}
"""Columns of the layout `methods` and their headings; a suite's datasets head their own."""


@dataclass(frozen=True)
class Row:
    """Cells that differ in their seed only, with the runs that have finished.

    `others` are runs of other seeds or of a part of the questions: in a table on request only.
    """

    cell: Cell
    runs: list[dict[str, Any]]
    seeds: int = 1
    others: list[dict[str, Any]] = field(default_factory=list)

    @property
    def datasets(self) -> list[str]:
        return [d["name"] for d in self.cell.config["eval"]["datasets"]]

    @property
    def shown(self) -> list[dict[str, Any]]:
        return self.runs + self.others

    def planned(self, dataset: str) -> int:
        """How many questions of a set count as all: those that the suite's own limit leaves."""
        suite = self.cell.config["eval"]
        (found,) = (d for d in suite["datasets"] if d["name"] == dataset)
        return _planned(suite, found)

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
        text = _show(values)
        if text and len(values) < self.seeds:
            text += f" ({len(values)} of {self.seeds} seeds)"
        return text + LIMITED if text and self.others else text

    def key(self, column: str) -> Key:
        config = self.cell.config
        return Key(
            config["model"]["name"], config["method"]["name"], config["method"]["rank"], column
        )


def rows(
    cells: Sequence[Cell], records: dict[str, dict[str, Any]], *, others: bool = False
) -> list[Row]:
    """Cells grouped over their seeds, in the order of the experiment.

    With `others`, records that are not of these cells but differ from one only in seed or in how
    many questions were asked join its row, and limited ones count.
    """
    grouped: dict[str, list[Cell]] = {}
    for cell in cells:
        key = json.dumps({k: v for k, v in cell.config.items() if k != "seed"}, sort_keys=True)
        grouped.setdefault(key, []).append(cell)
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records.values() if others else ():
        families.setdefault(_family(record["config"]), []).append(record)
    made = []
    for same in grouped.values():
        own = {cell.run_id for cell in same}
        runs = [records[cell.run_id] for cell in same if cell.run_id in records]
        strangers: list[dict[str, Any]] = []
        if others:
            alike = families.get(_family(same[0].config), [])
            strangers = [r for r in alike if r["run_id"] not in own or _limited(r)]
            runs = [run for run in runs if not _limited(run)]
        made.append(Row(same[0], runs, len(same), strangers))
    return made


def _limited(record: dict[str, Any]) -> bool:
    return any(score["n"] < score["questions"] for score in record["scores"].values())


def _family(config: dict[str, Any]) -> tuple[str, ...]:
    """What runs share that differ in seed or in the number of questions only."""
    method = config["method"]
    trainer = json.dumps(config["trainer"], sort_keys=True) if trains(config) else ""
    names = [config[group]["name"] for group in ("model", "method", "task", "eval")]
    return (*names, str(method["rank"]), json.dumps(method["peft"], sort_keys=True), trainer)


def build(
    experiment: Experiment,
    cells: Sequence[Cell],
    *,
    compare: bool = False,
    others: bool = False,
) -> tuple[list[Table], list[str]]:
    """Every table of an experiment from its ledger, and a line for each damaged record.

    Args:
        compare: show the paper's number and the difference below each of ours.
        others: let limited sets and other seeds in, marked.

    Raises:
        UserError: `compare`, and no table has results of the paper's to be set beside.
    """
    by_seed, damaged = recorded(cells, others=others)
    made = [
        _layout(spec.layout)(name, spec, [row for row in by_seed if _selected(row, spec)])
        for name, spec in experiment.tables.items()
    ]
    return _compared(experiment, made) if compare else made, damaged


def recorded(cells: Sequence[Cell], *, others: bool = False) -> tuple[list[Row], list[str]]:
    """The rows of cells with the records of their ledgers, and a line for each damaged one."""
    records: dict[str, dict[str, Any]] = {}
    damaged: list[str] = []
    for folder in sorted({cell.ledger for cell in cells}):
        ledger = read_ledger(folder)
        records |= ledger.records
        damaged += ledger.damaged
    return rows(cells, records, others=others), damaged


def _compared(experiment: Experiment, made: Sequence[Table]) -> list[Table]:
    references = [spec.reference for spec in experiment.tables.values()]
    if not any(name and table.numbers for table, name in zip(made, references, strict=True)):
        raise UserError("compare=paper: the paper has no results to stand beside these tables")
    return [
        beside(table, load(name)) if name and table.numbers else table
        for table, name in zip(made, references, strict=True)
    ]


def check(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raise UserError if a table cannot be made of an experiment's cells, whatever their records:
    a layout, column, baseline or reference that is not known."""
    without_records = rows(cells, {})
    for name, spec in experiment.tables.items():
        _layout(spec.layout)(name, spec, [r for r in without_records if _selected(r, spec)])
        if spec.reference is not None:
            load(spec.reference)


def _layout(name: str) -> Callable[[str, TableSpec, Sequence[Row]], Table]:
    layouts: dict[str, Callable[[str, TableSpec, Sequence[Row]], Table]] = {
        "methods": by_method,
        "ranks": partial(by_value, "r", lambda config: config["method"]["rank"]),
        "rates": partial(by_value, "Rate", lambda config: config["trainer"]["learning_rate"]),
        "tuning": against.tuning,
        "against": against.against,
    }
    if name not in layouts:
        raise UserError(unknown("table layout", name, layouts))
    return layouts[name]


def _selected(row: Row, spec: TableSpec) -> bool:
    method = row.cell.config["method"]
    if spec.methods is not None and method["name"] not in spec.methods:
        return False
    if spec.eval is not None and row.cell.config["eval"]["name"] != spec.eval:
        return False
    return spec.select is None or any(
        method["name"] in s["method"] and s.get("rank", method["rank"]) == method["rank"]
        for s in spec.select
    )


def _show(values: Sequence[Decimal]) -> str:
    """One seed as it is; several as mean and sample standard deviation; none as nothing."""
    if not values:
        return ""
    if len(values) == 1:
        return str(values[0])
    spread = pd.Series([float(v) for v in values]).std(ddof=1)
    return f"{mean(values)} ± {Decimal(spread).quantize(CENT, ROUND_HALF_UP)}"


def _best(groups: Sequence[str], columns: dict[str, list[list[Decimal]]]) -> pd.DataFrame:
    """Where the highest mean of each column stands within each group of rows."""
    marks = {}
    for name, by_row in columns.items():
        means = [mean(values) if values else None for values in by_row]
        top: dict[str, Decimal] = {}
        for group, value in zip(groups, means, strict=True):
            if value is not None:
                top[group] = max(top.get(group, value), value)
        marks[name] = [v is not None and v == top[g] for g, v in zip(groups, means, strict=True)]
    return pd.DataFrame(marks, index=range(len(groups)))


def by_method(name: str, spec: TableSpec, all_rows: Sequence[Row]) -> Table:
    """Tables 1, 2 and 4 to 8: a row a method, grouped by model; the columns of `spec`."""
    chosen = _ordered(all_rows, spec)
    wanted = spec.columns or _usual_columns(chosen, spec)
    for column in wanted:
        if column not in COLUMNS:
            raise UserError(f"table {name}: {unknown('column', column, COLUMNS)}")
    models = [row.cell.config["model"]["label"] for row in chosen]
    frame: dict[str, list[str]] = {}
    scores: dict[str, list[list[Decimal]]] = {}
    for column in wanted:
        if column in ("datasets", "average", "corrected"):
            found = _scores(chosen, column)
            scores |= found
            frame |= {
                label: [r.show(v) for r, v in zip(chosen, values, strict=True)]
                for label, values in found.items()
            }
        else:
            heading = spec.headings.get(column, COLUMNS[column])
            frame[heading] = [_setting(row, column) for row in chosen]
    best = _best(models, scores).reindex(columns=list(frame), fill_value=False)
    numbers = {c: _numbers(chosen, c, [_mean(v) for v in scores[c]]) for c in scores}
    if "params" in wanted:
        counts = [Decimal(text) if text else None for text in frame[PARAMS]]
        numbers[PARAMS] = _numbers(chosen, PARAMS, counts)
    groups = models if "model" not in wanted and len(set(models)) > 1 else None
    notes = _notes(chosen) if scores else []
    notes += _rules(chosen) if "corrected" in wanted else []
    return Table(name, spec.title, pd.DataFrame(frame), best, notes, groups, numbers)


def _ordered(chosen: Sequence[Row], spec: TableSpec) -> list[Row]:
    """By model, then by method: both in the order of the experiment, or methods in the table's."""
    models = list(dict.fromkeys(row.cell.config["model"]["name"] for row in chosen))
    methods = spec.methods or list(dict.fromkeys(r.cell.config["method"]["name"] for r in chosen))

    def position(row: Row) -> tuple[int, int]:
        config = row.cell.config
        return models.index(config["model"]["name"]), methods.index(config["method"]["name"])

    return sorted(chosen, key=position)


def _usual_columns(chosen: Sequence[Row], spec: TableSpec) -> list[str]:
    ranks = {row.cell.config["method"]["rank"] for row in chosen}
    rank = ["rank"] if len(ranks) > 1 and spec.select is not None else []
    params = ["params"] if spec.params else []
    return ["model", "method", *rank, *params, "datasets", "average"]


def _scores(chosen: Sequence[Row], column: str) -> dict[str, list[list[Decimal]]]:
    if not chosen:
        return {}
    if column != "datasets":
        corrected = column == "corrected"
        return {COLUMNS[column]: [row.averages(corrected=corrected) for row in chosen]}
    suite = chosen[0].cell.config["eval"]
    return {
        f"{d['label']}{_limit_mark(suite, d)}": [row.values(d["name"]) for row in chosen]
        for d in suite["datasets"]
    }


def _limit_mark(suite: dict[str, Any], dataset: dict[str, Any]) -> str:
    """Marks a set of which the suite asks a part only."""
    return LIMITED if _planned(suite, dataset) < dataset["questions"] else ""


def _planned(suite: dict[str, Any], dataset: dict[str, Any]) -> int:
    return dataset["questions"] if suite.get("limit") is None else len(asked(suite, dataset))


def _setting(row: Row, column: str) -> str:
    config = row.cell.config
    settings: dict[str, Callable[[], str]] = {
        "model": lambda: str(config["model"]["label"]),
        "method": lambda: str(config["method"]["label"]),
        "rank": lambda: str(config["method"]["rank"] or ""),
        "learning_rate": lambda: scientific(config["trainer"]["learning_rate"]),
        "batch_size": lambda: str(config["trainer"]["batch_size"]),
        "params": lambda: _params(row),
        "unread": lambda: _count(row.unread()),
    }
    return settings[column]()


def _count(values: Sequence[Decimal]) -> str:
    """A whole number as it is; the mean of several."""
    return str(mean(values)).removesuffix(".00") if values else ""


def scientific(value: float) -> str:
    """2e-5, as the paper prints a rate."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _mean(values: Sequence[Decimal]) -> Decimal | None:
    return mean(values) if values else None


def _numbers(
    chosen: Sequence[Row | None], column: str, values: Sequence[Decimal | None]
) -> list[Number | None]:
    return [
        None if row is None else Number(row.key(column), value)
        for row, value in zip(chosen, values, strict=True)
    ]


def _params(row: Row) -> str:
    if not trains(row.cell.config):
        return "0"
    return str(row.shown[0]["parameters"].get("trainable", "")) if row.shown else ""


def by_value(
    heading: str,
    value_of: Callable[[dict[str, Any]], Any],
    name: str,
    spec: TableSpec,
    all_rows: Sequence[Row],
) -> Table:
    """Table 3: a row a rank, a column a method, Avg. inside; "-" where the grid has no such cell.

    `value_of` takes what varies down the rows from a configuration, rank or another value; cells
    that have none are left out.
    """
    chosen = [row for row in all_rows if value_of(row.cell.config) is not None]
    labels = {r.cell.config["method"]["name"]: r.cell.config["method"]["label"] for r in chosen}
    values = sorted({value_of(r.cell.config) for r in chosen})
    cells = {(r.cell.config["method"]["name"], value_of(r.cell.config)): r for r in chosen}
    frame: dict[str, list[str]] = {heading: [str(value) for value in values]}
    columns: dict[str, list[list[Decimal]]] = {}
    numbers: dict[str, list[Number | None]] = {}
    for method in spec.methods or list(labels):
        found = [cells.get((method, value)) for value in values]
        label = labels.get(method, method)
        columns[label] = [row.averages() if row else [] for row in found]
        frame[label] = [
            row.show(averages) if row else NOT_IN_GRID
            for row, averages in zip(found, columns[label], strict=True)
        ]
        numbers[label] = _numbers(found, _only_set(chosen), [_mean(v) for v in columns[label]])
    best = _best([""] * len(values), columns).reindex(columns=list(frame), fill_value=False)
    return Table(name, spec.title, pd.DataFrame(frame), best, _notes(chosen), numbers=numbers)


def _only_set(chosen: Sequence[Row]) -> str:
    """What the average is an average of: one set goes by its own name."""
    sets = chosen[0].cell.config["eval"]["datasets"] if chosen else []
    return sets[0]["label"] if len(sets) == 1 else AVERAGE


def beside(table: Table, reference: dict[Key, Printed]) -> Table:
    """Each row three times: ours, the paper's numbers, and ours less the paper's."""
    texts: list[dict[str, str]] = []
    bests: list[dict[str, bool]] = []
    for index, row in enumerate(table.frame.to_dict("records")):
        paper = {
            column: _printed(number, reference)
            for column, numbers in table.numbers.items()
            if (number := numbers[index]) is not None
        }
        away = {c: _difference(table.numbers[c][index], value) for c, value in paper.items()}
        blank = {c: NOT_IN_GRID for c in table.numbers if c not in paper}
        for source, values in (("ours", row), ("paper", paper), ("difference", away)):
            texts.append({**row, **blank, SOURCE: source, **values})
            marks = table.best.iloc[index].to_dict() if source == "ours" else {}
            bests.append({**dict.fromkeys(row, False), SOURCE: False, **marks})
    order = list(table.frame)
    order.insert(min(order.index(c) for c in table.numbers), SOURCE)
    groups = None if table.groups is None else [g for g in table.groups for _ in range(3)]
    return replace(
        table,
        frame=pd.DataFrame(texts, columns=order),
        best=pd.DataFrame(bests, columns=order),
        groups=groups,
        title=f"{table.title}, beside the paper's",
    )


def _printed(number: Number, reference: dict[Key, Printed]) -> str:
    return reference[number.key].value if number.key in reference else ""


def _difference(ours: Number | None, paper: str) -> str:
    return (
        ""
        if ours is None or ours.value is None or not paper
        else f"{ours.value - Decimal(paper):+}"
    )


def _rules(chosen: Sequence[Row]) -> list[str]:
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


def _notes(chosen: Sequence[Row]) -> list[str]:
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
    if any(_limit_mark(suite, d) for d in sets):
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
    if any(row.others for row in finished):
        counted = [s["n"] for row in finished for r in row.others for s in r["scores"].values()]
        notes.append(
            f"{LIMITED} fewer than all questions (as few as {min(counted)} of a set), "
            "or not a planned seed."
        )
    return notes + warnings
