"""adapter -> scores: the only door to OpenCompass, in process, on the model in memory."""

import contextlib
import copy
import importlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import opencompass
import opencompass.tasks.openicl_eval as eval_task
import opencompass.tasks.openicl_infer as infer_task
from mmengine.config import Config, ConfigDict
from opencompass.utils import build_dataset_from_cfg, get_logger

from osora_bench import paths
from osora_bench.errors import UserError, unknown
from osora_bench.opencompass_model import InMemoryModel
from osora_bench.record import pack

METRIC = "accuracy"


@dataclass(frozen=True)
class Score:
    """One dataset's result: `k` of `n` questions right, of `questions` that the set has."""

    k: int
    n: int
    questions: int
    accuracy: float
    right: str


@cache
def _shipped_configs() -> dict[str, Path]:
    root = Path(str(opencompass.__file__)).parent / "configs" / "datasets"
    return {p.stem: p for p in root.rglob("*.py")}


def dataset_config(dataset: dict[str, Any]) -> ConfigDict:
    """The OpenCompass configuration that one entry of a suite names.

    Raises:
        UserError: no such configuration, or none in it is called `dataset["name"]`.
    """
    reference = dataset["config"]
    if ":" in reference:
        listed = _own_datasets(reference)
    else:
        if reference not in _shipped_configs():
            raise UserError(
                unknown("OpenCompass dataset configuration", reference, _shipped_configs())
            )
        loaded = Config.fromfile(str(_shipped_configs()[reference]), format_python_code=False)
        listed = [d for key, value in loaded.items() if key.endswith("_datasets") for d in value]
    named = {d["abbr"]: d for d in listed}
    if dataset["name"] not in named:
        raise UserError(f"{reference}: {unknown('dataset', dataset['name'], named)}")
    config = ConfigDict(Config({"dataset": named[dataset["name"]]}).dataset)
    if dataset["max_out_len"] is not None:
        config.infer_cfg.inferencer.max_out_len = dataset["max_out_len"]
    if dataset["limit"] is not None:
        config.reader_cfg.test_range = f"[0:{dataset['limit']}]"
    return config


def _own_datasets(reference: str) -> list[dict[str, Any]]:
    module, _, variable = reference.partition(":")
    try:
        listed: list[dict[str, Any]] = getattr(importlib.import_module(module), variable)
    except (ImportError, AttributeError) as error:
        raise UserError(f"dataset configuration {reference}: {error}") from error
    return listed


def prepare(suite: dict[str, Any], runs: Path) -> dict[str, ConfigDict]:
    """Load every dataset of a suite once and hold its size against what the suite says.

    Raises:
        UserError: another number of questions than expected, which no score may hide.
    """
    _point_at_data(runs)
    configs = {d["name"]: dataset_config(d) for d in suite["datasets"]}
    with _quiet(runs / "opencompass.log"):
        sizes = {name: len(_build(config).test) for name, config in configs.items()}
    for dataset in suite["datasets"]:
        name, expected = dataset["name"], dataset["questions"]
        expected = expected if dataset["limit"] is None else min(expected, dataset["limit"])
        if sizes[name] != expected:
            raise UserError(
                f"eval {suite['name']}: {name} has {sizes[name]} questions, expected {expected}"
            )
    return configs


def _point_at_data(runs: Path) -> None:
    """OpenCompass reads `$COMPASS_DATA_CACHE/data/...`: give it a folder that links to ours."""
    cache_dir = runs.absolute() / "opencompass-data"
    cache_dir.mkdir(parents=True, exist_ok=True)
    link = cache_dir / "data"
    if link.is_symlink() and link.readlink() != paths.data_root():
        link.unlink()
    with contextlib.suppress(FileExistsError):  # another process linked it just now
        link.symlink_to(paths.data_root())
    os.environ["COMPASS_DATA_CACHE"] = str(cache_dir)


_built: dict[str, Any] = {}


def _build(config: ConfigDict) -> Any:
    """OpenCompass's dataset object; its tasks ask for the same one for every cell, twice."""
    what = {k: v for k, v in config.items() if k not in ("infer_cfg", "eval_cfg")}
    key = json.dumps([what, str(paths.data_root())], sort_keys=True, default=str)
    if key not in _built:
        _built[key] = build_dataset_from_cfg(config)
    return _built[key]


infer_task.build_dataset_from_cfg = _build
eval_task.build_dataset_from_cfg = _build


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Send what OpenCompass and datasets print to a log file beside the run."""
    log.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    get_logger().setLevel(logging.WARNING)
    for name in list(logging.root.manager.loggerDict):  # these keep a handle of the terminal
        if name.startswith(("opencompass", "datasets")):
            logging.getLogger(name).setLevel(logging.ERROR)
    with (
        log.open("a", encoding="utf-8") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        yield


def evaluate(
    model: Any, tokenizer: Any, cfg: dict[str, Any], folder: Path, label: str
) -> dict[str, Score]:
    """Score a model on every dataset of the cell's suite.

    Args:
        model: a transformers or PEFT model, with its adapter active.
        folder: where OpenCompass's predictions and results go; emptied first, since predictions
            of another adapter would be taken for this one's.
    """
    suite = cfg["eval"]
    configs = prepare(suite, Path(cfg["runs"]))
    shutil.rmtree(folder, ignore_errors=True)
    wrapped = InMemoryModel(
        model,
        tokenizer,
        chat=cfg["model"]["chat"],
        batch_tokens=suite["batch_tokens"],
        label=label,
    )
    was_training = model.training
    model.eval()
    scores = {}
    for dataset in suite["datasets"]:
        with _quiet(folder / "opencompass.log"):
            result = _run(wrapped, configs[dataset["name"]], suite["max_out_len"], folder)
        scores[dataset["name"]] = _score(result, dataset)
    model.train(was_training)
    return scores


def _run(
    model: InMemoryModel, config: ConfigDict, max_out_len: int, folder: Path
) -> dict[str, Any]:
    """OpenCompass's own inference and evaluation tasks on one dataset; its result file."""
    config = copy.deepcopy(config)
    # its own place for predictions; the default is a folder in the current directory
    config.infer_cfg.inferencer.output_json_filepath = str(folder / "predictions")
    every_question = 1 << 30  # one call gets them all, so that the model can batch by length
    task = Config(
        {
            "models": [
                {
                    "type": "InMemoryModel",
                    "abbr": "cell",
                    "max_out_len": max_out_len,
                    "batch_size": every_question,
                    "run_cfg": {"num_gpus": 0},
                }
            ],
            "datasets": [[config]],
            "work_dir": str(folder),
            "eval": {"runner": {"task": {"dump_details": True}}},
        }
    )
    infer_task.OpenICLInferTask(task).run(cur_model=model, cur_model_abbr="cell")
    eval_task.OpenICLEvalTask(task).run()
    written = folder / "results" / "cell" / f"{config['abbr']}.json"
    result: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    return result


def _score(result: dict[str, Any], dataset: dict[str, Any]) -> Score:
    """A result file as a score; its verdicts must add up to the accuracy that it states."""
    if METRIC not in result:
        raise RuntimeError(f"{dataset['name']}: OpenCompass returned no {METRIC}: {result}")
    verdicts = _verdicts(result["details"])
    k, n = sum(verdicts), len(verdicts)
    if abs(100 * k / n - result[METRIC]) > 1e-6:
        raise RuntimeError(
            f"{dataset['name']}: OpenCompass says {result[METRIC]}, its verdicts say {k}/{n}"
        )
    return Score(k, n, dataset["questions"], float(result[METRIC]), pack(verdicts))


def _verdicts(details: Any) -> list[bool]:
    """Right or wrong for each question in order, from any of OpenCompass's forms of details."""
    if isinstance(details, dict):
        entries = [details[key] for key in sorted((k for k in details if k.isdigit()), key=int)]
    else:
        entries = details
    return [_verdict(entry) for entry in entries]


def _verdict(entry: dict[str, Any]) -> bool:
    for key in ("correct", "is_correct"):
        if key in entry:
            value = entry[key]
            return bool(value[0] if isinstance(value, list) else value)
    return str(entry["predictions"]) == str(entry["references"])
