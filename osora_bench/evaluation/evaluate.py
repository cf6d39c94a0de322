"""adapter -> scores: the only door to OpenCompass, in process, on the model in memory."""

import contextlib
import copy
import errno
import importlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import opencompass
import opencompass.tasks.openicl_eval as eval_task
import opencompass.tasks.openicl_infer as infer_task
from mmengine.config import Config, ConfigDict
from opencompass.utils import build_dataset_from_cfg, get_logger

from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.common.progress import say
from osora_bench.evaluation import judging
from osora_bench.evaluation.corrections import named
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.evaluation.journal import Journal, cannot_write
from osora_bench.evaluation.scores import Answer, collect, write
from osora_bench.evaluation.vllm_model import VllmModel
from osora_bench.models import base, weights
from osora_bench.planning.config import asked, chosen
from osora_bench.records.record import pack

JOURNAL = "journal.jsonl"
PERPLEXITY = ("PPLInferencer", "LLInferencer", "PPLOnlyInferencer")


@dataclass(frozen=True)
class Score:
    """One dataset's result: `k` of `n` questions right, of `questions` that the set has.

    `right` holds the verdict of each question (`record.pack`). `unread` are the outputs in which
    the post-processor found no answer; `too_long`, among them, those of questions with a prompt
    that leaves no room in the model's context, which are not asked. `corrected` is the score
    without a known mistake of the post-processor (corrections.py), where there is one; the headline
    stays OpenCompass's.
    """

    k: int
    n: int
    questions: int
    accuracy: float
    right: str
    unread: int
    too_long: int
    corrected: dict[str, Any] | None


@cache
def _shipped_configs() -> dict[str, Path]:
    root = Path(str(opencompass.__file__)).parent / "configs" / "datasets"
    return {p.stem: p for p in root.rglob("*.py")}


def dataset_config(dataset: dict[str, Any]) -> ConfigDict:
    """The OpenCompass configuration that one entry of a suite names.

    Raises:
        UserError: no such configuration, or no dataset in it is called so.
    """
    reference = dataset["config"]
    if ":" in reference:
        listed = _own_datasets(reference)
    else:
        if reference not in _shipped_configs():
            kind, shipped = "OpenCompass dataset configuration", _shipped_configs()
            near = get_close_matches(reference, shipped, n=8) or shipped
            hint = f"(the nearest of {len(shipped)} in opencompass/configs/datasets)"
            raise UserError(f"{unknown(kind, reference, near)} {hint}")
        loaded = Config.fromfile(str(_shipped_configs()[reference]), format_python_code=False)
        listed = [d for key, value in loaded.items() if key.endswith("_datasets") for d in value]
    named = {d["abbr"]: d for d in listed}
    abbr = dataset["abbr"] or dataset["name"]
    if abbr not in named:
        raise UserError(f"{reference}: {unknown('dataset', abbr, named)}")
    config = ConfigDict(Config({"dataset": named[abbr]}).dataset)
    if dataset["max_out_len"] is not None:
        config.infer_cfg.inferencer.max_out_len = dataset["max_out_len"]
    return config


def _bounded(config: ConfigDict, dataset: dict[str, Any], suite: dict[str, Any]) -> ConfigDict:
    """The suite's `max_out_len` bounds what a configuration sets itself, OpenCompass would take it
    only where that sets nothing; and which questions are asked, if not all."""
    positions = asked(suite, dataset)
    if len(positions) < dataset["questions"]:
        config.reader_cfg.test_range = f"[0:{positions.stop}:{positions.step}]"
    inferencer = config.infer_cfg.inferencer
    if not _by_perplexity(config):
        own = inferencer.get("max_out_len", suite["max_out_len"])
        inferencer.max_out_len = min(own, suite["max_out_len"])
    return config


def _own_datasets(reference: str) -> list[dict[str, Any]]:
    module, _, variable = reference.partition(":")
    try:
        listed: list[dict[str, Any]] = getattr(importlib.import_module(module), variable)
    except (ImportError, AttributeError) as error:
        raise UserError(f"dataset configuration {reference}: {error}") from error
    return listed


_prepared: dict[str, dict[str, ConfigDict]] = {}


def prepare(suite: dict[str, Any], runs: Path) -> dict[str, ConfigDict]:
    """Load every dataset of a suite once a process, and hold its size and what its evaluator states
    against what the suite says.

    Raises:
        UserError: another number of questions than expected, which no score may hide, or no such
            metric.
    """
    key = json.dumps([suite, str(paths.data_root())], sort_keys=True)
    if key not in _prepared:
        _prepared[key] = _prepare(suite, runs)
    return _prepared[key]


def _prepare(suite: dict[str, Any], runs: Path) -> dict[str, ConfigDict]:
    _point_at_data(runs)
    configs = {d["name"]: _bounded(dataset_config(d), d, suite) for d in chosen(suite)}
    scored = [name for name, config in configs.items() if _by_perplexity(config)]
    if suite["backend"] == "vllm" and scored:
        raise UserError(
            f"eval.backend=vllm answers by generation; {', '.join(scored)}: perplexities need "
            "eval.backend=transformers"
        )
    with _quiet(runs / "opencompass.log"):
        sizes = {d["name"]: _size(d, configs[d["name"]]) for d in chosen(suite)}
    for dataset in chosen(suite):
        name, expected = dataset["name"], len(asked(suite, dataset))
        if sizes[name] != expected:
            raise UserError(
                f"eval {suite['name']}: {name} has {sizes[name]} questions, expected {expected}"
            )
    with _quiet(runs / "opencompass.log"), tempfile.TemporaryDirectory(dir=runs) as work:
        for dataset in chosen(suite):
            name = dataset["name"]
            judging.check(configs[name], Path(work) / name, dataset["metric"])
    return configs


def _size(dataset: dict[str, Any], config: ConfigDict) -> int:
    try:
        return len(_build(config).test)
    except Exception as error:  # every one of OpenCompass's loaders raises its own
        files = ", ".join(str(paths.data_file(file)) for file in dataset["files"])
        raise UserError(
            f"{dataset['name']}: OpenCompass cannot read {files} ({type(error).__name__}: {error})"
            "; `osora-bench data verify` checks the files"
        ) from error


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
        folder: where answers are kept: as they come, so that an evaluation that dies goes on where
            it stopped, until `forget`; and compressed, set by set.
    """
    suite = cfg["eval"]
    configs = prepare(suite, Path(cfg["runs"]))
    was_training = model.training
    model.eval()
    with (
        _merged(model, suite["merge"]),
        Journal(folder / JOURNAL, base.content(model)) as journal,
    ):
        wrapped = _wrapped(model, tokenizer, cfg, folder, label=label, journal=journal)
        scores = {
            dataset["name"]: _evaluate(wrapped, dataset, configs[dataset["name"]], cfg, folder)
            for dataset in chosen(suite)
        }
    model.train(was_training)
    return scores


def forget(folder: Path) -> None:
    """Remove the answers that were kept as they came, once the scores are safe on disk."""
    (folder / JOURNAL).unlink(missing_ok=True)


def not_run(suite: dict[str, Any], scores: dict[str, Score]) -> dict[str, str]:
    """By set, what was asked for by the suite's name and is not in the scores."""
    told: dict[str, list[str]] = {}
    for dataset in suite["datasets"]:
        score = scores.get(dataset["name"])
        if score is None:
            told[dataset["name"]] = ["left out by eval.without"]
            continue
        told[dataset["name"]] = reasons = []
        if score.n < score.questions:
            reasons.append(f"{score.questions - score.n} of {score.questions} questions: limited")
        if score.too_long:
            reasons.append(f"{score.too_long} prompts: longer than the model's context")
    return {name: "; ".join(reasons) for name, reasons in told.items() if reasons}


def _wrapped(
    model: Any, tokenizer: Any, cfg: dict[str, Any], folder: Path, **settings: Any
) -> InMemoryModel:
    """The model as OpenCompass sees it, by the backend that the suite names."""
    settings |= {"chat": cfg["model"]["chat"], "batch_size": cfg["eval"]["batch_size"]}
    if cfg["eval"]["backend"] == "transformers":
        made = InMemoryModel(model, tokenizer, **settings)
        if not made.batched:
            say(f"WARNING: {settings['label']}: answered one prompt at a time (docs/evaluation.md)")
        return made
    method = cfg["method"]
    return VllmModel(
        model,
        tokenizer,
        source=weights.location(cfg["model"]),
        untouched=method["start"] is None and not method["full"],
        folder=folder / "exported",
        **settings,
    )


def _evaluate(
    model: InMemoryModel,
    dataset: dict[str, Any],
    config: ConfigDict,
    cfg: dict[str, Any],
    folder: Path,
) -> Score:
    model.asking = f", {dataset['name']}"
    # as OpenCompass does, perplexities are of plain text, also with a chat model
    model.dialogues = cfg["model"]["chat"] and not _by_perplexity(config)
    model.too_long.clear()
    metric = dataset["metric"]
    with _full_disk_told(folder), _quiet(folder / "opencompass.log"), _work(folder) as work:
        made = _run(model, config, cfg["eval"]["max_out_len"], work)
        result = judging.judge(config, work, metric)
        found = collect(result, made)
        right = [answer.right for answer in found]
        corrected = judging.corrected(config, right, made, work, metric)
        write(found, folder / "answers" / f"{dataset['name']}.jsonl.gz")
    if model.too_long:
        say(
            f"WARNING: {dataset['name']}: {len(model.too_long)} of {len(found)} prompts do not fit "
            f"the model's context of {model.max_seq_len} tokens"
        )
    return _score(result, found, dataset, len(model.too_long), corrected)


def _by_perplexity(config: ConfigDict) -> bool:
    return named(config.infer_cfg.inferencer.type) in PERPLEXITY


@contextlib.contextmanager
def _merged(model: Any, merge: bool) -> Iterator[None]:
    """Merge the adapter into the base weights for a while, if that is asked for."""
    if not merge or not hasattr(model, "peft_config"):
        yield
        return
    try:
        model.merge_adapter()
    except (AttributeError, NotImplementedError) as error:
        raise UserError(f"eval.merge: this kind of adapter cannot be merged ({error})") from error
    try:
        yield
    finally:
        model.unmerge_adapter()


@contextlib.contextmanager
def _work(folder: Path) -> Iterator[Path]:
    """An empty folder for OpenCompass's own files, which repeat every prompt several times."""
    work = folder / "opencompass"
    shutil.rmtree(work, ignore_errors=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """OpenCompass's own files grow beside the journal, and its errors do not name them."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise cannot_write(folder, error) from error


def _run(model: InMemoryModel, config: ConfigDict, max_out_len: int, work: Path) -> dict[str, Any]:
    """OpenCompass's own inference on one dataset: its predictions file."""
    config = copy.deepcopy(config)
    # its own place for predictions; the default is a folder in the current directory
    config.infer_cfg.inferencer.output_json_filepath = str(work / "unnamed")
    # one call gets all questions, so that the model can batch by length, and a place in it is one
    # in the set; a configuration's own size would win over the task's
    config.infer_cfg.inferencer.batch_size = 1 << 30
    task = infer_task.OpenICLInferTask(judging.task(config, work, {"max_out_len": max_out_len}))
    task.run(cur_model=model, cur_model_abbr="cell")
    made = judging.predictions(config, work)
    if _by_perplexity(config) and model.too_long:
        # the inferencer would take the first label: losses that were not asked for are alike
        for index in model.too_long:
            made[str(index)]["prediction"] = ""
        judging.rewrite(made, config, work)
    return made


def _score(
    result: dict[str, Any],
    found: list[Answer],
    dataset: dict[str, Any],
    too_long: int,
    corrected: dict[str, Any] | None,
) -> Score:
    """A result file as a score; its verdicts must add up to the accuracy that it states."""
    metric = dataset["metric"]
    verdicts = [answer.right for answer in found]
    k, n = sum(verdicts), len(verdicts)
    stated = result[metric]
    if abs(100 * k / n - stated) > 1e-6 and stated != round(100 * k / n, 2):  # some round it
        raise UserError(f"{dataset['name']}: OpenCompass says {stated}, its verdicts say {k}/{n}")
    return Score(
        k=k,
        n=n,
        questions=dataset["questions"],
        accuracy=float(result[metric]),
        right=pack(verdicts),
        unread=sum(answer.read is None for answer in found),
        too_long=too_long,
        corrected=corrected,
    )
