"""osora-bench compare: methods beside each other, each with tuned rates, on several seeds."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from osora_bench.cli import smoke
from osora_bench.cli.options import (
    HOW_HELP,
    KEYS_HELP,
    SCALE_HELP,
    count_option,
    members,
    own_options,
    run_options,
)
from osora_bench.cli.report import show_tables
from osora_bench.cli.run import check_shown
from osora_bench.common.errors import UserError
from osora_bench.common.files import write_whole
from osora_bench.planning.bounds import rounded
from osora_bench.planning.comparison import FACTORS, Comparison
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.planning.config import Config
from osora_bench.planning.experiments import Experiment
from osora_bench.planning.grid import expansion
from osora_bench.planning.search import RATE
from osora_bench.records import code_state
from osora_bench.sweep.run import run_experiment

HELD_OUT = 200
VALIDATION = "task.validation_rows"
PLACES = ("ledger", "runs", "device", "tracker", "tracker.report_to", "tracker.mode")
"""Keys that change no cell's numbers."""
OPTIONS = (
    "methods",
    "model",
    "task",
    "eval",
    "seeds",
    "rates",
    "held_out",
    "baseline",
    "budget",
    "out",
)
HELP = {
    "compare": f"""\
usage: osora-bench compare methods=A,B,... [KEY=VALUE ...]

Compare methods fairly: each is tried at the same learning rates, which grow where the best is at
their end, and runs at its best on every seed; the untrained model stands beside them. Prints
averages with intervals, the ranks that each may have, paired tests, costs, and what was tried, and
writes them with figures. What has a record is not run again.

  methods=A,B          files of conf/method
  model=M              a file of conf/model; by default toy
  task=T               a file of conf/task; by default toy
  eval=S               a file of conf/eval; by default named like the task
  seeds=N              0 to N-1; by default 3
  rates=A,B,C          learning rates; by default the trainer's own (trainer.learning_rate=X: X),
                       a third and three times of it
  held_out=N           rows that no run trains on, whose loss chooses the rate; by default the
                       task's own (task.validation_rows), else 200
  baseline=A           what the others are held against; by default the first method
  budget=N             the rank of each method is the one that trains nearest to N parameters
  out=FOLDER           where tables, figures and scores.csv go; by default below runs/compare, a
                       folder for each comparison that differs
  task.retained=FILE   plain text whose loss before and after training is a cost (what is
                       forgotten): pkg://osora_bench.toy/pretraining.txt is the toy's
{HOW_HELP}
{SCALE_HELP}\
{KEYS_HELP}""",
}


def compare_verb(arguments: Sequence[str]) -> int:
    """Run what is missing of a comparison, and show it."""
    code_state.code()
    values, rest = own_options(arguments, OPTIONS)
    options, overrides = run_options(rest, OPTIONS)
    comparison, config = _comparison(values, overrides)
    overrides = _of_cells(overrides)
    experiment = comparison.experiment()
    plan = smoke.planned(experiment, overrides)
    check_shown(experiment, plan.everything)
    folder = Path(values.get("out", Path(config.runs) / "compare" / comparison.name))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "experiment.yaml", _file(experiment, comparison.settings))
    print(experiment.title)
    status = run_experiment(experiment, overrides, options, plan)
    cells = expansion(experiment, overrides).everything
    others = "scale=smoke" in overrides
    show_tables(experiment, cells, folder, others=others)
    from osora_bench.reporting import figures, rows, scores_csv  # its renderer

    place = folder / "scores.csv"
    count = scores_csv.write_scores(rows.recorded_rows(cells)[0], place)
    print(f"{count:,} answers written to {place}")

    drawn = figures.draw(experiment, cells, folder, others=others)
    print(f"figures: {', '.join(p.name for p in drawn if p.suffix == '.png')}")
    return status


def _file(experiment: Experiment, settings: Sequence[str]) -> str:
    """The experiment as a file, and above it what its cells have besides from the command line."""
    given = " ".join(["experiment=NAME", *map(shlex.quote, settings)])
    text = OmegaConf.to_yaml(OmegaConf.create(_said(experiment)))
    return f"# its cells: osora-bench run {given}\n{text}"


def _said(node: Any) -> Any:
    """An experiment as its file would say it: without what is not set."""
    if is_dataclass(node):
        defaults = {f.name: f.default for f in fields(node)}
        values = {f.name: getattr(node, f.name) for f in fields(node)}
        return _said({k: v for k, v in values.items() if v != defaults[k] and k != "name"})
    if isinstance(node, dict):
        return {key: _said(value) for key, value in node.items() if value not in ({}, [])}
    return [_said(value) for value in node] if isinstance(node, list) else node


def _comparison(values: dict[str, str], overrides: Sequence[str]) -> tuple[Comparison, Config]:
    """What the call asks for, and the configuration of its first method.

    Raises:
        UserError: anything that it names and is not there.
    """
    if not values.get("methods"):
        raise UserError(
            f"name the methods: methods=A,B. Valid: {', '.join(members(None, 'method'))}"
        )
    methods = members(values["methods"], "method")
    if repeated := sorted(name for name in set(methods) if methods.count(name) > 1):
        raise UserError(f"methods={values['methods']}: {repeated[0]} is named twice")
    if "none" in methods:
        raise UserError("methods=none: the untrained model stands beside them in any case")
    model, task = (_one(values.get(group, "toy"), group) for group in ("model", "task"))
    chosen = [f"model={model}", f"task={task}", f"method={methods[0]}"]
    suite = [f"eval={_one(values['eval'], 'eval')}"] if "eval" in values else []
    settings = [o for o in overrides if not o.startswith("scale=")]  # the grid's, not a cell's
    _check_said_once(values, settings)
    with composer():
        where = "compare"
        config = resolve(compose([*chosen, *suite, *settings], where), where)
    others = [*chosen[:2], *suite, *settings]
    baseline = values.get("baseline", methods[0])
    if baseline not in methods:
        raise UserError(f"baseline={baseline}: not among methods={','.join(methods)}")
    budget = count_option(values["budget"], "budget") if "budget" in values else None
    comparison = Comparison(
        model=model,
        task=task,
        suite=config.eval.name,
        methods=methods,
        baseline=baseline,
        seeds=count_option(values.get("seeds", "3"), "seeds"),
        rates=_rates(values.get("rates"), config.trainer.learning_rate),
        held_out=_held_out(values.get("held_out"), config),
        ranks={} if budget is None else _matched(methods, others, budget),
        budget=budget,
        settings=[o for o in _of_cells(overrides) if o.partition("=")[0] not in PLACES],
    )
    return comparison, config


def _of_cells(overrides: Sequence[str]) -> list[str]:
    """What is set in every cell: a learning rate that is given is the middle of those tried."""
    return [o for o in overrides if _key(o) != RATE]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _check_said_once(values: dict[str, str], settings: Sequence[str]) -> None:
    """Refuse a key that an option of this verb sets: one of the two would go unheard."""
    keys = {_key(o): o for o in settings}
    if VALIDATION in keys:
        raise UserError(f"{keys[VALIDATION]}: held_out=N says how many rows choose the rate")
    if RATE in keys and "rates" in values:
        raise UserError(f"{keys[RATE]} and rates={values['rates']}: name one of them")


def _held_out(text: str | None, config: Config) -> int:
    """How many rows choose the rate: as asked, or the task's own."""
    if text is None:
        return config.task.validation_rows or HELD_OUT
    return count_option(text, "held_out")


def _one(name: str, group: str) -> str:
    """One member of a config group; raises UserError for none or several."""
    found = members(name, group)
    if len(found) > 1:
        raise UserError(f"{group}={name}: one at a time")
    return found[0]


def _rates(text: str | None, own: float) -> list[float]:
    if text is None:
        return [rounded(own * factor) for factor in FACTORS]
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"rates={text}: not numbers such as 1e-3,1e-2") from error
    if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        raise UserError(f"rates={text}: different numbers above 0")
    return rates


def _matched(methods: Sequence[str], others: Sequence[str], budget: int) -> dict[str, int]:
    """The rank of each method, and how near it comes."""
    _check_ranked(methods, others, budget)
    from osora_bench.models.matching import matched_rank  # torch

    ranks = {}
    for method in methods:
        ranks[method], found = matched_rank([f"method={method}", *others], budget)
        print(
            f"{method}: rank {ranks[method]} trains {found:,}, {100 * (found / budget - 1):+.1f} %"
        )
    return ranks


def _check_ranked(methods: Sequence[str], others: Sequence[str], budget: int) -> None:
    """Raise UserError for methods without a rank, all of them."""
    with composer():
        ranked = {
            method: resolve(compose([f"method={method}", *others], method), method).method.rank
            for method in methods
        }
    without = [method for method, rank in ranked.items() if rank is None]
    if without:
        left = ",".join(method for method in methods if method not in without)
        hint = f"leave them out, methods={left}, or " if left else ""
        raise UserError(
            f"budget={budget}: no rank to match it with: {', '.join(without)}; {hint}compare "
            "without budget"
        )
