"""Answers from anywhere, judged as those of a cell are: no model is needed."""

import copy
import gzip
import json
import tempfile
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path

from osora_bench.common.errors import UserError, unknown
from osora_bench.evaluation import checks, suites
from osora_bench.evaluation.judging import Judged, judged
from osora_bench.evaluation.tasks import output_to, rewrite
from osora_bench.planning.config import DatasetConfig, EvalConfig


def set_of(suite: EvalConfig, name: str) -> DatasetConfig:
    """A set of a suite that generates its answers.

    Raises:
        UserError: there is none of this name, or it is scored by perplexity.
    """
    sets = {d.name: d for d in suite.datasets}
    if name not in sets:
        raise UserError(unknown(f"set of suite {suite.name}", name, sets))
    if suites.by_perplexity(suites.dataset_config(sets[name])):
        raise UserError(
            f"{name} of suite {suite.name} is scored by perplexity: nothing is answered that "
            "could be judged; the suites that generate have names without -ppl"
        )
    return sets[name]


def generated(suite: EvalConfig, scored: Container[str]) -> list[str]:
    """The sets of a suite, of those that were `scored`, that generate their answers.

    Raises:
        UserError: there is none.
    """
    names = [
        d.name
        for d in suite.datasets
        if d.name in scored and not suites.by_perplexity(suites.dataset_config(d))
    ]
    if not names:
        raise UserError(f"nothing of suite {suite.name} was answered that could be judged")
    return names


def judge_outputs(suite: EvalConfig, name: str, outputs: Mapping[int, str], runs: Path) -> Judged:
    """OpenCompass's verdicts and this project's on the outputs to some of a set's questions.

    Args:
        outputs: by the question's position in the whole set; judged in the order of positions.
        runs: where OpenCompass's files lie for a while.
    """
    dataset = replace(set_of(suite, name), limit=None)
    single = replace(suite, datasets=[dataset], limit=None, without=None)
    runs.mkdir(parents=True, exist_ok=True)
    checks.check_suite(single, runs, "with runs=")
    config = copy.deepcopy(suites.prepare(single, runs)[name])
    positions = sorted(outputs)
    predictions = {
        str(i): {"origin_prompt": "", "prediction": outputs[position]}
        for i, position in enumerate(positions)
    }
    with output_to(runs / "opencompass.log"), tempfile.TemporaryDirectory(dir=runs) as work:
        rewrite(predictions, config, Path(work))
        return judged(config, Path(work), dataset.metric, positions=positions)


def kept_outputs(suite: EvalConfig, name: str, answers: Path) -> dict[int, str]:
    """The outputs that a cell kept of one set, by position.

    Raises:
        UserError: they are not there (any more), or are those of another number of questions.
    """
    path = answers / f"{name}.jsonl.gz"
    if not path.is_file():
        raise UserError(f"{path} is not there (any more): the cell's answers cannot be judged")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        outputs = [json.loads(line)["output"] for line in file]
    positions = suite.asked(set_of(suite, name))
    if len(outputs) != len(positions):
        raise UserError(f"{path} holds {len(outputs)} answers, and {len(positions)} were asked for")
    return dict(zip(positions, outputs, strict=True))
