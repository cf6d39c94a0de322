"""records + layout -> tables: a pure function, with pandas and without torch.

Layouts, after the paper's tables:
    methods  rows model x method, one column for each dataset, then Avg. (Tables 1 and 2)
    ranks    rows rank, columns method, the value is Avg. (Table 3)
    rates    the same with rows learning rate
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import pandas as pd

from osora_bench.errors import UserError, unknown
from osora_bench.plan import Cell, Experiment, TableSpec, trains
from osora_bench.record import read_ledger

CENT = Decimal("0.01")
NOT_IN_GRID = "-"


@dataclass(frozen=True)
class Table:
    """A table as text, where its best values stand, and what a reader must know of it."""

    name: str
    title: str
    frame: pd.DataFrame
    best: pd.DataFrame
    notes: list[str] = field(default_factory=list)


def percent(k: int, n: int) -> Decimal:
    """100 k / n, rounded half up to two decimals as the paper prints it."""
    return (Decimal(100) * k / n).quantize(CENT, ROUND_HALF_UP)


def mean(values: Sequence[Decimal]) -> Decimal:
    """Mean of printed values, rounded half up: what the paper's Avg. column is."""
    return (sum(values, Decimal(0)) / len(values)).quantize(CENT, ROUND_HALF_UP)


@dataclass(frozen=True)
class Row:
    """Cells that differ in their seed only, with the runs that have finished."""

    cell: Cell
    runs: list[dict[str, Any]]

    @property
    def datasets(self) -> list[str]:
        return [d["name"] for d in self.cell.config["eval"]["datasets"]]

    def values(self, dataset: str) -> list[Decimal]:
        """Accuracies by seed on one dataset, full sets only: a limited set is no full score."""
        scores = [run["scores"][dataset] for run in self.runs]
        return [percent(s["k"], s["n"]) for s in scores if s["n"] == s["questions"]]

    def averages(self) -> list[Decimal]:
        """Avg. of the datasets by seed."""
        by_set = [self.values(name) for name in self.datasets]
        if any(len(values) < len(self.runs) for values in by_set):
            return []
        return [mean(values) for values in zip(*by_set, strict=True)]

    def standard_error(self) -> float:
        """Binomial standard error of one run's Avg., in points: questions are what varies."""
        variances = []
        for run in self.runs:
            scores = [run["scores"][name] for name in self.datasets]
            terms = [s["k"] / s["n"] * (1 - s["k"] / s["n"]) / s["n"] for s in scores]
            variances.append(sum(terms) / len(scores) ** 2)
        return 100 * sqrt(max(variances, default=0.0))


def rows(cells: Sequence[Cell], records: dict[str, dict[str, Any]]) -> list[Row]:
    """Cells grouped over their seeds, in the order of the experiment."""
    grouped: dict[str, Row] = {}
    for cell in cells:
        key = json.dumps({k: v for k, v in cell.config.items() if k != "seed"}, sort_keys=True)
        row = grouped.setdefault(key, Row(cell, []))
        if cell.run_id in records:
            row.runs.append(records[cell.run_id])
    return list(grouped.values())


def build(experiment: Experiment, cells: Sequence[Cell]) -> tuple[list[Table], list[str]]:
    """Every table of an experiment from its ledger, and a line for each damaged record."""
    records: dict[str, dict[str, Any]] = {}
    damaged: list[str] = []
    for folder in sorted({cell.ledger for cell in cells}):
        ledger = read_ledger(folder)
        records |= ledger.records
        damaged += ledger.damaged
    made = [
        _layout(spec.layout)(name, spec, rows(cells, records))
        for name, spec in experiment.tables.items()
    ]
    return made, damaged


def _layout(name: str) -> Callable[[str, TableSpec, Sequence[Row]], Table]:
    layouts: dict[str, Callable[[str, TableSpec, Sequence[Row]], Table]] = {
        "methods": by_method,
        "ranks": partial(by_value, "r", lambda config: config["method"]["rank"]),
        "rates": partial(by_value, "Rate", lambda config: config["trainer"]["learning_rate"]),
    }
    if name not in layouts:
        raise UserError(unknown("table layout", name, layouts))
    return layouts[name]


def _selected(row: Row, spec: TableSpec) -> bool:
    method = row.cell.config["method"]
    if spec.methods is not None and method["name"] not in spec.methods:
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
    return pd.DataFrame(marks)


def by_method(name: str, spec: TableSpec, all_rows: Sequence[Row]) -> Table:
    """Tables 1 and 2: a row a method, grouped by model; a column a dataset; Avg."""
    chosen = [row for row in all_rows if _selected(row, spec)]
    if spec.methods is not None:
        chosen.sort(key=lambda row: _position(row, spec.methods or []))
    models = [row.cell.config["model"]["label"] for row in chosen]
    frame: dict[str, list[str]] = {
        "Model": models,
        "Method": [row.cell.config["method"]["label"] for row in chosen],
    }
    if len({row.cell.config["method"]["rank"] for row in chosen}) > 1 and spec.select is not None:
        frame["r"] = [str(row.cell.config["method"]["rank"] or "") for row in chosen]
    if spec.params:
        frame["Params"] = [_params(row) for row in chosen]
    columns: dict[str, list[list[Decimal]]] = {}
    if chosen:
        for dataset in chosen[0].cell.config["eval"]["datasets"]:
            columns[dataset["label"]] = [row.values(dataset["name"]) for row in chosen]
        columns["Avg."] = [row.averages() for row in chosen]
    frame |= {label: [_show(values) for values in by_row] for label, by_row in columns.items()}
    best = _best(models, columns).reindex(columns=list(frame), fill_value=False)
    return Table(name, spec.title, pd.DataFrame(frame), best, _notes(chosen))


def _position(row: Row, methods: Sequence[str]) -> tuple[str, int]:
    config = row.cell.config
    return config["model"]["label"], methods.index(config["method"]["name"])


def _params(row: Row) -> str:
    if not trains(row.cell.config):
        return "0"
    return str(row.runs[0]["parameters"]["trainable"]) if row.runs else ""


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
    chosen = [r for r in all_rows if _selected(r, spec) and value_of(r.cell.config) is not None]
    labels = {r.cell.config["method"]["name"]: r.cell.config["method"]["label"] for r in chosen}
    values = sorted({value_of(r.cell.config) for r in chosen})
    cells = {(r.cell.config["method"]["name"], value_of(r.cell.config)): r for r in chosen}
    frame: dict[str, list[str]] = {heading: [str(value) for value in values]}
    columns: dict[str, list[list[Decimal]]] = {}
    for method in spec.methods or list(labels):
        found = [cells.get((method, value)) for value in values]
        label = labels.get(method, method)
        columns[label] = [row.averages() if row else [] for row in found]
        frame[label] = [
            _show(averages) if row else NOT_IN_GRID
            for row, averages in zip(found, columns[label], strict=True)
        ]
    best = _best([""] * len(values), columns).reindex(columns=list(frame), fill_value=False)
    return Table(name, spec.title, pd.DataFrame(frame), best, _notes(chosen))


def _notes(chosen: Sequence[Row]) -> list[str]:
    """How many questions and seeds, and how far Avg. may be off by chance."""
    finished = [row for row in chosen if row.runs]
    if not finished:
        return ["No run has finished yet."]
    sets = finished[0].cell.config["eval"]["datasets"]
    counts = " + ".join(f"{d['questions']} {d['label']}" for d in sets)
    seeds = max(len(row.runs) for row in finished)
    error = max(row.standard_error() for row in finished)
    average = "Avg." if len(sets) > 1 else "a value"
    notes = [
        f"n = {counts} questions; {seeds} seed{'s' if seeds > 1 else ''}; "
        f"standard error of {average} at most {error:.1f} points. Best in bold."
    ]
    empty = len(chosen) - len(finished)
    if empty:
        notes.append(f"{empty} of {len(chosen)} cells have not been run: left blank.")
    limited = [d["label"] for d in sets if any(not row.values(d["name"]) for row in finished)]
    if limited:
        notes.append(f"Left blank, since a limit cut the set: {', '.join(limited)}.")
    return notes


def _for_reading(frame: pd.DataFrame) -> pd.DataFrame:
    """A model named once for its rows, as in the paper, and parameters with thousands marked."""
    shown = frame.copy()
    if "Model" in shown:
        shown["Model"] = shown["Model"].mask(shown["Model"].eq(shown["Model"].shift()), "")
    if "Params" in shown:
        shown["Params"] = [f"{int(text):,}" if text else "" for text in shown["Params"]]
    return shown


def markdown(table: Table) -> str:
    """GitHub's table syntax, aligned so that a terminal shows it as well."""
    plain = _for_reading(table.frame)
    shown = plain.where(~table.best, "**" + plain + "**")
    body = shown.to_markdown(
        index=False, disable_numparse=True, colalign=_alignment(table, "left", "right")
    )
    return "\n\n".join([f"### {table.title}", body, *table.notes]) + "\n"


def latex(table: Table) -> str:
    r"""A booktabs table that compiles as it stands with `\usepackage{booktabs}`."""
    escapes = str.maketrans({"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$"})
    plain = _for_reading(table.frame).map(lambda text: text.translate(escapes))
    shown = plain.where(~table.best, r"\textbf{" + plain + "}")
    return str(
        shown.to_latex(
            index=False,
            caption=" ".join(
                [f"{table.title}.".translate(escapes), *[n.translate(escapes) for n in table.notes]]
            ),
            label=f"tab:{table.name}",
            column_format="".join(_alignment(table, "l", "r")),
            position="t",
        )
    )


def _alignment(table: Table, text: str, number: str) -> list[str]:
    return [text if c in ("Model", "Method") else number for c in table.frame.columns]


def write(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write each table as Markdown, CSV and LaTeX; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in tables:
        texts = {
            ".md": markdown(table),
            ".csv": table.frame.to_csv(index=False),
            ".tex": latex(table),
        }
        for suffix, text in texts.items():
            target = folder / f"{table.name}{suffix}"
            target.write_text(text, encoding="utf-8")
            written.append(target)
    return written
