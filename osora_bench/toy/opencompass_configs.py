"""Zero-shot OpenCompass dataset configurations of the embedded tasks.

The dataset classes, inferencer, post-processors and evaluators are those of OpenCompass's own
``gsm8k_gen`` and ``commonsenseqa_gen``; the prompts are theirs without the examples, because the
embedded model's context is short.  Importing this module imports OpenCompass.
"""

from typing import Any

from opencompass.datasets import (
    GSM8KDataset,
    Gsm8kEvaluator,
    commonsenseqaDataset,
    gsm8k_dataset_postprocess,
    gsm8k_postprocess,
)
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever
from opencompass.utils.text_postprocessors import first_capital_postprocess

from osora_bench.toy.tasks import COMMONSENSEQA_PROMPT, DATA, GSM8K_PROMPT, MAX_ANSWER_TOKENS


def _infer_cfg(prompt: str, task: str) -> dict[str, Any]:
    """One user turn with `prompt`, no examples, greedy generation of the longest answer."""
    return {
        "prompt_template": {
            "type": PromptTemplate,
            "template": {"round": [{"role": "HUMAN", "prompt": prompt}]},
        },
        "retriever": {"type": ZeroRetriever},
        "inferencer": {"type": GenInferencer, "max_out_len": MAX_ANSWER_TOKENS[task]},
    }


def _gsm8k(suffix: str) -> dict[str, Any]:
    """The configuration for the data folder ``gsm8k<suffix>``."""
    return {
        "abbr": f"gsm8k-toy{suffix}",
        "type": GSM8KDataset,
        "path": str(DATA / f"gsm8k{suffix}"),
        "reader_cfg": {"input_columns": ["question"], "output_column": "answer"},
        "infer_cfg": _infer_cfg(GSM8K_PROMPT, "gsm8k"),
        "eval_cfg": {
            "evaluator": {"type": Gsm8kEvaluator},
            "pred_postprocessor": {"type": gsm8k_postprocess},
            "dataset_postprocessor": {"type": gsm8k_dataset_postprocess},
        },
    }


def _commonsenseqa(suffix: str) -> dict[str, Any]:
    """The configuration for the data folder ``commonsenseqa<suffix>``."""
    return {
        "abbr": f"commonsenseqa-toy{suffix}",
        "type": commonsenseqaDataset,
        "path": str(DATA / f"commonsenseqa{suffix}"),
        "reader_cfg": {
            "input_columns": ["question", "A", "B", "C", "D", "E"],
            "output_column": "answerKey",
            "test_split": "validation",
        },
        "infer_cfg": _infer_cfg(COMMONSENSEQA_PROMPT, "commonsenseqa"),
        "eval_cfg": {
            "evaluator": {"type": AccEvaluator},
            "pred_postprocessor": {"type": first_capital_postprocess},
        },
    }


gsm8k_datasets = [_gsm8k("")]
gsm8k_validation_datasets = [_gsm8k("-validation")]
commonsenseqa_datasets = [_commonsenseqa("")]
commonsenseqa_validation_datasets = [_commonsenseqa("-validation")]
