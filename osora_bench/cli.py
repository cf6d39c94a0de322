"""The command `osora-bench`: what each verb is for, and how a mistake is told."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from osora_bench.errors import UserError, unknown

USAGE = """\
usage: osora-bench VERB [KEY=VALUE ...]

  plan    experiment=NAME   the cells of an experiment, their run ids and states (--json)
  run     experiment=NAME   run the cells that have no record yet, in this process
  tables  experiment=NAME   the experiment's tables from its records
                            (out=FOLDER: write them there; params=true: with parameter counts)
  cell    KEY=VALUE ...     one cell, or a Hydra multirun with -m (same as python -m osora_bench)
  export  ...               an OSoRA adapter as LoRA, or merged (osora-bench export --help)
  svd     ...               the store of decompositions: build, list, clean (osora-bench svd --help)

KEY=VALUE sets any configuration key for all cells, e.g. trainer.max_steps=1 ledger=/tmp/ledger.
Experiments are the files of experiments/; models, methods, tasks and suites those of conf/.
"""


def _experiment(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The experiment's name, and the other arguments."""
    named = [a.removeprefix("experiment=") for a in arguments if a.startswith("experiment=")]
    if len(named) != 1:
        from osora_bench import paths

        names = ", ".join(sorted(p.stem for p in paths.EXPERIMENTS.glob("*.yaml")))
        raise UserError(f"name one experiment: experiment=NAME. Valid: {names}")
    return named[0], [a for a in arguments if not a.startswith("experiment=")]


def plan_verb(arguments: Sequence[str]) -> int:
    """Print every cell with its run id and state."""
    from osora_bench.plan import expand

    name, rest = _experiment(arguments)
    cells = expand(name, [a for a in rest if a != "--json"])
    if "--json" in rest:
        listed = [
            {"run_id": c.run_id, "state": c.state, "label": c.label, "overrides": c.overrides}
            for c in cells
        ]
        print(json.dumps(listed, indent=1))
        return 0
    for c in cells:
        print(f"{c.run_id}  {c.state:8s} {c.label}")
    states = [c.state for c in cells]
    print(
        f"{len(cells)} cells: " + ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
    )
    return 0


def run_verb(arguments: Sequence[str]) -> int:
    """Run what is missing of an experiment."""
    from osora_bench.plan import expand, load_experiment
    from osora_bench.run import run_missing

    name, overrides = _experiment(arguments)
    return run_missing(expand(name, overrides), load_experiment(name).hint)


def tables_verb(arguments: Sequence[str]) -> int:
    """Print an experiment's tables and write them as Markdown, CSV and LaTeX."""
    from osora_bench import tabulate
    from osora_bench.plan import expand, load_experiment

    name, rest = _experiment(arguments)
    own = [a for a in rest if a.startswith(("out=", "params="))]
    cells = expand(name, [a for a in rest if a not in own])
    out = [a.removeprefix("out=") for a in own if a.startswith("out=")]
    experiment = load_experiment(name)
    for spec in experiment.tables.values():
        spec.params = spec.params or "params=true" in own
    tables, damaged = tabulate.build(experiment, cells)
    folder = Path(out[-1]) if out else cells[0].paths.runs / "tables" / name
    written = tabulate.write(tables, folder)
    for table in tables:
        print(tabulate.markdown(table))
    for line in damaged:
        print(f"damaged record, left alone: {line}", file=sys.stderr)
    print(f"written to {folder}: {', '.join(p.name for p in written)}")
    return 0


def cell_verb(arguments: Sequence[str]) -> int:
    """One cell through Hydra's own entry point."""
    from osora_bench.__main__ import main as hydra_main

    return hydra_main(arguments)


def export_verb(arguments: Sequence[str]) -> int:
    """OSoRA's own command, which needs nothing of the harness."""
    from osora_bench.osora.commands import export_main

    return export_main(arguments)


def svd_verb(arguments: Sequence[str]) -> int:
    """OSoRA's own command, which needs nothing of the harness."""
    from osora_bench.osora.commands import svd_main

    return svd_main(arguments)


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "plan": plan_verb,
    "run": run_verb,
    "tables": tables_verb,
    "cell": cell_verb,
    "export": export_verb,
    "svd": svd_verb,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch a verb. Exit status: 0 all well, 1 a cell failed, 2 a mistake in the call."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb not in VERBS:
            raise UserError(unknown("verb", verb, VERBS))
        return VERBS[verb](rest)
    except UserError as error:
        print(f"osora-bench: {error}", file=sys.stderr)
        return 2
