"""What stands on the command line besides the configuration's own keys."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.planning import compose
from osora_bench.records.record import DamagedRecord, read_record
from osora_bench.records.schema import Record
from osora_bench.sweep.options import AUTO, RETRIES, WAIT, RunOptions
from osora_bench.sweep.slurm import profile

HOW = ("workers", "retries", "allow_changed", "wait")
"""Options that say how cells are run."""

OF_THE_GRID = ("scale", "methods")
"""Options that say which cells are meant."""

HOW_HELP = """\
  workers=N            in N processes, which go on without this one; workers=auto: as many as fit
  retries=N            how often a cell is started again whose process was killed; by default once
  allow_changed=true   workers and jobs may run other code than that of the start
  hydra/launcher=slurm hydra.launcher.KEY=VALUE
                       as SLURM jobs, e.g. hydra.launcher.partition=P (docs/slurm.md)
  wait=MINUTES         after so long without a change, jobs are left to themselves; by default a day
"""

SCALE_HELP = """\
  scale=smoke          the same rows and columns on tiny random models and made-up data
  scale=full           with what the experiment sets under `full`
"""
KEYS_HELP = """\
  KEY=VALUE            any configuration key for all cells, e.g. trainer.max_steps=1
"""
CELLS_HELP = f"""\
{SCALE_HELP}\
  methods=A,B          of the experiment's methods these alone
{KEYS_HELP}"""
"""What every verb takes that has an experiment's cells."""


def experiment_option(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """What `experiment=` names, and the other arguments."""
    flags = [a for a in arguments if a.startswith("-") and a != "--json"]
    if flags:
        raise UserError(f"unknown option {flags[0]}; `osora-bench VERB --help` lists what there is")
    values = [a.removeprefix("experiment=") for a in arguments if a.startswith("experiment=")]
    if len(values) != 1:
        names = ", ".join(paths.experiment_files())
        raise UserError(f"name one experiment: experiment=NAME. Valid: {names}")
    return values[0], [a for a in arguments if not a.startswith("experiment=")]


def run_options(arguments: Sequence[str], own: Sequence[str] = ()) -> tuple[RunOptions, list[str]]:
    """How cells are to be run, and the other arguments.

    Args:
        own: the verb's other options, which are valid as well.
    """
    values, overrides = own_options(arguments, HOW)
    launcher, overrides = _launcher(overrides)
    options = RunOptions(
        workers=_workers(values.get("workers", "1")),
        launcher=tuple(launcher),
        retries=count_option(values.get("retries", str(RETRIES)), "retries", least=0),
        allow_changed=choice(values, "allow_changed", "true"),
        wait=count_option(values.get("wait", str(WAIT)), "wait"),
    )
    if launcher and "workers" in values:
        raise UserError(
            f"workers={values['workers']} and {launcher[0]}: name one way to run the cells"
        )
    if "wait" in values and not launcher:
        raise UserError(f"wait={options.wait} is for SLURM jobs: it needs hydra/launcher=slurm")
    if launcher:
        profile.profile(launcher)
    compose.check_overrides(overrides, also=(*own, *HOW, *OF_THE_GRID))
    return options, overrides


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


def _workers(text: str) -> int:
    return AUTO if text == "auto" else count_option(text, "workers", also=" or auto")


def count_option(text: str, key: str, least: int = 1, also: str = "") -> int:
    """A whole number from the command line; raises UserError."""
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{key}={text}: a whole number of at least {least}{also}")
    return int(text)


def own_options(arguments: Sequence[str], valid: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """A verb's own KEY=VALUE options, and the other arguments."""
    options = [a for a in arguments if a.partition("=")[0] in valid]
    keys = [a.partition("=")[0] for a in options]
    if repeated := [key for key in valid if keys.count(key) > 1]:
        raise UserError(f"{repeated[0]}= is given twice")
    valueless = [a for a in options if "=" not in a]
    if valueless:
        raise UserError(f"{valueless[0]}: needs a value, {valueless[0]}=...")
    return dict(a.split("=", 1) for a in options), [a for a in arguments if a not in options]


def cells_options(
    arguments: Sequence[str], valid: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """As `own_options`, the other arguments checked: they are of an experiment's cells."""
    options, overrides = own_options(arguments, valid)
    compose.check_overrides(overrides, also=(*valid, *OF_THE_GRID))
    return options, overrides


def choice(options: dict[str, str], key: str, valid: str) -> bool:
    """Whether an option that knows one value is given."""
    if key in options and options[key] != valid:
        raise UserError(unknown(f"value of {key}", options[key], [valid]))
    return key in options


def members(selection: str | None, group: str) -> list[str]:
    """The members of a config group that a list names; by default every one."""
    names = compose.group_choices(group) if selection is None else selection.split(",")
    for name in names:
        if (problem := compose.member_problem(group, name)) is not None:
            raise UserError(problem)
    return names


def places(options: Mapping[str, str]) -> tuple[Path, Path]:
    """The ledger and the runs folder that are named, or the usual ones (conf/config.yaml)."""
    runs = Path(options.get("runs", "runs"))
    return Path(options.get("ledger", runs / "ledger")), runs


def recorded_run(ledger: Path, run_id: str) -> Record:
    """The record of a run.

    Raises:
        UserError: there is none of this id in the ledger, or it is damaged.
    """
    place = ledger / f"{run_id}.json"
    if not place.is_file():
        run_ids = sorted(path.stem for path in ledger.glob("*.json"))
        nearest = get_close_matches(run_id, run_ids, n=5, cutoff=0.3) or run_ids[:5]
        hint = (
            f"the nearest of {len(run_ids)}: {', '.join(nearest)}" if run_ids else "it holds none"
        )
        raise UserError(f"no record of a run {run_id!r} in {ledger}; {hint}")
    try:
        return read_record(place)
    except DamagedRecord as error:
        raise UserError(str(error)) from error
