"""The command `osora-bench`: what each verb is for, and how a mistake is told."""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from osora_bench.common.errors import UserError, unknown
from osora_bench.common.interruption import Interrupted

USAGE = """\
usage: osora-bench VERB [KEY=VALUE ...]

  plan    experiment=NAME   the cells of an experiment, their run ids and states (--json);
                            experiment=A,B: of several, what they share once
  run     experiment=NAME   run the cells that have no record yet, in this process
                            (workers=N: in N processes, which go on without this one;
                            hydra/launcher=slurm [hydra.launcher.partition=P ...]: as SLURM jobs;
                            retries=N: how often a cell is started again whose process was killed,
                            by default once; allow_changed=true: on other code than at the start)
  tables  experiment=NAME   the experiment's tables from its records
                            (out=FOLDER: write them there; params=true: with parameter counts;
                            compare=paper: the paper's numbers and the difference below ours;
                            others=true: limited sets and other seeds as well, marked)
  figures experiment=NAME   the experiment's figures as PNG, SVG and PDF (out=FOLDER)
  results                   all that results/ledger gives: results/tables, results/figures and the
                            tables inside README.md and RESULTS.md
  params  [model=A,B | config=FILE] [method=C,D] [rank=8,16] [modules=M,N] [--csv]
                            trainable parameters, adapter and frozen bytes, from the architecture
                            alone: the experiments' grid, or any hub-style config.json with each
                            method's own rank; modules: which are adapted, e.g. c_attn
  data    list|verify|fetch [SET ...]
                            benchmark sets: source, licence and state; their checksums and rows;
                            downloading what is missing (--replace: also what is wrong)
  audit                     where the paper's printed averages differ from its own cells
  cell    KEY=VALUE ...     one cell, or a Hydra multirun with -m (same as python -m osora_bench)
  evaluate --model M [--adapter FOLDER] --suite S
                            score a model or an adapter (osora-bench evaluate --help)
  export  ...               an OSoRA adapter as LoRA, or merged (osora-bench export --help)
  svd     ...               the store of decompositions: build, list, clean (osora-bench svd --help)

KEY=VALUE sets any configuration key for all cells, e.g. trainer.max_steps=1 ledger=/tmp/ledger;
scale=smoke runs or shows the same rows and columns on tiny random models and made-up data.
Experiments are the files of experiments/; models, methods, tasks and suites those of conf/.
"""


HOW = ("workers", "retries", "allow_changed")
"""Options that say how cells are run."""


def _experiment(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """What `experiment=` names, and the other arguments."""
    flags = [a for a in arguments if a.startswith("-") and a != "--json"]
    if flags:
        raise UserError(f"unknown option {flags[0]}; `osora-bench --help` lists what there is")
    named = [a.removeprefix("experiment=") for a in arguments if a.startswith("experiment=")]
    if len(named) != 1:
        from osora_bench.common import paths

        names = ", ".join(sorted(p.stem for p in paths.EXPERIMENTS.glob("*.yaml")))
        raise UserError(f"name one experiment: experiment=NAME. Valid: {names}")
    return named[0], [a for a in arguments if not a.startswith("experiment=")]


def plan_verb(arguments: Sequence[str]) -> int:
    """Print every cell with its run id, state, and what it is expected to take."""
    from osora_bench.cli import plan
    from osora_bench.planning.grid import expansion, together

    names, rest = _experiment(arguments)
    # how it would be run changes nothing but is checked: the line of a `run` is that of its plan
    _, overrides = _run_options([a for a in rest if a != "--json"])
    made = plan.lines(together(expansion(name, overrides) for name in names.split(",")))
    if "--json" in rest:
        print(json.dumps([line.plain() for line in made], indent=1))
    else:
        print("\n".join(plan.text(made)))
    return 0


def run_verb(arguments: Sequence[str]) -> int:
    """Run what is missing of an experiment."""
    from osora_bench.planning.experiments import load_experiment
    from osora_bench.records import code_state
    from osora_bench.sweep.run import run_experiment

    # looked at once a process: what runs is what is here now, not after the checks
    code_state.code()
    name, rest = _experiment(arguments)
    how, overrides = _run_options(rest)
    experiment = load_experiment(name)
    if not experiment.trains:
        print(f"{name}: nothing to run, it is made from the configuration alone")
        return 0
    return run_experiment(name, overrides, hint=experiment.hint, **how)


def _run_options(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """How cells are to be run (as of `run.run_by`), and the other arguments."""
    options, overrides = _options(arguments, HOW)
    how: dict[str, Any] = {"workers": _count(options.get("workers", "1"), "workers")}
    if "retries" in options:
        how["retries"] = _count(options["retries"], "retries", least=0)
    how["allow_changed"] = _choice(options, "allow_changed", "true")
    how["launcher"], overrides = _launcher(overrides)
    if how["launcher"] and "workers" in options:
        raise UserError(
            f"workers={how['workers']} and {how['launcher'][0]}: name one way to run the cells"
        )
    from osora_bench.planning import compose
    from osora_bench.sweep.slurm import profile

    if how["launcher"]:
        profile.profile(how["launcher"])
    compose.check_overrides(overrides, also=(*HOW, "scale"))
    return how, overrides


def _launcher(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are Hydra's own, the choice of a launcher first, and the others."""
    own = [a for a in arguments if a.lstrip("+~").startswith(("hydra.", "hydra/"))]
    own.sort(key=lambda a: not a.startswith("hydra/launcher="))
    if own and not own[0].startswith("hydra/launcher="):
        raise UserError(f"{own[0]} needs a launcher: hydra/launcher=slurm")
    if others := [a for a in own[1:] if not a.lstrip("+~").startswith("hydra.launcher.")]:
        raise UserError(
            f"{others[0]}: beside one hydra/launcher=NAME, only hydra.launcher.KEY=VALUE is taken"
        )
    return own, [a for a in arguments if a not in own]


def _count(text: str, key: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{key}={text}: a whole number of at least {least}")
    return int(text)


def _options(arguments: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """A verb's own KEY=VALUE options, and the other arguments."""
    own = [a for a in arguments if a.partition("=")[0] in known]
    keys = [a.partition("=")[0] for a in own]
    if twice := [key for key in known if keys.count(key) > 1]:
        raise UserError(f"{twice[0]}= is given twice")
    bare = [a for a in own if "=" not in a]
    if bare:
        raise UserError(f"{bare[0]}: needs a value, {bare[0]}=...")
    return dict(a.split("=", 1) for a in own), [a for a in arguments if a not in own]


def _choice(options: dict[str, str], key: str, valid: str) -> bool:
    """Whether an option that knows one value is given."""
    if key in options and options[key] != valid:
        raise UserError(unknown(f"value of {key}", options[key], [valid]))
    return key in options


def tables_verb(arguments: Sequence[str]) -> int:
    """Print an experiment's tables and write them as Markdown, CSV and LaTeX."""
    from osora_bench.common.process import without_collecting
    from osora_bench.planning.experiments import load_experiment
    from osora_bench.planning.grid import expansion
    from osora_bench.reporting import render, tabulate

    name, rest = _experiment(arguments)
    options, overrides = _options(rest, ("out", "params", "compare", "others"))
    cells = expansion(name, overrides).everything
    experiment = load_experiment(name)
    if not experiment.tables:
        print(f"{name}: experiments/{name}.yaml names no tables")
    params = _choice(options, "params", "true")
    for spec in experiment.tables.values():
        spec.params = spec.params or params
    compare = _choice(options, "compare", "paper")
    others = _choice(options, "others", "true") or "scale=smoke" in overrides
    with without_collecting():
        tables, damaged = tabulate.build(experiment, cells, compare=compare, others=others)
    folder = Path(options.get("out", cells[0].paths.runs / "tables" / name))
    written = render.write(tables, folder)
    for table in tables:
        print(render.markdown(table))
    for line in damaged:
        print(f"damaged record, left alone: {line}", file=sys.stderr)
    for ledger in sorted({cell.ledger for cell in cells if not cell.ledger.is_dir()}):
        print(f"no ledger yet: {ledger}", file=sys.stderr)
    if written:
        print(f"written to {folder}: {', '.join(p.name for p in written)}")
    return 0


def figures_verb(arguments: Sequence[str]) -> int:
    """Draw an experiment's figures."""
    from osora_bench.planning.experiments import load_experiment
    from osora_bench.planning.grid import expansion
    from osora_bench.reporting import figures

    name, rest = _experiment(arguments)
    options, overrides = _options(rest, ("out",))
    cells = expansion(name, overrides).everything
    folder = Path(options.get("out", cells[0].paths.runs / "figures" / name))
    written = figures.draw(load_experiment(name), cells, folder, others="scale=smoke" in overrides)
    if written:
        print(f"written to {folder}: {', '.join(p.name for p in written)}")
    return 0


def results_verb(arguments: Sequence[str]) -> int:
    """Make the committed tables, figures and pages anew."""
    from osora_bench.common import paths
    from osora_bench.reporting import committed

    if arguments:
        raise UserError(f"results takes no argument, not {arguments[0]}")
    written = committed.regenerate()
    folders = sorted({str(path.parent.relative_to(paths.ROOT)) for path in written})
    print(f"{len(written)} files in {', '.join(folders)}")
    return 0


def params_verb(arguments: Sequence[str]) -> int:
    """Count parameters of models x methods x ranks."""
    known = ("model", "method", "rank", "config", "modules")
    options, rest = _options(arguments, known)
    if wrong := [a for a in rest if a != "--csv"]:
        raise UserError(unknown("option", wrong[0], ["--csv", *(f"{k}=" for k in known)]))
    if "model" in options and "config" in options:
        raise UserError("model= and config= both say which model: name one of them")
    config = Path(options["config"]) if "config" in options else None
    # what is not in a config.json, the modules to adapt, is then any model's: q_proj and v_proj
    models = ["toy"] if config else _members(options.get("model"), "model")
    methods = _members(options.get("method"), "method")
    ranks = None
    if "rank" in options:
        try:
            ranks = [int(text) for text in options["rank"].split(",")]
        except ValueError as error:
            raise UserError(f"rank={options['rank']}: whole numbers, e.g. rank=8,16") from error
        if min(ranks) < 1:
            raise UserError(f"rank={options['rank']}: a rank is at least 1")
    modules = options["modules"].split(",") if "modules" in options else None
    from osora_bench.reporting import parameters

    lines = parameters.table(models, methods, ranks, config, modules)
    if modules is not None and not any(line.count for line in lines):
        raise UserError("\n".join(dict.fromkeys(str(line.problem) for line in lines)))
    print(parameters.csv_text(lines) if "--csv" in rest else parameters.markdown(lines))
    return 0


def _members(given: str | None, group: str) -> list[str]:
    """The members of a config group that a list names; by default every one."""
    from osora_bench.planning.compose import group_choices

    choices = group_choices(group)
    named = choices if given is None else given.split(",")
    for name in named:
        if name not in choices:
            raise UserError(unknown(group, name, choices))
    return named


def data_verb(arguments: Sequence[str]) -> int:
    """Where the benchmark sets come from, what of them is here, and getting the rest."""
    from osora_bench.benchdata import fetch, sets

    action = arguments[0] if arguments else ""
    if action not in ("list", "verify", "fetch"):
        raise UserError(unknown("action of `data`", action, ("list", "verify", "fetch")))
    flags = [a for a in arguments[1:] if a.startswith("-")]
    if wrong := [a for a in flags if a != "--replace" or action != "fetch"]:
        raise UserError(f"unknown option {wrong[0]}; `data fetch` alone has one, --replace")
    names = [a for a in arguments[1:] if a not in flags]
    if action == "fetch":
        return fetch.fetch(names, replace="--replace" in flags)
    if action == "verify":
        return sets.verify(names)
    print("\n".join(sets.listing(names)))
    return 0


def audit_verb(arguments: Sequence[str]) -> int:
    """Show what arithmetic says of the paper's printed numbers."""
    from osora_bench.reporting import reference

    for line in reference.audit():
        print(line)
    return 0


def cell_verb(arguments: Sequence[str]) -> int:
    """One cell through Hydra's own entry point."""
    from osora_bench.__main__ import main as hydra_main

    return hydra_main(arguments)


def evaluate_verb(arguments: Sequence[str]) -> int:
    """Score a model or an adapter that lies in a folder."""
    from osora_bench.cli.evaluate import main as evaluate_main

    return evaluate_main(arguments)


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
    "figures": figures_verb,
    "results": results_verb,
    "params": params_verb,
    "data": data_verb,
    "audit": audit_verb,
    "cell": cell_verb,
    "evaluate": evaluate_verb,
    "export": export_verb,
    "svd": svd_verb,
}

OWN_HELP = ("cell", "evaluate", "export", "svd")


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch a verb. Exit status: 0 all well, 1 a cell failed, 2 a mistake in the call."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb, rest = (arguments or ["help"])[0], arguments[1:]
    asked = {"-h", "--help"} & set(rest) and verb not in OWN_HELP
    if asked or verb in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    try:
        if verb not in VERBS:
            raise UserError(unknown("verb", verb, VERBS))
        status = VERBS[verb](rest)
        sys.stdout.flush()
        return status
    except Interrupted as interrupted:
        print(f"{interrupted}: what was done is kept, the next start goes on from it")
        return 128 + interrupted.number
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        if verb == "run":
            print("osora-bench: nobody reads what it says, so it ended", file=sys.stderr)
        return 128 + signal.SIGPIPE
    except (UserError, OSError) as error:  # a folder to write to, most of all; its name is told
        print(f"osora-bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
