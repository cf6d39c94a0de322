"""osora-bench leakage: which questions of an experiment stand in the rows that it trains on."""

import json
from collections.abc import Sequence

from osora_bench.cli import smoke
from osora_bench.cli.options import CELLS_HELP, OF_THE_GRID, experiment_option
from osora_bench.planning.cell import Cell
from osora_bench.planning.compose import check_overrides
from osora_bench.planning.config import plain
from osora_bench.planning.experiments import load_experiment

HELP = {
    "leakage": f"""\
usage: osora-bench leakage experiment=NAME [KEY=VALUE ...]

For every task and suite of an experiment, how many questions of each set stand whole in a training
row, and how many others share 13 words in a row with one (docs/data.md). Whole: the question
itself; an option or a passage that recurs counts in part only. Nothing is trained: it takes
the rows and the questions, no model and no GPU.

{CELLS_HELP}""",
}


def leakage_verb(arguments: Sequence[str]) -> int:
    """Count them, and print a table."""
    name, overrides = experiment_option(arguments)
    check_overrides(overrides, also=OF_THE_GRID)
    experiment = load_experiment(name)
    pairs: dict[str, Cell] = {}
    for cell in smoke.planned(experiment, overrides).everything:
        if cell.config.trains and not cell.is_trial:
            key = json.dumps([plain(cell.config.task), plain(cell.config.eval)])
            pairs.setdefault(key, cell)
    if not pairs:
        print(f"{name}: no cell of it trains and is scored")
        return 0
    _print(list(pairs.values()))
    return 0


def _print(cells: Sequence[Cell]) -> None:
    """A line a task, suite and set; of the seed that comes first."""
    from osora_bench.pipeline.leakage import overlaps  # OpenCompass and torch
    from osora_bench.pipeline.preflight import check_data
    from osora_bench.pipeline.session import Session

    check_data(cells)
    session = Session()
    print("| task | suite | set | questions | whole | in part |\n|:--|:--|:--|--:|--:|--:|")
    for cell in cells:
        task, suite = cell.config.task.name, cell.config.eval.name
        for dataset, found in overlaps(cell, session.sets(cell)).items():
            counts = f"{found.questions} | {len(found.exact)} | {len(found.near)}"
            print(f"| {task} | {suite} | {dataset} | {counts} |", flush=True)
