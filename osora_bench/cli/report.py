"""osora-bench tables | figures | results | audit: what records say."""

import sys
from collections.abc import Sequence
from pathlib import Path

from osora_bench.cli import smoke
from osora_bench.cli.options import CELLS_HELP, cells_options, choice, experiment_option
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.common.process import without_collecting
from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import Experiment, load_experiment
from osora_bench.reporting import reference, render, tabulate

TABLES_OPTIONS = ("out", "params", "compare", "others")
FIGURES_OPTIONS = ("out", "all")
SCORES_OPTIONS = ("out",)
HELP = {
    "tables": f"""\
usage: osora-bench tables experiment=NAME [KEY=VALUE ...]

Print an experiment's tables from its records, and write them as Markdown, CSV and LaTeX.

  out=FOLDER           write them there; by default below runs/tables
  params=true          with parameter counts
  compare=paper        the paper's numbers and the difference below ours
  others=true          limited sets and other seeds as well, marked
{CELLS_HELP}""",
    "figures": f"""\
usage: osora-bench figures experiment=NAME [KEY=VALUE ...]

Draw an experiment's figures from its records, as PNG, SVG and PDF.

  out=FOLDER           write them there; by default below runs/figures
  all=true             those of the report's page too
{CELLS_HELP}""",
    "scores": f"""\
usage: osora-bench scores experiment=NAME [KEY=VALUE ...]

Every answer of an experiment's records as one CSV file, a row a question (docs/statistics.md).

  out=FILE             write it there; by default runs/scores/NAME.csv
{CELLS_HELP}""",
    "results": """\
usage: osora-bench results

All that results/ledger gives: results/tables, results/figures, results/report.html and the tables
inside README.md and RESULTS.md. It takes no option.
""",
    "audit": """\
usage: osora-bench audit

Where the paper's printed averages differ from its own cells. It takes no option.
""",
}


def tables_verb(arguments: Sequence[str]) -> int:
    """Print an experiment's tables and write them as Markdown, CSV and LaTeX."""
    name, rest = experiment_option(arguments)
    options, overrides = cells_options(rest, TABLES_OPTIONS)
    experiment = load_experiment(name)
    cells = smoke.planned(experiment, overrides).everything
    if not experiment.tables:
        print(f"{name}: experiments/{name}.yaml names no tables")
    params = choice(options, "params", "true")
    for spec in experiment.tables.values():
        spec.params = spec.params or params
    compare = choice(options, "compare", "paper")
    others = choice(options, "others", "true") or "scale=smoke" in overrides
    folder = Path(options.get("out", cells[0].paths.runs / "tables" / name))
    show_tables(experiment, cells, folder, compare=compare, others=others)
    return 0


def show_tables(
    experiment: Experiment,
    cells: Sequence[Cell],
    folder: Path,
    *,
    compare: bool = False,
    others: bool = False,
) -> None:
    """Print the tables of an experiment and write them into a folder; `build_tables` says what the
    choices are."""
    with without_collecting():
        tables, damaged = tabulate.build_tables(experiment, cells, compare=compare, others=others)
    files = render.write_tables(tables, folder)
    for table in tables:
        print(render.markdown(table))
    _tell_damaged(damaged)
    for ledger in sorted({cell.ledger for cell in cells if not cell.ledger.is_dir()}):
        print(f"no ledger yet: {ledger}", file=sys.stderr)
    if files:
        print(f"written to {folder}: {', '.join(p.name for p in files)}")


def _tell_damaged(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"damaged record, left alone: {line}", file=sys.stderr)


def figures_verb(arguments: Sequence[str]) -> int:
    """Draw an experiment's figures."""
    from osora_bench.reporting import figures  # a renderer that tables need not wait for

    name, rest = experiment_option(arguments)
    options, overrides = cells_options(rest, FIGURES_OPTIONS)
    experiment = load_experiment(name)
    cells = smoke.planned(experiment, overrides).everything
    folder = Path(options.get("out", cells[0].paths.runs / "figures" / name))
    others = "scale=smoke" in overrides
    files = figures.draw(experiment, cells, folder, others=others)
    if choice(options, "all", "true"):
        from osora_bench.reporting.html import plots
        from osora_bench.reporting.rows import recorded_rows

        named = {spec.title for spec in experiment.figures.values()}
        every = plots.places(experiment, cells, recorded_rows(cells, others=others)[0])
        found = [place for place in every if place.title not in named]
        files += figures.write_figures(plots.by_file(found), folder)
    if files:
        print(f"written to {folder}: {', '.join(p.name for p in files)}")
    return 0


def scores_verb(arguments: Sequence[str]) -> int:
    """Write every answer as a row of a CSV file."""
    from osora_bench.reporting.rows import recorded_rows
    from osora_bench.reporting.scores_csv import write_scores

    name, rest = experiment_option(arguments)
    options, overrides = cells_options(rest, SCORES_OPTIONS)
    experiment = load_experiment(name)
    cells = smoke.planned(experiment, overrides).everything
    rows, damaged = recorded_rows(cells)
    place = Path(options.get("out", cells[0].paths.runs / "scores" / f"{name}.csv"))
    count = write_scores(rows, place)
    _tell_damaged(damaged)
    print(f"{count:,} answers written to {place}")
    return 0


def results_verb(arguments: Sequence[str]) -> int:
    """Make the committed tables, figures and pages anew."""
    from osora_bench.reporting import committed  # the renderer too

    if arguments:
        raise UserError(f"results takes no argument, not {arguments[0]}")
    files = committed.regenerate()
    folders = sorted({str(path.parent.relative_to(paths.ROOT)) for path in files})
    print(f"{len(files)} files in {', '.join(folders)}")
    return 0


def audit_verb(arguments: Sequence[str]) -> int:
    """Show what arithmetic says of the paper's printed numbers."""
    for line in reference.audit():
        print(line)
    return 0
