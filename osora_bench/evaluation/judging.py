"""Predictions -> verdicts: OpenCompass's evaluation task, made to judge every single question."""

from pathlib import Path
from typing import Any

import opencompass.tasks.openicl_eval as eval_task
from mmengine.config import Config, ConfigDict
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.utils import get_logger

from osora_bench.common.errors import UserError
from osora_bench.evaluation import corrections, scores
from osora_bench.evaluation.tasks import read_results, rewrite, task
from osora_bench.records.record import pack


def judge(config: ConfigDict, work: Path, metric: str) -> dict[str, Any]:
    """OpenCompass's result on the predictions in a work folder, with a verdict of each question.

    Args:
        metric: what the evaluator calls its percentage of right answers.

    Raises:
        UserError: it returns no such number, or gives a question a part of its points.
    """
    Judge(task(config, work, {}), metric).run()
    return read_results(work / "results", config)


def check(config: ConfigDict, work: Path, metric: str) -> None:
    """Judge an empty answer to the first question, before any is asked.

    Raises:
        UserError: the evaluator's result has no such number.
    """
    made = {"0": {"origin_prompt": "", "prediction": ""}}
    rewrite(made, config, work)
    try:
        First(task(config, work, {}), metric).run()
    except UserError:
        raise
    except Exception as error:  # what it says of no answer it need not say of one
        get_logger().warning(f"{config['abbr']}: an empty answer cannot be judged: {error!r}")


class Judge(eval_task.OpenICLEvalTask):
    """OpenCompass's evaluation, that asks about each question alone where its evaluator gives no
    verdicts of them."""

    def __init__(self, cfg: Config, metric: str) -> None:
        super().__init__(cfg)
        self.metric = metric

    def _evaluate_predictions(self, pred_strs: Any, test_set: Any, pred_dicts: Any) -> Any:
        """As OpenCompass's, but that every entry of `details` holds a verdict."""
        ask = super()._evaluate_predictions
        result = ask(pred_strs, test_set, pred_dicts)
        if self.metric not in result:
            there = [key for key, value in result.items() if isinstance(value, int | float)]
            raise UserError(
                f"{self._name}: OpenCompass returned no {self.metric}, but "
                f"{', '.join(there) or result}; the set's `metric` says which is the accuracy"
            )
        details = result.get("details")
        if details is None:
            raise UserError(f"{self._name}: OpenCompass's evaluator judges no single question")
        if isinstance(details, list) and all(
            scores.verdict(entry) is not None for entry in details
        ):
            return result
        if self._compares_strings():
            for entry in scores.in_order(details):
                entry["correct"] = entry["predictions"] == entry["references"]
            return result
        for i, entry in enumerate(scores.in_order(details)):
            one = slice(i, i + 1)
            points = ask(pred_strs[one], test_set.select([i]), pred_dicts[one])[self.metric]
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


class First(Judge):
    """Of the first question alone."""

    def _load_and_preprocess_test_data(self) -> Any:
        return super()._load_and_preprocess_test_data().select([0])


def corrected(
    config: ConfigDict, right: list[bool], made: dict[str, Any], work: Path, metric: str
) -> dict[str, Any] | None:
    """The verdicts on outputs rewritten so that a known mistake cannot happen; None without one.

    Args:
        right: the official verdicts on `made`, the predictions.
    """
    correction = corrections.of(config)
    if correction is None:
        return None
    after, rewritten = right, {key: correction.applied(entry) for key, entry in made.items()}
    if rewritten != made:
        again = work / "corrected"
        rewrite(rewritten, config, again)
        after = [a.right for a in scores.collect(judge(config, again, metric), rewritten)]
    return {
        "rule": correction.rule,
        "k": sum(after),
        "differ": sum(a != b for a, b in zip(after, right, strict=True)),
        "right": pack(after),
    }
