"""SCALE=smoke: an experiment's rows and columns on tiny random models and made-up data.

Every cell keeps its model family, method, rank, task, suite and learning rate. The model shrinks
to one layer as wide as the experiment's largest rank, the data to a few made-up rows in the real
files' formats, training to one step, each set to one question. The results mean nothing; that they
come out shows that every row and column of the experiment runs.

Here is what changes in a configuration, and which files it names. A run id counts them by their
bytes, so cli/smoke.py writes them before the cells are planned.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osora_bench.benchdata.made_up import ROWS

HEAD = 64
"""Width of an attention head; a model is as many heads wide as the experiment's ranks need."""
RUNS = "runs/smoke"
SETTINGS = (
    "ledger=${runs}/ledger",
    "model.revision=null",
    "model.architecture=null",
    "model.dtype=float32",
    "model.needs_gpu=false",
    "trainer.max_steps=1",
    "trainer.batch_size=${trainer.processes}",
    "trainer.micro_batch_size=1",
    "trainer.precision=float32",
    "trainer.gradient_checkpointing=false",
    "task.max_length=64",
    "task.max_rows=2",
)


@dataclass(frozen=True)
class MadeUp:
    """What an experiment's smoke version reads: a data folder, and architectures by the folder of
    their random model."""

    data: Path
    models: dict[Path, dict[str, Any]]


def data_folder(overrides: Sequence[str]) -> Path:
    """The folder of the made-up data, below the runs folder that `overrides` name, or RUNS."""
    return _runs(overrides) / "data"


def tiny_model(
    model: Any, overrides: Sequence[str], rank: int
) -> tuple[Path, dict[str, Any]] | None:
    """The folder and the architecture of the relative of a composed `model` that `rank` fits.

    A model without an architecture in its file has none and is run as it is: the embedded one is
    tiny already.
    """
    if model.architecture is None:
        return None
    width = HEAD * -(-rank // HEAD)
    architecture = {
        **model.architecture,
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": width // HEAD,
        "num_key_value_heads": width // HEAD,
        "intermediate_size": width,
    }
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()[:8]
    return _runs(overrides) / "models" / f"{model.name}-{digest}", architecture


def _runs(overrides: Sequence[str]) -> Path:
    folders = [o.removeprefix("runs=") for o in overrides if o.startswith("runs=")]
    return Path(folders[-1] if folders else RUNS).absolute()


def _smaller(cfg: Any, overrides: Sequence[str], rank: int) -> list[str]:
    """What turns a composed cell into its smoke version, unless `overrides` set it."""
    extra = [f"runs={RUNS}", *SETTINGS]
    if cfg.task.validation_rows is not None:
        extra.append("task.validation_rows=2")
    if cfg.eval.limit is not None:  # each set has its own
        extra.append("eval.limit=null")
    if tiny := tiny_model(cfg.model, overrides, rank):
        extra.append(f"model.path={tiny[0]}")
    for index in range(len(cfg.eval.datasets)):
        extra += [f"eval.datasets.{index}.limit=1", f"eval.datasets.{index}.max_out_len=1"]
    for index, source in enumerate(cfg.task.sources):
        if not source.path.startswith("pkg://"):
            extra.append(f"task.sources.{index}.rows={ROWS}")
            extra += [f"task.sources.{index}.first={ROWS // 2}"] if source.first else []
            extra += [f"task.sources.{index}.exclude.rows={ROWS // 2}"] if source.exclude else []
    return extra


SCALES: dict[str, Callable[[Any, Sequence[str], int], list[str]]] = {
    "full": lambda cfg, overrides, rank: [],  # an experiment's own `full` says what that adds
    "smoke": _smaller,
}
"""By name, the overrides that a scale adds to a composed cell, given those added by hand and the
model's largest rank in the experiment."""
