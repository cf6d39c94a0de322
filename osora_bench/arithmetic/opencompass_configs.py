"""Zero-shot OpenCompass dataset configurations of the word problems, by number of steps.

Dataset class, inferencer, post-processors and evaluator are those of OpenCompass's own
``gsm8k_gen``, and so is the prompt, without its examples. Importing this imports OpenCompass.
"""

from typing import Any

from opencompass.datasets import (
    GSM8KDataset,
    Gsm8kEvaluator,
    gsm8k_dataset_postprocess,
    gsm8k_postprocess,
)
from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from osora_bench.arithmetic.problems import DATA, STEPS

PROMPT = "Question: {question}\nLet's think step by step\nAnswer:"


def _dataset(split: str, steps: int) -> dict[str, Any]:
    """The configuration of a split's questions with so many steps."""
    turn = {"role": "HUMAN", "prompt": PROMPT}
    return {
        "abbr": f"arithmetic-{split}-{steps}",
        "type": GSM8KDataset,
        "path": str(DATA / f"{split}-{steps}"),
        "reader_cfg": {"input_columns": ["question"], "output_column": "answer"},
        "infer_cfg": {
            "prompt_template": {"type": PromptTemplate, "template": {"round": [turn]}},
            "retriever": {"type": ZeroRetriever},
            "inferencer": {"type": GenInferencer, "max_out_len": 48},
        },
        "eval_cfg": {
            "evaluator": {"type": Gsm8kEvaluator},
            "pred_postprocessor": {"type": gsm8k_postprocess},
            "dataset_postprocessor": {"type": gsm8k_dataset_postprocess},
        },
    }


validation_datasets = [_dataset("validation", steps) for steps in STEPS]
test_datasets = [_dataset("test", steps) for steps in STEPS]
