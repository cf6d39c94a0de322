"""Hydra's settings of a submission to SLURM, checked before anything is submitted."""

import shutil
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osora_bench.common.errors import UserError, unknown
from osora_bench.common.progress import say
from osora_bench.planning.cell import Cell
from osora_bench.planning.compose import composer, with_cause
from osora_bench.sweep.slurm.queue import check_squeue

TOOLS = ("sbatch", "squeue", "scontrol", "srun", "scancel")
LEAST = {
    "array_parallelism": 1,
    "cpus_per_task": 1,
    "gpus_per_node": 0,
    "mem_gb": 0,
    "timeout_min": 0,
}
"""The least that a setting may be; to SLURM, no memory is all of a node's and no time no limit."""


def profile(overrides: Sequence[str]) -> dict[str, Any]:
    """The launcher's settings that Hydra overrides make.

    Args:
        overrides: `hydra/launcher=slurm` first, then what is set on top of it.

    Raises:
        UserError: Hydra refuses them, they name a launcher of another kind, or values that no job
            of one cell can have.
    """
    settings = _composed(overrides)
    if not str(settings["_target_"]).endswith("SlurmLauncher"):
        raise UserError(
            f"{overrides[0]}: `run` submits to SLURM only: hydra/launcher=slurm; other launchers "
            "take a multirun, `python -m osora_bench -m`"
        )
    numbers = {key: value for key, value in settings.items() if isinstance(value, int)}
    problems = [
        f"hydra.launcher.{key}={numbers[key]}: must be at least {least}"
        for key, least in LEAST.items()
        if numbers.get(key, least) < least
    ]
    problems += [
        f"hydra.launcher.{key}={numbers[key]}: a job runs one cell, as one task"
        for key in ("nodes", "tasks_per_node")
        if numbers.get(key, 1) != 1
    ]
    if problems:
        raise UserError("\n".join(problems))
    return settings


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    choice, *values = overrides
    name = choice.partition("=")[2]
    with composer():
        try:
            settings = _settings([choice])
            for value in values:  # of a setting that is none, Hydra says to put a + before it
                key = value.lstrip("+").removeprefix("hydra.launcher.").partition("=")[0]
                if key.isidentifier() and key not in settings:
                    raise UserError(unknown("setting hydra.launcher.*", key, settings))
            return _settings(overrides)
        except (HydraException, OmegaConfBaseException) as error:
            known = GlobalHydra.instance().config_loader().get_group_options("hydra/launcher")
            if name not in known:
                raise UserError(unknown("hydra/launcher", name, known)) from error
            told = [line for value in values if (line := _of_a_type(value)) is not None]
            raise UserError(
                "\n".join(told) or f"{' '.join(overrides)}: {with_cause(error)}"
            ) from error


def _of_a_type(override: str) -> str | None:
    """What to say of GPUs that are asked for by their type (`a100:1`), where only their number is
    taken: SLURM takes a type by another of the launcher's settings."""
    key, _, value = override.lstrip("+").removeprefix("hydra.launcher.").partition("=")
    kind, _, count = value.strip("'\"").rpartition(":")
    if key not in ("gpus_per_node", "gpus_per_task") or value.isdecimal() or value == "null":
        return None
    kind = (kind or ("TYPE" if count.isdecimal() else count)).removeprefix("gpu:")
    number = count if count.isdecimal() else "1"
    return (
        f"hydra.launcher.{key}={value}: takes a whole number; GPUs of a type are asked for by "
        f"hydra.launcher.gres=gpu:{kind}:{number}"
    )


def _settings(overrides: Sequence[str]) -> dict[str, Any]:
    composed = hydra.compose("job", overrides=[*overrides], return_hydra_config=True)
    settings = OmegaConf.to_container(composed.hydra.launcher)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def check_cluster(launcher: str) -> None:
    """Refuse a machine that cannot submit to SLURM; `launcher` is the override that asks for it."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise UserError(f"{launcher}: no `{tool}` on the PATH; is this a SLURM cluster?")
    check_squeue()


def check_gpus(settings: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Refuse jobs that ask for fewer GPUs than a cell's training has processes; warn of jobs that
    ask for none and need one."""
    count, gpus = max(cell.config.processes for cell in cells), settings["gpus_per_node"]
    if gpus is not None and count > gpus:
        raise UserError(
            f"trainer.processes={count}, but a job asks for hydra.launcher.gpus_per_node={gpus}: "
            f"set it to {count}"
        )

    models = sorted({c.config.model.name for c in cells if c.config.model.needs_gpu})
    parameters = settings.get("additional_parameters") or {}
    gpus = (
        gpus
        or settings.get("gpus_per_task")
        or settings.get("gres")
        or any("gres" in k or "gpu" in k for k in parameters)
    )
    if not gpus and models:
        say(
            f"WARNING: {', '.join(models)} need a GPU; hydra.launcher.gpus_per_node is not set, so "
            "jobs have one only if the partition gives it by itself"
        )
