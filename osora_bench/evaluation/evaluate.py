"""adapter -> scores: the only door to OpenCompass, in process, on the model in memory."""

import contextlib
import copy
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import opencompass.tasks.openicl_infer as infer_task
from mmengine.config import ConfigDict
from peft.helpers import DoraCaching
from peft.tuners.lora import LoraLayer

from osora_bench.common.progress import say
from osora_bench.evaluation import judging, tasks
from osora_bench.evaluation.answering import answerer
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.evaluation.journal import Journal, cannot_write
from osora_bench.evaluation.scores import Score, score_of, write_answers
from osora_bench.evaluation.suites import PreparedSets, by_perplexity
from osora_bench.evaluation.tasks import build_dataset, output_to
from osora_bench.evaluation.vllm_model import VllmModel
from osora_bench.models import memory, merging
from osora_bench.planning.blank import location
from osora_bench.planning.config import Config, DatasetConfig

JOURNAL = "journal.jsonl"


infer_task.build_dataset_from_cfg = build_dataset


def evaluate(
    model: Any, tokenizer: Any, cfg: Config, sets: PreparedSets, folder: Path, *, label: str
) -> dict[str, Score]:
    """Score a model on every dataset of the cell's suite.

    Args:
        model: a transformers or PEFT model, with its adapter active.
        sets: of the suite (`suites.prepare`).
        folder: where answers are kept: as they come, so that an evaluation that dies goes on where
            it stopped, until `forget`; and compressed, set by set.
    """
    suite = cfg.eval
    with (
        _evaluating(model),
        _merged(model, suite.merge),
        Journal(folder / JOURNAL, answerer(model, tokenizer, cfg)) as journal,
    ):
        wrapped = _wrapped(model, tokenizer, cfg, folder, label=label, journal=journal)
        return {
            dataset.name: _evaluate(wrapped, dataset, sets[dataset.name], cfg, folder)
            for dataset in suite.chosen
        }


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """In evaluation mode, in which PEFT's DoRA computes B A and its norms once, if there is memory
    to keep them in.

    Without, it does so in every forward pass, one a token: as much as the pass itself.
    """
    was_training = model.training
    room = memory.for_batches(next(model.parameters()).device) // 2
    model.train()  # which forgets what was computed of other weights
    model.eval()
    try:
        with DoraCaching(enabled=_products(model) <= room):
            yield
    finally:
        model.train()  # and frees it
        model.train(was_training)


def _products(model: Any) -> int:
    """Bytes of B A, whole, of all weights that DoRA adapts."""
    return sum(
        layer.in_features * layer.out_features * magnitude.weight.element_size()
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for magnitude in layer.lora_magnitude_vector.values()
    )


def forget(folder: Path) -> None:
    """Remove the answers that were kept as they came, once the scores are safe on disk."""
    (folder / JOURNAL).unlink(missing_ok=True)


def _wrapped(
    model: Any, tokenizer: Any, cfg: Config, folder: Path, **settings: Any
) -> InMemoryModel:
    """The model as OpenCompass sees it, by the backend that the suite names."""
    settings |= {"chat": cfg.model.chat, "batch_size": cfg.eval.batch_size}
    if cfg.eval.backend == "transformers":
        wrapped = InMemoryModel(model, tokenizer, **settings)
        if not wrapped.batched:
            say(f"WARNING: {settings['label']}: answered one prompt at a time (docs/evaluation.md)")
        return wrapped
    method = cfg.method
    return VllmModel(
        model,
        tokenizer,
        source=location(cfg.model),
        untouched=method.start is None and not method.full,
        folder=folder / "exported",
        **settings,
    )


def _evaluate(
    model: InMemoryModel,
    dataset: DatasetConfig,
    config: ConfigDict,
    cfg: Config,
    folder: Path,
) -> Score:
    model.asking = f", {dataset.name}"
    # as OpenCompass does, perplexities are of plain text, also with a chat model
    model.dialogues = cfg.model.chat and not by_perplexity(config)
    model.too_long.clear()
    model.cut.clear()
    model.ahead.clear()
    metric, name = dataset.metric, dataset.name
    with _full_disk_told(folder), output_to(folder / "opencompass.log"), _work(folder) as work:
        _run(model, config, cfg.eval.max_out_len, work)
        judged = judging.judged(config, work, metric, cut=model.cut, too_long=model.too_long)
        write_answers(judged.answers, folder / "answers" / f"{name}.jsonl.gz")
    score = score_of(judged.result, judged.answers, dataset, len(model.too_long), judged.corrected)
    _warn(score, name, model.max_seq_len)
    return score


def _warn(score: Score, name: str, context: int) -> None:
    """Say what makes a score less than it seems."""
    counts = {
        f"prompts do not fit the model's context of {context} tokens": score.too_long,
        "answers were cut at the length limit": score.cut,
        "answers have no verdict in time: they count as wrong": score.unjudged,
    }
    for message, count in counts.items():
        if count:
            say(f"WARNING: {name}: {count} of {score.n} {message}")


@contextlib.contextmanager
def _merged(model: Any, merge: bool) -> Iterator[None]:
    """Merge the adapter into the base weights for a while, if that is asked for."""
    if not merge or not hasattr(model, "peft_config"):
        yield
        return
    merging.merge(model)
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

    def run(folder: Path) -> None:
        settings = {"max_out_len": max_out_len}
        # the task writes into its configuration
        task = infer_task.OpenICLInferTask(tasks.task(copy.deepcopy(config), folder, settings))
        task.run(cur_model=model, cur_model_abbr="cell")

    if by_perplexity(config):
        model.look_ahead(lambda: run(work / "dry"))
    run(work)
    predictions = tasks.predictions(config, work)
    if by_perplexity(config) and model.too_long:
        # the inferencer would take the first label: losses that were not asked for are alike
        for index in model.too_long:
            predictions[str(index)]["prediction"] = ""
        tasks.rewrite(predictions, config, work)
    return predictions
