"""Trainable parameters, adapter bytes and frozen extra bytes, from the architecture alone.

The real PEFT modules are built on the meta device, which holds shapes and no numbers: nothing is
loaded and nothing is downloaded. `expected` is the closed form of the methods of the paper, for
cross-checking.
"""

import copy
import csv
import io
import itertools
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from peft import get_peft_model, get_peft_model_state_dict
from tabulate import tabulate
from torch import nn

from osora_bench import models, paths, preflight
from osora_bench.compose import compose, composer, resolve, without_collecting
from osora_bench.config import DTYPES
from osora_bench.errors import UserError, unknown
from osora_bench.plan import load_experiment

SAFETENSORS_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
CELLS_A_PROCESS = 8
"""Fewer than these, a second of counting, are not worth another process."""


@dataclass(frozen=True)
class Count:
    """One line of the table of parameters.

    Attributes:
        trainable: parameters that the optimiser updates.
        adapter_bytes: size of the saved adapter's safetensors file (of the whole model where
            all of it is trained).
        frozen_bytes: tensors that the method adds to the model and never trains (for OSoRA the
            singular vectors, second term of Eq. 6), as they are held in memory.
    """

    trainable: int
    adapter_bytes: int
    frozen_bytes: int


def count(cfg: dict[str, Any]) -> Count:
    """Count for one cell's model and method.

    Raises:
        UserError: modules that match nothing, or a rank that a layer cannot have.
    """
    method = cfg["method"]
    skeleton = models.blank(cfg["model"])
    if method["peft"] is None:
        whole = dict(skeleton.named_parameters()) if method["full"] else {}
        size = _file_size(whole, getattr(torch, cfg["model"]["dtype"]))
        return Count(sum(p.numel() for p in whole.values()), size, 0)
    preflight.check_rank(cfg, skeleton)
    own = {id(t) for t in _tensors(skeleton)}
    adapted = _adapted(skeleton, method)
    added = [t for t in _tensors(adapted) if id(t) not in own]
    trained = [p for p in adapted.parameters() if p.requires_grad]
    kept = {id(t) for t in trained}
    return Count(
        sum(p.numel() for p in trained),
        _file_size(get_peft_model_state_dict(adapted)),
        sum(t.numel() * t.element_size() for t in added if id(t) not in kept),
    )


def _adapted(skeleton: nn.Module, method: dict[str, Any]) -> Any:
    """The real PEFT model, without numbers."""
    peft = preflight.instantiate(_without_weights(method))
    with torch.device("meta"), warnings.catch_warnings():
        # peft calls transformers' old name
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        try:
            return get_peft_model(skeleton, peft)
        except ValueError as error:
            raise UserError(f"method {method['name']}: {error}") from error


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, saved or not, each once."""
    return [*model.parameters(), *model.buffers()]


def _without_weights(method: dict[str, Any]) -> dict[str, Any]:
    """The method with the start of its factors left out, where that is computed from the weights
    (`init_lora_weights: pissa` and its kin): the modules are the same, and meta has no weights."""
    peft = method["peft"]
    if isinstance(peft.get("init_lora_weights"), str):
        peft = {**peft, "init_lora_weights": True}
    return {**method, "peft": peft}


def _file_size(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> int:
    """Bytes of a safetensors file as PEFT writes it: 8 for the header's length, the header padded
    to a multiple of 8, the data. Without tensors there is no file."""
    if not tensors:
        return 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # the format's writer puts wider types first, then sorts by name
    for name, tensor in sorted(
        tensors.items(), key=lambda item: (-(dtype or item[1].dtype).itemsize, item[0])
    ):
        kind = dtype or tensor.dtype
        start, end = end, end + tensor.numel() * kind.itemsize
        header[name] = {
            "dtype": SAFETENSORS_TYPES[kind],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + length + -length % 8 + end


def expected(method: str, rank: int, shapes: Sequence[tuple[int, int]]) -> int | None:
    """Trainable parameters of a method of the paper by formula, or None for any other.

    Args:
        shapes: (d_out, d_in) of every adapted layer.
    """
    forms: dict[str, Callable[[int, int], int]] = {
        "lora": lambda out, into: rank * (out + into),
        "pissa": lambda out, into: rank * (out + into),
        "dora": lambda out, into: rank * (out + into) + out,
        "vera": lambda out, into: rank + out,
        "osora": lambda out, into: rank + out,  # section 3.5
        "osora_g": lambda out, into: rank + out,
        "osora_star": lambda out, into: out,
        "osora_star_star": lambda out, into: rank,
        "osora_k": lambda out, into: rank + into,
        "osora_dora": lambda out, into: rank + 2 * out,
    }
    return sum(forms[method](*shape) for shape in shapes) if method in forms else None


@dataclass(frozen=True)
class Line:
    """One model, method and rank with its count, or the reason why there is none."""

    model: str
    method: str
    rank: int | None
    count: Count | None
    problem: str | None


def table(
    model_names: Sequence[str],
    method_names: Sequence[str],
    ranks: Sequence[int] | None,
    config_file: Path | None = None,
    modules: Sequence[str] | None = None,
) -> list[Line]:
    """Counts of every model x method x rank.

    Args:
        ranks: for all methods; None takes, for each model and method, the ranks that the
            experiments run it at, and leaves out what none of them runs; for a `config_file`,
            which no experiment runs, the method's own.
        config_file: a hub-style config.json in place of the models' architecture.
        modules: the modules to adapt in place of the models' own.
    """
    used = experiment_ranks() if ranks is None and config_file is None else None
    cells = []
    with without_collecting():
        model_parts, method_parts = _parts(model_names, method_names)
        for model, method in itertools.product(model_names, method_names):
            cfg = copy.deepcopy(method_parts[method])
            cfg.model = model_parts[model]
            if modules is not None:
                cfg.model.target_modules = list(modules)
            for rank in _ranks(cfg, ranks, used, model, method):
                if rank is not None:
                    cfg.method.rank = rank
                resolved = resolve(cfg, f"{model} {method}")
                cells.append(with_config_file(resolved, config_file) if config_file else resolved)
        if config_file is not None:
            models.blank(cells[0]["model"])  # refused here, once, and not in every line
        return _lines(cells)


def _parts(
    model_names: Sequence[str], method_names: Sequence[str]
) -> tuple[dict[str, DictConfig], dict[str, DictConfig]]:
    """Each model's section, and a whole configuration with each method."""
    model_parts, method_parts = {}, {}
    # a composition takes a tenth of a second: each serves the next model and the next method
    turns = range(max(len(model_names), len(method_names)))
    names = zip(turns, itertools.cycle(model_names), itertools.cycle(method_names), strict=False)
    with composer():
        for _, model, method in names:
            cfg = compose([f"model={model}", f"method={method}"], f"{model} {method}")
            model_parts[model], method_parts[method] = cfg.model, cfg
    return model_parts, method_parts


def _lines(cells: Sequence[dict[str, Any]]) -> list[Line]:
    """Each cell's line; many are shared out among the machine's cores."""
    workers = min(len(os.sched_getaffinity(0)), len(cells) // CELLS_A_PROCESS)
    if workers < 2:
        return [_line(cell) for cell in cells]
    # forked, so that none imports the libraries again, which takes longer than the counting
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        return list(pool.map(_line, cells))


def _ranks(
    cfg: Any,
    ranks: Sequence[int] | None,
    used: dict[tuple[str, str], list[int]] | None,
    model: str,
    method: str,
) -> Sequence[int | None]:
    if cfg.method.rank is None:
        return [None]
    if used is None:
        return [None] if ranks is None else ranks
    return used.get((model, method), [])


def experiment_ranks() -> dict[tuple[str, str], list[int]]:
    """The ranks that the experiments train, by model and method."""
    found: dict[tuple[str, str], set[int]] = {}
    for place in sorted(paths.EXPERIMENTS.glob("*.yaml")):
        experiment = load_experiment(place.stem)
        for block in experiment.blocks if experiment.trains else ():
            for pair in itertools.product(block.model, block.method):
                found.setdefault(pair, set()).update(block.rank or ())
    return {pair: sorted(ranks) for pair, ranks in found.items()}


def _line(cfg: dict[str, Any]) -> Line:
    model, method = cfg["model"]["label"], cfg["method"]
    try:
        return Line(model, method["label"], method["rank"], count(cfg), None)
    except UserError as error:
        return Line(model, method["label"], method["rank"], None, str(error))


def with_config_file(cfg: dict[str, Any], place: Path) -> dict[str, Any]:
    """The cell with its model replaced by the architecture of a hub-style config.json.

    Raises:
        UserError: no such file, or one that is no model's configuration.
    """
    try:
        architecture = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: {error}") from error
    if not isinstance(architecture, dict) or "model_type" not in architecture:
        raise UserError(f"{place}: not a model's config.json (it has no model_type)")
    name = place.absolute().parent.name
    dtype = architecture.get("dtype", architecture.get("torch_dtype", "float32"))
    if dtype not in DTYPES:
        raise UserError(f"{place}: {unknown('dtype', str(dtype), DTYPES)}")
    told = {"name": name, "label": name, "architecture": architecture, "dtype": dtype}
    return {**cfg, "model": {**cfg["model"], **told}}


def markdown(lines: Sequence[Line]) -> str:
    """The counts as a table; a rank that a layer cannot have says so in place of numbers."""
    shown = [
        {
            "Model": line.model,
            "Method": line.method,
            "r": "" if line.rank is None else str(line.rank),
            "Trainable": _thousands(line.count.trainable) if line.count else line.problem,
            "Adapter bytes": _thousands(line.count.adapter_bytes) if line.count else "",
            "Frozen extra bytes": _thousands(line.count.frozen_bytes) if line.count else "",
        }
        for line in lines
    ]
    alignment = ("left", "left", "right", "right", "right", "right")
    return str(
        tabulate(shown, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=alignment)
    )


def csv_text(lines: Sequence[Line]) -> str:
    """The counts for machines: one line each, numbers as they are."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "method", "rank", "trainable", "adapter_bytes", "frozen_bytes"])
    for line in lines:
        numbers = astuple(line.count) if line.count else (line.problem, "", "")
        writer.writerow([line.model, line.method, line.rank or "", *numbers])
    return stream.getvalue()


def _thousands(value: int) -> str:
    return f"{value:,}"
