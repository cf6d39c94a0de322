"""The table of trainable parameters, adapter bytes and frozen extra bytes: its grid and its text.

The numbers are `counting.py`'s. Composing the grid and importing the libraries that count take
seconds each, so nothing here imports torch before another process has begun to compose.
"""

import copy
import gc
import itertools
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from osora_bench.common.allowance import OURS
from osora_bench.common.errors import UserError, unknown
from osora_bench.common.process import without_collecting
from osora_bench.planning.checks import DTYPES
from osora_bench.planning.compose import compose, composer, vary
from osora_bench.planning.config import Config
from osora_bench.planning.experiments import Experiment, readable_experiments

if TYPE_CHECKING:
    from osora_bench.models.counting import Count

CELLS_A_PROCESS = 8
"""Fewer than these, a second of counting, are not worth another process."""


@dataclass(frozen=True)
class CountLine:
    """One model, method and rank with its count, or the reason why there is none."""

    model: str
    method: str
    rank: int | None
    count: "Count | None"
    problem: str | None


def count_table(
    model_names: Sequence[str],
    method_names: Sequence[str] | None,
    ranks: Sequence[int] | None,
    config_file: Path | None = None,
    modules: Sequence[str] | str | None = None,
) -> list[CountLine]:
    """Counts of every model x method x rank.

    Args:
        method_names: None: `usual_methods`.
        ranks: for all methods; None takes, for each model and method, the ranks that the
            experiments run it at, and leaves out models that none of them runs it on; the method's
            own rank for a method, or a `config_file`, that no experiment runs.
        config_file: a hub-style config.json in place of the models' architecture.
        modules: the modules to adapt in place of the models' own, in any spelling of PEFT's.
    """
    replacement = None if config_file is None else read_config_file(config_file)
    arguments = (model_names, method_names, ranks, replacement, modules)
    with without_collecting():
        if "torch" in sys.modules:
            return _lines(_cells(*arguments), replacement is not None)
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            composing = pool.submit(_cells, *arguments)
            import_module("osora_bench.models.counting")  # four seconds, on another core
            # they stay until the process ends: looking through them for garbage, at its end and in
            # the workers, is a second and more
            gc.freeze()
            cells = composing.result()
        return _lines(cells, replacement is not None)


def _cells(
    model_names: Sequence[str],
    method_names: Sequence[str] | None,
    ranks: Sequence[int] | None,
    replacement: dict[str, Any] | None,
    modules: Sequence[str] | str | None,
) -> list[Config]:
    """The resolved configurations to count, as `table` describes them; `replacement` is
    what replaces the models' own architecture."""
    experiments = readable_experiments() if ranks is None or method_names is None else []
    known_ranks = experiment_ranks(experiments)
    trained_ranks = known_ranks if ranks is None and replacement is None else None
    method_names = usual_methods(experiments) if method_names is None else method_names
    cells: list[Config] = []
    with without_collecting():
        model_parts, method_parts = _parts(model_names, method_names)
        for model, method in itertools.product(model_names, method_names):
            asked = _ranks(method_parts[method], ranks, trained_ranks, model, method)
            if not asked:
                continue
            cfg = copy.deepcopy(method_parts[method])
            cfg.model = model_parts[model]
            cfg.model.update(replacement or {})
            if modules is not None:
                cfg.model.target_modules = modules
            variants = [{} if rank is None else {"method.rank": rank} for rank in asked]
            cells += vary(cfg, variants, f"{model} {method}")
    return cells


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


def _lines(cells: Sequence[Config], one_model: bool) -> list[CountLine]:
    """Each cell's line; many are shared out among the machine's cores."""
    from osora_bench.planning.blank import blank

    if one_model:
        blank(cells[0].model)  # refused here, once, and not in every line
    workers = min(OURS.processors(), len(cells) // CELLS_A_PROCESS)
    if workers < 2:
        return [_line(cell) for cell in cells]
    # forked, so that none imports the libraries again, which takes longer than the counting
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        # in a row, since a process makes each model once
        return list(pool.map(_line, cells, chunksize=CELLS_A_PROCESS))


def _ranks(
    cfg: Any,
    ranks: Sequence[int] | None,
    trained_ranks: dict[tuple[str, str], list[int]] | None,
    model: str,
    method: str,
) -> Sequence[int | None]:
    if cfg.method.rank is None:
        return [None]
    if ranks is not None:
        return ranks
    if trained_ranks is None or method not in {ran for _, ran in trained_ranks}:
        return [None]
    return trained_ranks.get((model, method), [])


def experiment_ranks(experiments: Sequence[Experiment]) -> dict[tuple[str, str], list[int]]:
    """The ranks that the experiments train, by model and method."""
    ranks_by_pair: dict[tuple[str, str], set[int]] = {}
    for experiment in experiments:
        for block in experiment.blocks if experiment.trains else ():
            for pair in itertools.product(block.model, block.method):
                ranks_by_pair.setdefault(pair, set()).update(block.rank or ())
    return {pair: sorted(ranks) for pair, ranks in ranks_by_pair.items()}


def usual_methods(experiments: Sequence[Experiment]) -> list[str]:
    """The methods of the paper, by the experiments that stand beside its numbers, and those without
    an adapter: what is counted if none is named. conf/method has many more, which whoever compares
    them names."""
    names = {"none", "full"}
    for experiment in experiments:
        references = [table.reference for table in experiment.tables.values()]
        references += [figure.reference for figure in experiment.figures.values()]
        if any(references):
            names |= {method for block in experiment.blocks for method in block.method}
    return sorted(names)


def _line(cfg: Config) -> CountLine:
    from osora_bench.models.counting import count

    model, method = cfg.model.label, cfg.method
    try:
        return CountLine(model, method.label, method.rank, count(cfg), None)
    except UserError as error:
        return CountLine(model, method.label, method.rank, None, str(error))


def read_config_file(place: Path) -> dict[str, Any]:
    """What a hub-style config.json says of a model, in place of the model's own file.

    Raises:
        UserError: no such file, or one that is no model's configuration.
    """
    try:
        architecture = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{place}: {reason}") from error
    if not isinstance(architecture, dict) or "model_type" not in architecture:
        raise UserError(f"{place}: not a model's config.json (it has no model_type)")
    name = place.absolute().parent.name
    dtype = architecture.get("dtype", architecture.get("torch_dtype", "float32"))
    if dtype not in DTYPES:
        raise UserError(f"{place}: {unknown('dtype', str(dtype), DTYPES)}")
    return {"name": name, "label": name, "architecture": architecture, "dtype": dtype}
