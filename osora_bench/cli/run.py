"""osora-bench run and cell: run the cells that have no record yet."""

from collections.abc import Sequence

from osora_bench.cli import smoke
from osora_bench.cli.options import CELLS_HELP, HOW_HELP, experiment_option, run_options
from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import Experiment, load_experiment
from osora_bench.planning.grid import Expansion, expansion
from osora_bench.records import code_state
from osora_bench.reporting import rows, tabulate
from osora_bench.sweep.multirun import main as hydra_main
from osora_bench.sweep.run import run_experiment

HELP = {
    "run": f"""\
usage: osora-bench run experiment=NAME [KEY=VALUE ...]

Run the cells of an experiment that have no record yet, in this process or:

{HOW_HELP}
{CELLS_HELP}""",
    "cell": """\
usage: osora-bench cell [-m] [KEY=VALUE ...]

One cell, as python -m osora_bench: model=, method=, task=, seed= and any other configuration key.

  -m                   a multirun of every combination: method=lora,osora method.rank=8,16 seed=0,1
  KEY=VALUE            any configuration key, e.g. method.rank=32
  hydra/launcher=NAME  how Hydra runs a multirun
""",
}


def run_verb(arguments: Sequence[str]) -> int:
    """Run what is missing of an experiment."""
    # looked at once a process: what runs is what is here now, not after the checks
    code_state.code()
    name, rest = experiment_option(arguments)
    options, overrides = run_options(rest)
    experiment = load_experiment(name)
    if not experiment.trains:
        print(f"{name}: nothing to run, it is made from the configuration alone")
        return 0
    plan = smoke.planned(experiment, overrides)
    check_whole(experiment, overrides, plan)
    return run_experiment(experiment, overrides, options, plan)


def cell_verb(arguments: Sequence[str]) -> int:
    """One cell through Hydra's own entry point."""
    return hydra_main(arguments)


def check_whole(experiment: Experiment, overrides: Sequence[str], plan: Expansion) -> None:
    """`check_shown` of all methods: tables show what has a record, whichever are run now.

    Args:
        plan: what `overrides` leave of the experiment.
    """
    whole = [o for o in overrides if not o.startswith("methods=")]
    found = plan if whole == list(overrides) else expansion(experiment, whole)
    check_shown(experiment, found.everything)


def check_shown(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raise UserError if the experiment's tables or figures could not be made in the end.

    Args:
        cells: all of the experiment's, for what tables and figures select to be among them.
    """
    without_records = rows.rows(cells, {})
    for name, table in experiment.tables.items():
        rows.check_selection(f"table {name}", table, without_records)
    for name, figure in experiment.figures.items():
        rows.check_selection(f"figure {name}", figure, without_records)
    tabulate.check_tables(experiment, cells)
    if experiment.figures:
        from osora_bench.reporting import figures

        figures.check_figures(experiment, cells)
