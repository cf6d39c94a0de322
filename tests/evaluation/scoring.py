"""A model scored on a configuration's suite, as a session or the command does it."""

from pathlib import Path
from typing import Any

from osora_bench.evaluation import evaluate, suites
from osora_bench.evaluation.scores import Score
from osora_bench.planning.config import Config


def scored(model: Any, tokenizer: Any, cfg: Config, folder: Path, label: str) -> dict[str, Score]:
    """The scores of every set, which are loaded first."""
    sets = suites.prepare(cfg.eval, Path(cfg.runs))
    return evaluate.evaluate(model, tokenizer, cfg, sets, folder, label=label)
