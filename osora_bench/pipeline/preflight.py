"""Everything that can be refused is refused here, before a model is loaded."""

import json
from collections.abc import Callable, Sequence

from osora_bench.common.claim import check_locks
from osora_bench.common.errors import UserError
from osora_bench.common.files import check_open, check_writable
from osora_bench.evaluation.checks import check_files, check_suite
from osora_bench.models.adapter_config import check_start, hooks, own_optimizer, start
from osora_bench.pipeline import tracker
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import plain
from osora_bench.training.checks import (
    check_attention,
    check_optimizer,
    check_precision,
    check_rows,
    check_sharing,
    check_turns,
)

Checks = Sequence[tuple[Callable[[Cell], object], Sequence[Cell]]]
"""Each with the cells that it is tried on."""


def check_cells(cells: Sequence[Cell], hint: str | None = None, here: bool = True) -> None:
    """Raise UserError with every reason why the cells cannot run now on this machine; or, if it is
    not `here` that they will run, on others that see its files."""
    by_data = _by_data(cells)
    by_trainer = {(c.config.trainer.optimizer, c.config.trainer.schedule): c for c in cells}
    by_place = {(c.paths.runs, c.ledger): c for c in cells}
    by_dialogues = {
        json.dumps(plain([c.config.task, c.config.model, c.config.trains])): c for c in cells
    }
    by_attention = {
        json.dumps(plain([c.config.model, c.config.trainer.attention, c.config.trains])): c
        for c in cells
    }
    by_model = {json.dumps(plain(c.config.model)): c for c in cells}
    checks: Checks = (
        (_check_place, list(by_place.values())),
        (_check_folders, cells),
        (_check_store, cells),
        (check_rows, by_data),
        (_check_suite, by_data),
        (check_optimizer, list(by_trainer.values())),
        (check_attention, list(by_attention.values()) if here else []),
        (_check_device, cells if here else []),
        (check_precision, cells if here else []),
        (_check_tracker, cells if here else []),
        (_check_quantisation, cells if here else []),
        (_check_weights, cells),
        (_check_context, list(by_model.values())),
        (_check_dialogues, list(by_dialogues.values())),
        (_check_layers, cells),
        (_check_merge, cells),
        (check_sharing, [c for c in cells if c.config.processes > 1]),
    )
    _refuse(checks, hint)


def check_data(cells: Sequence[Cell]) -> None:
    """Raise UserError with every reason why the rows and questions of cells cannot be read; what
    their training takes (models, a GPU, libraries) is not asked."""
    by_data = _by_data(cells)
    by_runs = {c.paths.runs: c for c in cells}
    _refuse(
        (
            (lambda cell: check_writable(cell.paths.runs), list(by_runs.values())),
            (check_rows, by_data),
            (lambda cell: check_files(cell.config.eval), by_data),
        )
    )


def _by_data(cells: Sequence[Cell]) -> list[Cell]:
    """One cell of those that read the same files."""
    parts = ((c, [c.config.task, c.config.eval, c.config.trains]) for c in cells)
    return list({json.dumps(plain(part)): c for c, part in parts}.values())


def _refuse(checks: Checks, hint: str | None = None) -> None:
    """Raise UserError with all that the checks find."""
    problems: dict[str, None] = {}
    for check, subset in checks:
        for cell in subset:
            try:
                check(cell)
            except UserError as error:
                problems.setdefault(str(error))
    if problems:
        raise UserError("\n".join(["cannot run:", *problems, *([hint] if hint else [])]))


def _check_place(cell: Cell) -> None:
    for folder in (cell.paths.runs, cell.ledger):
        check_writable(folder)
    check_locks(cell.paths.runs)


def _check_quantisation(cell: Cell) -> None:
    """Whether the model can be quantised as asked on this machine."""
    from osora_bench.models import base  # torch
    from osora_bench.models.quantisation import check_library

    cfg = cell.config
    check_library(cfg.model)
    settings = cfg.method.peft or {}
    lora = str(settings.get("_target_", "")).endswith(".LoraConfig")
    on_cpu = cfg.model.quantization == "int8" and base.device_of(cfg).type == "cpu"
    if on_cpu and lora and settings.get("use_dora"):
        raise UserError(
            f"method {cfg.method.name} with model.quantization=int8: PEFT's DoRA loses the scales "
            "of 8-bit layers on a CPU; nf4, or a GPU"
        )


def _check_folders(cell: Cell) -> None:
    """What another user has made below `runs`, and a cell writes in."""
    own = (cell.paths.folder, cell.paths.adapter, cell.paths.evaluation, cell.paths.trainer)
    shared = cell.paths.trained(cell.training_id)
    for folder in (cell.paths.folder.parent, shared.parent, shared, *own):
        check_open(folder)


def _check_store(cell: Cell) -> None:
    """The store of decompositions, if the cell's method takes them from it: one that can only be
    read is used."""
    method = cell.config.method
    names = (method.start, (method.peft or {}).get("_target_"))
    if not any(str(name).startswith("osora_bench.osora.") for name in names):
        return
    from osora_bench.osora.store import SvdStore, current_store

    try:
        if current_store() is None:
            SvdStore(cell.paths.decompositions)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_suite(cell: Cell) -> None:
    check_suite(cell.config.eval, cell.paths.evaluation, "with runs=")


def _check_device(cell: Cell) -> None:
    import torch

    from osora_bench.models import base

    model, device = cell.config.model, base.device_of(cell.config)
    if model.needs_gpu and device.type == "cpu" and cell.config.device != "cpu":
        raise UserError(
            f"model {model.name}: needs a GPU and torch sees none; device=cpu runs it anyway"
        )
    count = cell.config.processes
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise UserError(
            f"trainer.processes={count}: each takes a GPU of its own, and this machine has "
            f"{torch.cuda.device_count()}"
        )


def _check_tracker(cell: Cell) -> None:

    tracker.check_tracker(cell.config.tracker)


def _check_weights(cell: Cell) -> None:
    from osora_bench.models import weights

    weights.check_weights(cell.config.model)


def _check_context(cell: Cell) -> None:
    from osora_bench.models import context, weights

    weights.check_weights(cell.config.model)  # what is not there has been told already
    context.check_context(cell.config.model)


def _check_dialogues(cell: Cell) -> None:
    """The tokenizer and its chat template, tried on each row that is trained on."""
    from osora_bench.models import tokenizers, weights

    weights.check_weights(cell.config.model)  # what is not there has been told already
    tokenizers.check_tokenizer(cell.config.model)
    check_turns(cell)


def _check_layers(cell: Cell) -> None:
    """Modules that match nothing or that the method cannot adapt; ranks that are too large."""
    model, method = cell.config.model, cell.config.method
    if method.peft is None:
        return
    from osora_bench.models import counting, weights

    check_start(method)
    for named in (start, hooks, own_optimizer):
        named(method)
    if model.architecture is None:
        weights.check_weights(model)  # what is not there has been told already
    counting.check_layers(cell.config)
    counting.check_tied(cell.config)


def _check_merge(cell: Cell) -> None:
    """Adapters that could not be merged once they are trained."""
    model, method = cell.config.model, cell.config.method
    if not cell.config.eval.merge or method.peft is None:
        return
    from osora_bench.models import merging, weights

    if model.architecture is None:
        weights.check_weights(model)  # what is not there has been told already
    merging.check_method(cell.config)
