"""Everything that can be refused is refused here, before a model is loaded."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from osora_bench.benchdata.sets import absent, data_folder, gated, refuse_committable
from osora_bench.common.errors import UserError, unknown
from osora_bench.common.files import check_writable
from osora_bench.models.adapters import instantiate, start
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import chosen, processes, trains
from osora_bench.training.data import dialogues


def check(cells: Sequence[Cell], hint: str | None = None, here: bool = True) -> None:
    """Raise UserError with every reason why the cells cannot run now on this machine; or, if it is
    not `here` that they will run, on others that see its files."""
    by_data = {json.dumps([c.config["task"], c.config["eval"], trains(c.config)]): c for c in cells}
    by_trainer = {
        (c.config["trainer"]["optimizer"], c.config["trainer"]["schedule"]): c for c in cells
    }
    by_place = {(c.paths.runs, c.ledger): c for c in cells}
    problems: dict[str, None] = {}
    checks: tuple[tuple[Callable[[Cell], object], Sequence[Cell]], ...] = (
        (_check_place, list(by_place.values())),
        (_check_rows, list(by_data.values())),
        (_check_suite, list(by_data.values())),
        (_check_optimizer, list(by_trainer.values())),
        (_check_device, cells if here else []),
        (_check_tracker, cells if here else []),
        (_check_weights, cells),
        (_check_layers, cells),
        (_check_sharing, [c for c in cells if processes(c.config) > 1]),
    )
    for one, over in checks:
        for cell in over:
            try:
                one(cell)
            except UserError as error:
                problems.setdefault(str(error))
    if problems:
        raise UserError("\n".join(["cannot run:", *problems, *([hint] if hint else [])]))


def _check_place(cell: Cell) -> None:
    for folder in (cell.paths.runs, cell.ledger):
        check_writable(folder)


def _check_rows(cell: Cell) -> None:
    """Training rows: every file that is missing, else what is wrong with the rows."""
    if not trains(cell.config):
        return
    sources = cell.config["task"]["sources"]
    files = [one["path"] for s in sources for one in (s, s["exclude"]) if one is not None]
    missing = [line for file in files if (line := absent(file)) is not None]
    if missing:
        raise UserError("\n".join([*missing, data_folder()]))
    dialogues(cell.config["task"], cell.config["seed"])


def _check_suite(cell: Cell) -> None:
    check_suite(cell.config["eval"], cell.paths.evaluation, "with runs=")


def check_suite(suite: dict[str, Any], folder: Path, how: str) -> None:
    """Raise UserError if a suite's backend cannot run here or files of it are missing, or if its
    answers, with the questions, may not lie in `folder`; `how` says by what another is named."""
    if suite["backend"] == "vllm":
        from osora_bench.evaluation.vllm_model import check_installed

        check_installed()
    missing = {
        f"{dataset['name']}: {line}": dataset["name"]
        for dataset in chosen(suite)
        for file in dataset["files"]
        if (line := absent(file)) is not None
    }
    if missing:
        told = [*missing, data_folder()]
        names = sorted(set(missing.values()))
        if len(names) < len(chosen(suite)):
            told.append(f"eval.without=[{','.join(names)}] scores the others")
        raise UserError("\n".join(told))
    if any(gated(file) for dataset in chosen(suite) for file in dataset["files"]):
        refuse_committable(folder / "answers", how)


def _check_device(cell: Cell) -> None:
    import torch

    from osora_bench.models import base

    model, device = cell.config["model"], base.device_of(cell.config)
    if model["needs_gpu"] and device.type == "cpu" and cell.config["device"] != "cpu":
        raise UserError(
            f"model {model['name']}: needs a GPU and torch sees none; device=cpu runs it anyway"
        )
    count = processes(cell.config)
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise UserError(
            f"trainer.processes={count}: each takes a GPU of its own, and this machine has "
            f"{torch.cuda.device_count()}"
        )


def _check_optimizer(cell: Cell) -> None:
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    trainer = cell.config["trainer"]
    for key, kinds in (("optimizer", OptimizerNames), ("schedule", SchedulerType)):
        names = [kind.value for kind in kinds]
        if trainer[key] not in names:
            raise UserError(unknown(f"trainer.{key}", trainer[key], names))


def _check_tracker(cell: Cell) -> None:
    from osora_bench.pipeline import tracker

    tracker.check(cell.config["tracker"])


def _check_weights(cell: Cell) -> None:
    from osora_bench.models import weights

    weights.check_weights(cell.config["model"])


def _check_layers(cell: Cell) -> None:
    """Modules that match nothing or that the method cannot adapt; ranks that are too large."""
    model, method = cell.config["model"], cell.config["method"]
    if method["peft"] is None:
        return
    from osora_bench.models import counting, weights

    instantiate(method)
    start(method)
    if model["architecture"] is None:
        weights.check_weights(model)  # what is not there has been told already
    counting.check(cell.config)


def _check_sharing(cell: Cell) -> None:
    """Models and methods whose weights cannot be shared out among processes."""
    model, method = cell.config["model"], cell.config["method"]
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    from osora_bench.models.skeleton import blank, decoder_layers

    where = f"trainer.processes={processes(cell.config)}"
    if not decoder_layers(blank(model)):
        raise UserError(
            f"{where}: transformers names no layers of {model['name']} that could be shared out"
        )
    if method["peft"] is None:
        return
    settings = instantiate(method)
    if settings.is_prompt_learning:
        raise UserError(
            f"{where}: method {method['name']} learns a prompt, which PEFT saves from whole "
            "weights only: trainer.processes=1"
        )
    if hasattr(PEFT_TYPE_TO_TUNER_MAPPING[settings.peft_type], "update_and_allocate"):
        raise UserError(
            f"{where}: method {method['name']} moves ranks between layers while it trains, for "
            "which it needs them whole: trainer.processes=1"
        )
