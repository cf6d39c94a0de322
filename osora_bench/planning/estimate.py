"""Hours and memory that a cell is expected to take: from records of its like, else from its size.

An estimate is not a measurement and never enters a record. Imports no torch.
"""

import functools
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from osora_bench.common import paths
from osora_bench.common.allowance import OURS, Allowance
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import (
    Config,
    DatasetConfig,
    EvalConfig,
    ModelConfig,
    TaskConfig,
    plain,
)

GPU_RATE = 0.4 * 989e12
"""Operations a second where a model needs a GPU: 40 % of an H100's bfloat16 peak, assumed."""
TOKENS_A_CHARACTER = 0.25
QUESTION_TOKENS, SHOT_TOKENS, ANSWER_TOKENS = 100, 150, 150
"""Of a question, a worked example and an answer, where nothing better is known."""
LIBRARIES = 1.5e9
"""Bytes of the process without any model."""
QUANTISED_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
"""A weight; in 4 bits with one float32 scale for each 64 of them."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SAMPLED_ROWS = 200


@dataclass(frozen=True)
class Estimate:
    """Hours and gigabytes (1e9) of a cell, whether they come from records of its like, and the
    hours of its training alone."""

    hours: float
    gigabytes: float
    measured: bool
    training: float

    def __str__(self) -> str:
        source = "as before" if self.measured else "estimated"
        return f"~{duration(self.hours)}, {self.gigabytes:.1f} GB {source}"


def duration(hours: float) -> str:
    """`40 s`, `12 min`, `1.3 h` or `25 h`."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


@dataclass(frozen=True)
class Part:
    """Medians of what the training or the evaluation of cells took that have it in common."""

    hours: float
    gigabytes: float


Known = dict[str, Part]
"""By `_training` or `_evaluation` of a configuration."""


def _training(cfg: Config) -> str:
    """What trainings that cost about the same have in common: all but method, rank, rate, seed."""
    trainer = {
        key: value
        for key, value in plain(cfg.trainer).items()
        if key not in ("learning_rate", "schedule")
    }
    row_counts = [source.rows for source in cfg.task.sources] + [cfg.task.max_rows]
    parts = [*_model(cfg), cfg.method.full, row_counts, cfg.task.loss_on, trainer]
    return json.dumps(parts, sort_keys=True)


def _evaluation(cfg: Config) -> str:
    """What evaluations that cost about the same have in common."""
    sets = [(d.name, d.config, len(cfg.eval.asked(d)), d.max_out_len) for d in cfg.eval.chosen]
    return json.dumps([*_model(cfg), sets, cfg.eval.max_out_len], sort_keys=True)


def _model(cfg: Config) -> tuple[str, ...]:
    model = cfg.model
    return (model.name, model.dtype, *([model.quantization] if model.quantization else []))


def measured(records: Iterable[Mapping[str, Any]]) -> Known:
    """What the trainings and the evaluations of records took."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        cost, cfg = record["measured"], Config.of(record["config"])
        seconds, gigabytes = cost["seconds"], cost["peak_memory_mb"] * 2**20 / 1e9
        if not seconds:  # it stopped before its end
            continue
        other_seconds = seconds["total"] - seconds["train"]
        groups.setdefault(_evaluation(cfg), []).append((other_seconds / 3600, gigabytes))
        if cfg.trains:
            groups.setdefault(_training(cfg), []).append((seconds["train"] / 3600, gigabytes))
    return {
        key: Part(*(statistics.median(values) for values in zip(*costs, strict=True)))
        for key, costs in groups.items()
    }


def estimate_of(cell: Cell, medians: Known) -> Estimate | None:
    """A cell's estimate: its training and its evaluation each as before, or by its size; None for
    an architecture whose size is not known here."""
    cfg = cell.config
    training = medians.get(_training(cfg)) if cfg.trains else Part(0.0, 0.0)
    evaluation = medians.get(_evaluation(cfg))
    from_records = training is not None and evaluation is not None
    if training is None or evaluation is None:
        by_size = _by_size(cfg)
        if by_size is None:
            return None
        training, evaluation = training or by_size[0], evaluation or by_size[1]
    gigabytes = max(training.gigabytes, evaluation.gigabytes)
    return Estimate(training.hours + evaluation.hours, gigabytes, from_records, training.hours)


def over_memory(
    costs: Iterable[tuple[Cell, Estimate | None]], allowance: Allowance = OURS
) -> list[str]:
    """What to say of cells that are expected to need more memory than the process's control groups
    let it have; of the one that needs most. Cells on a GPU need its memory, which is another."""
    limit = allowance.memory_limit() / 1e9
    larger = [
        (cost.gigabytes, cell)
        for cell, cost in costs
        if cost is not None and cost.gigabytes > limit and not _on_gpu(cell.config)
    ]
    if not larger:
        return []
    most, cell = max(larger, key=lambda entry: entry[0])
    return [
        f"{len(larger)} cells are expected to need more memory than a process may use here, "
        f"{limit:.1f} GB (limit of its control group): {cell.label} {most:.1f} GB"
    ]


def _on_gpu(cfg: Config) -> bool:
    """Whether a cell is taken to run on a GPU; on a CPU a large model does where that is asked."""
    return bool(cfg.model.needs_gpu) and cfg.device != "cpu"


def _by_size(cfg: Config) -> tuple[Part, Part] | None:
    """Training and evaluation of a model whose architecture is known, by its operations."""
    shape = _shape(cfg.model)
    if shape is None:
        return None
    size, rate = parameters(shape), _rate(_on_gpu(cfg))
    training = _training_operations(cfg, size) if cfg.trains else 0.0
    tokens = sum(_tokens(d, cfg.eval) for d in cfg.eval.chosen)
    evaluation_bytes = _weight_bytes(cfg.model, shape, size) + LIBRARIES
    return (
        Part(training / cfg.processes / rate / 3600, _bytes(cfg, shape, size) / 1e9),
        Part(2 * size * tokens / rate / 3600, evaluation_bytes / 1e9),
    )


def precision(suite: EvalConfig) -> tuple[int, float]:
    """How many questions a suite asks, and the standard error of its Avg. in points, for want of
    questions alone and where it is largest: with one half of each set right."""
    counts = [len(suite.asked(d)) for d in suite.chosen]
    if not counts:
        return 0, 0.0
    variance = sum(0.25 / n for n in counts) / len(counts) ** 2
    return sum(counts), 100 * math.sqrt(variance)


def _shape(model: ModelConfig) -> dict[str, Any] | None:
    shape = model.architecture
    if shape is None:
        place = paths.resolve(model.path)
        file = None if place is None else place / "config.json"
        if file is None or not file.is_file():
            return None
        shape = json.loads(file.read_text(encoding="utf-8"))
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return shape if all(key in shape for key in (*keys, "vocab_size")) else None


def parameters(shape: dict[str, Any]) -> float:
    """Of a Llama-like model; exact but for norms and biases."""
    hidden = shape["hidden_size"]
    head = shape.get("head_dim") or hidden // shape["num_attention_heads"]
    groups = shape.get("num_key_value_heads") or shape["num_attention_heads"]
    attention = 2 * hidden * head * (shape["num_attention_heads"] + groups)
    layer = attention + 3 * hidden * shape["intermediate_size"]
    embeddings = 1 if shape.get("tie_word_embeddings") else 2
    return float(layer * shape["num_hidden_layers"] + embeddings * hidden * shape["vocab_size"])


def _weight_bytes(model: ModelConfig, shape: dict[str, Any], size: float) -> float:
    """Of a model's weights. Embeddings and the output layer are not quantised."""
    if model.quantization is None:
        return BYTES[model.dtype] * size
    tables = 1 if shape.get("tie_word_embeddings") else 2
    whole = float(tables * shape["hidden_size"] * shape["vocab_size"])
    return QUANTISED_BYTES[model.quantization] * (size - whole) + BYTES[model.dtype] * whole


def _training_operations(cfg: Config, size: float) -> float:
    """Forward, backward to the activations, the forward pass again where it is recomputed, and
    the weights' gradients where all are trained."""
    trainer, task = cfg.trainer, cfg.task
    row_count = sum(s.first or s.rows for s in task.sources)
    row_count = row_count if task.max_rows is None else min(row_count, task.max_rows)
    steps = trainer.max_steps or math.ceil(row_count * trainer.epochs / trainer.batch_size)
    tokens = steps * trainer.batch_size * _row_tokens(task)
    passes = 4 + 2 * trainer.gradient_checkpointing + 2 * cfg.method.full
    return float(passes * size * tokens)


def _row_tokens(task: TaskConfig) -> float:
    longest = float(task.max_length)
    return min(longest, _sampled_tokens(task.sources[0].path) or longest / 2)


@functools.cache
def _sampled_tokens(path: str) -> float | None:
    """Mean tokens of a training row, by the characters of the first rows; None without the file."""
    place = paths.data_file(path)
    if place.suffix != ".jsonl" or not place.is_file():
        return None
    with place.open(encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(SAMPLED_ROWS), strict=False)]
    return TOKENS_A_CHARACTER * statistics.mean(map(len, lines)) if lines else None


def _tokens(dataset: DatasetConfig, suite: EvalConfig) -> float:
    questions = len(suite.asked(dataset))
    if "_ppl_" in dataset.config:
        return float(questions * QUESTION_TOKENS)  # its options included: it is read once
    answer = min(ANSWER_TOKENS, dataset.max_out_len or suite.max_out_len)
    return float(questions * (QUESTION_TOKENS + SHOT_TOKENS * (dataset.shots or 0) + answer))


def _bytes(cfg: Config, shape: dict[str, Any], size: float) -> float:
    """Weights, gradients and optimiser of what is trained, activations of one micro-batch; where
    processes share the training, of the process that needs most: one evaluates the whole model."""
    trainer = cfg.trainer
    state = 12 * size if cfg.method.full else 0.0
    tensors = 2 if trainer.gradient_checkpointing else 16  # tensors of (tokens, hidden) a layer
    tokens = trainer.micro_batch_size * cfg.task.max_length * cfg.trains
    activations = (
        tokens
        * 4
        * (tensors * shape["hidden_size"] * shape["num_hidden_layers"] + 2 * shape["vocab_size"])
    )
    weights = _weight_bytes(cfg.model, shape, size)
    return float(max(weights, (weights + state) / cfg.processes + activations) + LIBRARIES)


@functools.cache
def _rate(gpu: bool) -> float:
    """Operations a second: assumed for a GPU, measured on this machine's processor."""
    if gpu:
        return GPU_RATE
    size, best = 768, math.inf
    matrix = np.ones((size, size), dtype=np.float32)
    for _ in range(3):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    efficiency = 0.5  # a whole model beside one large product, as measured with SmolLM2
    return efficiency * 2 * size**3 / best
