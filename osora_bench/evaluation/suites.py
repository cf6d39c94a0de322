"""A suite's sets as OpenCompass configurations, loaded, and held against what the suite says."""

import importlib
import re
import tempfile
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import opencompass
from mmengine.config import Config, ConfigDict

from osora_bench.benchdata.overlap import Question
from osora_bench.benchdata.sets import checking
from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.evaluation import judging
from osora_bench.evaluation.reading.corrections import named
from osora_bench.evaluation.tasks import build_dataset, output_to, point_at_data, with_content
from osora_bench.planning.config import DatasetConfig, EvalConfig

PERPLEXITY = ("PPLInferencer", "LLInferencer", "PPLOnlyInferencer")
_BESIDE = re.compile(r"passage|(text|answer|sol|opt|only_option)?([A-J]|\d)")
"""Columns that OpenCompass's readers call a passage or an option."""


PreparedSets = Mapping[str, ConfigDict]
"""By set, its OpenCompass configuration, loaded and found to be what the suite says."""


@cache
def _shipped_configs() -> dict[str, Path]:
    root = Path(str(opencompass.__file__)).parent / "configs" / "datasets"
    return {p.stem: p for p in root.rglob("*.py")}


def dataset_config(dataset: DatasetConfig) -> ConfigDict:
    """The OpenCompass configuration that one entry of a suite names.

    Raises:
        UserError: no such configuration, or no dataset in it is called so.
    """
    reference = dataset.config
    if ":" in reference:
        datasets = _own_datasets(reference)
    else:
        if reference not in _shipped_configs():
            kind, shipped = "OpenCompass dataset configuration", _shipped_configs()
            suggestions = get_close_matches(reference, shipped, n=8) or shipped
            hint = f"(the nearest of {len(shipped)} in opencompass/configs/datasets)"
            raise UserError(f"{unknown(kind, reference, suggestions)} {hint}")
        shipped_config = Config.fromfile(
            str(_shipped_configs()[reference]), format_python_code=False
        )
        datasets = [
            d for key, value in shipped_config.items() if key.endswith("_datasets") for d in value
        ]
    by_abbr = {d["abbr"]: d for d in datasets}
    abbr = dataset.abbr or dataset.name
    if abbr not in by_abbr:
        raise UserError(f"{reference}: {unknown('dataset', abbr, by_abbr)}")
    config = ConfigDict(Config({"dataset": by_abbr[abbr]}).dataset)
    if dataset.max_out_len is not None:
        config.infer_cfg.inferencer.max_out_len = dataset.max_out_len
    return config


def _bounded(config: ConfigDict, dataset: DatasetConfig, suite: EvalConfig) -> ConfigDict:
    """The suite's `max_out_len` bounds what a configuration sets itself, OpenCompass would take it
    only where that sets nothing; and which questions are asked, if not all."""
    positions = suite.asked(dataset)
    if len(positions) < dataset.questions:
        config.reader_cfg.test_range = f"[0:{positions.stop}:{positions.step}]"
    inferencer = config.infer_cfg.inferencer
    if not by_perplexity(config):
        limit = inferencer.get("max_out_len", suite.max_out_len)
        inferencer.max_out_len = min(limit, suite.max_out_len)
    return config


def _own_datasets(reference: str) -> list[dict[str, Any]]:
    module, _, variable = reference.partition(":")
    try:
        datasets: list[dict[str, Any]] = getattr(importlib.import_module(module), variable)
    except (ImportError, AttributeError) as error:
        raise UserError(f"dataset configuration {reference}: {error}") from error
    return datasets


def prepare(suite: EvalConfig, runs: Path) -> PreparedSets:
    """Load every set of a suite, and hold its size and what its evaluator states against what the
    suite says.

    Raises:
        UserError: another number of questions than expected, which no score may hide, or no such
            metric.
    """
    point_at_data(runs)
    configs = {
        d.name: with_content(_bounded(dataset_config(d), d, suite), d.files) for d in suite.chosen
    }
    perplexity_sets = [name for name, config in configs.items() if by_perplexity(config)]
    if suite.backend == "vllm" and perplexity_sets:
        raise UserError(
            f"eval.backend=vllm answers by generation; {', '.join(perplexity_sets)}: perplexities "
            "need eval.backend=transformers"
        )
    with output_to(runs / "opencompass.log"):
        sizes = {d.name: _size(d, configs[d.name]) for d in suite.chosen}
    for dataset in suite.chosen:
        name, expected = dataset.name, len(suite.asked(dataset))
        if sizes[name] != expected:
            raise UserError(
                f"eval {suite.name}: {name} has {sizes[name]} questions, expected {expected}"
            )
    with output_to(runs / "opencompass.log"), tempfile.TemporaryDirectory(dir=runs) as work:
        for dataset in suite.chosen:
            name = dataset.name
            judging.check_metric(configs[name], Path(work) / name, dataset.metric)
    for name, config in configs.items():
        judging.check_references(config, name)
    return configs


def questions(config: ConfigDict) -> list[Question]:
    """Every question that is asked of a set, by what its prompt shows of it.

    The question's own are the columns that are neither an option nor a passage, all of them: of
    SIQA the question alone is one of a few. Where options are all there is, as sentences with a
    word filled in (WinoGrande by perplexity), each is the whole question.
    """
    columns = config.reader_cfg.input_columns
    names = [columns] if isinstance(columns, str) else list(columns)
    own = [name for name in names if not _BESIDE.fullmatch(name)]
    beside = [name for name in names if name not in own]
    result = []
    for row in build_dataset(config).test:
        if own:
            result.append(Question((_texts(row, own),), _texts(row, beside)))
        else:
            result.append(Question(tuple((text,) for text in _texts(row, beside))))
    return result


def _texts(row: Mapping[str, Any], columns: Iterable[str]) -> tuple[str, ...]:
    """Of columns, each a text or a list of them."""
    values = (row.get(column) for column in columns)
    return tuple(
        str(item)
        for value in values
        for item in (value if isinstance(value, list | tuple) else [value])
    )


def _size(dataset: DatasetConfig, config: ConfigDict) -> int:
    try:
        return len(build_dataset(config).test)
    except Exception as error:  # every one of OpenCompass's loaders raises its own
        files = ", ".join(str(paths.data_file(file)) for file in dataset.files)
        raise UserError(
            f"{dataset.name}: OpenCompass cannot read {files} ({type(error).__name__}: {error})"
            f"{checking(dataset.files)}"
        ) from error


def by_perplexity(config: ConfigDict) -> bool:
    return named(config.infer_cfg.inferencer.type) in PERPLEXITY
