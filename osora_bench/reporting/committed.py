"""The committed ledger -> results/tables, results/figures, results/report.html, and the tables
inside the pages.

A page (README.md, RESULTS.md) holds a table between two comments, and what stands there is made
from the ledger like any other:

    <!-- table EXPERIMENT/TABLE -->
    <!-- end -->
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import Experiment, load_experiment
from osora_bench.planning.grid import expansion
from osora_bench.records.schema import Record
from osora_bench.reporting import render, tabulate
from osora_bench.reporting.figures import draw
from osora_bench.reporting.html.report import Part, read_ledgers, report

PAGES = ("README.md", "RESULTS.md")
PLACE = re.compile(r"(<!-- table (\S+)/(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def regenerate(root: Path = paths.ROOT, *, figures: bool = True) -> list[Path]:
    """Write everything that the committed ledger gives below `root`; return the files.

    Raises:
        UserError: a page asks for a table that no experiment with records has.
    """
    files: list[Path] = []
    texts: dict[str, str] = {}
    parts = list(committed())
    for name, experiment, cells in parts:
        tables, _ = tabulate.build_tables(experiment, cells)
        files += render.write_tables(tables, root / "results" / "tables" / name)
        texts |= {f"{name}/{table.name}": render.markdown(table) for table in tables}
        if figures and experiment.figures:
            files += draw(experiment, cells, root / "results" / "figures" / name)
    whole = report(
        [Part(e, cells) for _, e, cells in parts], read_ledgers([paths.RESULTS / "ledger"])
    )
    files.append(root / "results" / "report.html")
    files[-1].write_text(whole, encoding="utf-8")
    for page in PAGES:
        if (paths.ROOT / page).is_file():
            text = (paths.ROOT / page).read_text(encoding="utf-8")
            (root / page).write_text(_filled(text, texts, page), encoding="utf-8")
            files.append(root / page)
    return files


def committed() -> Iterator[tuple[str, Experiment, list[Cell]]]:
    """The experiments whose own ledger is results/ledger and that have a record there, with their
    cells."""
    ledger = paths.RESULTS / "ledger"
    for name, experiment, cells in recorded(ledger, read_ledgers([ledger]).records):
        if str(experiment.set.get("ledger")) == "results/ledger":
            yield name, experiment, cells


def recorded(
    ledger: Path, records: Mapping[str, Record], overrides: Sequence[str] = ()
) -> Iterator[tuple[str, Experiment, list[Cell]]]:
    """The experiments that have a record in a ledger, with their cells.

    Args:
        records: what the ledger holds, by run id.
        overrides: as of `expansion`.
    """
    found = {tuple(r["config"][part]["name"] for part in NAMED) for r in records.values()}
    for name in paths.experiment_files() if records else ():
        experiment = load_experiment(name)
        # planning takes seconds
        if not experiment.trains or not _may_have(experiment, found, overrides):
            continue
        cells = expansion(experiment, [f"ledger={ledger}", *overrides]).everything
        if any(cell.run_id in records for cell in cells):
            yield name, experiment, cells


NAMED = ("model", "method", "task", "eval")
"""Parts of a record's configuration that an experiment's file names."""


def _may_have(
    experiment: Experiment, found: Collection[tuple[str, ...]], overrides: Sequence[str]
) -> bool:
    """Whether a cell of an experiment can be one of those that records are of, by what its file
    names: where that is left to defaults, to overrides or to a scale, any may.

    Args:
        found: of each record the names of its `NAMED`.
    """
    given = {override.partition("=")[0].lstrip("+~") for override in overrides}
    open_ = given | (set(experiment.full) if "scale" in given else set())
    for block in experiment.blocks:
        settings = {**experiment.set, **block.set}
        named: dict[str, set[str]] = {"model": set(block.model), "method": set(block.method)}
        for part in ("task", "eval"):
            if part in settings and part not in open_:
                named[part] = {str(settings[part])}
        if block.search is not None and "eval" in named:
            named["eval"].add("none")  # of the cells that try settings
        if any(
            all(value in named.get(part, (value,)) for part, value in zip(NAMED, one, strict=True))
            for one in found
        ):
            return True
    return False


def _filled(text: str, texts: dict[str, str], page: str) -> str:
    def table(match: re.Match[str]) -> str:
        name = f"{match[2]}/{match[3]}"
        if name not in texts:
            raise UserError(f"{page}: {unknown('table', name, texts)}")
        return f"{match[1]}{texts[name]}{match[4]}"

    return PLACE.sub(table, text)
