"""Predictions -> verdicts: OpenCompass's evaluation task, made to judge every single question."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import opencompass.tasks.openicl_eval as eval_task
from mmengine.config import Config, ConfigDict
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.utils import get_logger

from osora_bench.common.errors import UserError
from osora_bench.common.progress import say
from osora_bench.evaluation import scores
from osora_bench.evaluation.reading import corrections, solver
from osora_bench.evaluation.scores import Answer
from osora_bench.evaluation.tasks import build_dataset, predictions, read_results, rewrite, task
from osora_bench.records.record import pack

eval_task.build_dataset_from_cfg = build_dataset  # here, since `osora-bench judge` needs no more


@dataclass(frozen=True)
class Again:
    """An output read and judged by this project's own reader."""

    read: str | None
    right: bool


@dataclass(frozen=True)
class Judged:
    """What became of a set's answers: OpenCompass's result, the answers as it read them, and as
    this project's own reader did, where it has one (`corrections.of`)."""

    result: dict[str, Any]
    answers: list[Answer]
    again: list[Again] | None
    rule: str | None

    @property
    def corrected(self) -> dict[str, Any] | None:
        """What a score says of the second reading."""
        if self.again is None:
            return None
        right = [reading.right for reading in self.again]
        official = [answer.right for answer in self.answers]
        return {
            "rule": self.rule,
            "k": sum(right),
            "differ": sum(a != b for a, b in zip(right, official, strict=True)),
            "unread": sum(reading.read is None for reading in self.again),
            "right": pack(right),
        }


def judged(
    config: ConfigDict,
    work: Path,
    metric: str,
    *,
    positions: Sequence[int] | None = None,
    cut: Container[int] = (),
    too_long: Container[int] = (),
) -> Judged:
    """The predictions in a work folder, judged by OpenCompass and read once more.

    Args:
        metric: what the evaluator calls its percentage of right answers.
        positions: the questions that the predictions are of; None: all of the set's.
        cut: places of the outputs that ended at the length limit.
        too_long: places of the questions that were not asked.

    Raises:
        UserError: OpenCompass returns no such number, or gives a question a part of its points.
    """
    outputs = predictions(config, work)
    evaluation = Judge(task(config, work, {}), metric, positions)
    try:
        evaluation.run()
        result, reader = read_results(work / "results", config), corrections.reader_of(config)
        if reader is None:
            answers = scores.collect(result, outputs, cut=cut, too_long=too_long)
            return Judged(result, answers, None, None)
        answers = scores.collect(result, outputs, reader.possible, cut, too_long)
        column = config.reader_cfg.output_column
        pairs = zip(evaluation.rows, answers, strict=True)
        again = [_again(reader, row, str(row[column]), answer.output) for row, answer in pairs]
        return Judged(result, answers, again, reader.rule)
    finally:
        solver.close()


def _again(reader: corrections.Reader, row: corrections.Row, gold: str, output: str) -> Again:
    answer = reader.read(output, row)
    right = False if answer is None else reader.right(answer, gold)
    return Again(None if right is None else answer, bool(right))


def judge(config: ConfigDict, work: Path, metric: str) -> dict[str, Any]:
    """OpenCompass's result on the predictions in a work folder, with a verdict of each question."""
    return judged(config, work, metric).result


def check_metric(config: ConfigDict, work: Path, metric: str) -> None:
    """Judge an empty answer to the first question, before any is asked.

    Raises:
        UserError: the evaluator's result has no such number.
    """
    outputs = {"0": {"origin_prompt": "", "prediction": ""}}
    rewrite(outputs, config, work)
    try:
        Judge(task(config, work, {}), metric, [0]).run()
    except UserError:
        raise
    except Exception as error:  # what it says of no answer it need not say of one
        get_logger().warning(f"{config['abbr']}: an empty answer cannot be judged: {error!r}")


def check_references(config: ConfigDict, name: str) -> None:
    """Say which reference answers no answer can match, since math-verify cannot parse them."""
    if corrections.named(config.eval_cfg.evaluator.type) != "MATHVerifyEvaluator":
        return
    references = build_dataset(config).test[config.reader_cfg.output_column]
    try:
        indices = solver.unparsable(map(str, references))
    finally:
        solver.close()
    if indices:
        listing = ", ".join(map(str, indices[:10])) + (", ..." if len(indices) > 10 else "")
        say(
            f"WARNING: {name}: {len(indices)} of {len(references)} reference answers cannot be "
            f"parsed, so that no answer to these questions counts as right: {listing}"
        )


class Judge(eval_task.OpenICLEvalTask):
    """OpenCompass's evaluation, that asks about each question alone where its evaluator gives no
    verdicts of them."""

    def __init__(self, cfg: Config, metric: str, positions: Sequence[int] | None = None) -> None:
        super().__init__(cfg)
        self.metric = metric
        self.positions = positions
        self.rows: Any = None

    def _load_and_preprocess_test_data(self) -> Any:
        test_data = super()._load_and_preprocess_test_data()
        self.rows = test_data if self.positions is None else test_data.select(self.positions)
        return self.rows

    def _evaluate_predictions(self, pred_strs: Any, test_set: Any, pred_dicts: Any) -> Any:
        """As OpenCompass's, but that every entry of `details` holds a verdict."""
        evaluate = super()._evaluate_predictions
        result = evaluate(pred_strs, test_set, pred_dicts)
        if self.metric not in result:
            numbers = [key for key, value in result.items() if isinstance(value, int | float)]
            raise UserError(
                f"{self._name}: OpenCompass returned no {self.metric}, but "
                f"{', '.join(numbers) or result}; the set's `metric` says which is the accuracy"
            )
        details = result.get("details")
        solver.mark(details)
        if details is None:
            raise UserError(f"{self._name}: OpenCompass's evaluator judges no single question")
        if isinstance(details, list) and all(
            scores.verdict_of_answer(entry) is not None for entry in details
        ):
            return result
        if self._compares_strings():
            for entry in scores.in_order(details):
                entry["correct"] = entry["predictions"] == entry["references"]
            return result
        for i, entry in enumerate(scores.in_order(details)):
            part = slice(i, i + 1)
            points = evaluate(pred_strs[part], test_set.select([i]), pred_dicts[part])[self.metric]
            if points not in (0, 100):
                raise UserError(
                    f"{self._name}: OpenCompass gives an answer {points:g} of 100 points of "
                    f"{self.metric}, and only what is right or wrong can be scored here"
                )
            entry["correct"] = points == 100
        return result

    @property
    def _name(self) -> str:
        return str(self.dataset_cfg["abbr"])

    def _compares_strings(self) -> bool:
        """Whether the evaluator does no more than that: it is slow on single questions."""
        evaluator = self.eval_cfg["evaluator"]
        kind = corrections.named(evaluator["type"])
        return kind == AccEvaluator.__name__ and list(evaluator) == ["type"]
