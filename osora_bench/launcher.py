"""Hydra's settings of a submission to SLURM, checked before anything is submitted."""

import shutil
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osora_bench.compose import composer, group_choices, reason
from osora_bench.errors import UserError, unknown
from osora_bench.plan import Cell, processes
from osora_bench.progress import say

TOOLS = ("sbatch", "squeue", "scontrol", "srun")
PLUGIN = "submitit_slurm"
"""The launcher that conf/hydra/launcher sets values of."""
ELSEWHERE = "other launchers take a multirun, `python -m osora_bench -m`"
AT_LEAST_1 = ("timeout_min", "array_parallelism", "cpus_per_task", "mem_gb", "gpus_per_node")


def profile(overrides: Sequence[str]) -> dict[str, Any]:
    """The launcher's settings that Hydra overrides make.

    Args:
        overrides: `hydra/launcher=slurm` first, then what is set on top of it.

    Raises:
        UserError: Hydra refuses them, they name a launcher of another kind, or no job could have
            such settings.
    """
    choice, *values = overrides
    name = choice.partition("=")[2]
    if name not in (known := {PLUGIN, *group_choices("hydra/launcher")}):
        raise UserError(f"{unknown('hydra/launcher', name, known)}; {ELSEWHERE}")
    named = [v.removeprefix("hydra.launcher.").partition("=")[0] for v in values]
    settings = _composed([choice])
    for key in named:  # Hydra would advise a + before it
        if key.isidentifier() and key not in settings:
            raise UserError(unknown("setting hydra.launcher.*", key, settings))
    settings = _composed(overrides)
    if not str(settings["_target_"]).endswith("SlurmLauncher"):
        raise UserError(f"{choice}: `run` submits to SLURM only; {ELSEWHERE}")
    found = [
        f"hydra.launcher.{key}={settings[key]}: must be at least 1"
        for key in AT_LEAST_1
        if settings[key] is not None and settings[key] < 1
    ]
    found += [
        f"hydra.launcher.{key}={settings[key]}: a job runs one cell, as one task"
        for key in ("nodes", "tasks_per_node")
        if settings[key] != 1
    ]
    if found:
        raise UserError("\n".join(found))
    return settings


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    try:
        with composer():
            composed = hydra.compose("job", overrides=[*overrides], return_hydra_config=True)
            settings = OmegaConf.to_container(composed.hydra.launcher)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{' '.join(overrides)}: {reason(error)}") from error
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def check_cluster(overrides: Sequence[str]) -> None:
    """Refuse a machine that cannot submit to SLURM."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise UserError(f"{overrides[0]}: no `{tool}` on the PATH; is this a SLURM cluster?")


def check_gpus(settings: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Refuse jobs that ask for fewer GPUs than a cell's training has processes; warn of jobs that
    ask for none and need one."""
    most, asked = max(processes(cell.config) for cell in cells), settings["gpus_per_node"]
    if asked is not None and most > asked:
        raise UserError(
            f"trainer.processes={most}, but a job asks for hydra.launcher.gpus_per_node={asked}: "
            f"set it to {most}"
        )

    needs = sorted({c.config["model"]["name"] for c in cells if c.config["model"]["needs_gpu"]})
    others = settings.get("additional_parameters") or {}
    asked = asked or settings.get("gpus_per_task") or any("gres" in k or "gpu" in k for k in others)
    if not asked and needs:
        say(
            f"WARNING: {', '.join(needs)} need a GPU; hydra.launcher.gpus_per_node is not set, so "
            "jobs have one only if the partition gives it by itself"
        )
