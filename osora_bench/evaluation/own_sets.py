"""Dataset configurations that OpenCompass does not ship, of its own classes.

A suite names one as ``osora_bench.evaluation.own_sets:VARIABLE``.
"""

from opencompass.datasets import commonsenseqaDataset
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

LETTERS = "ABCDE"

commonsenseqa_ppl_datasets = [
    {
        "abbr": "commonsense_qa",
        "type": commonsenseqaDataset,
        "path": "opencompass/commonsense_qa",
        "reader_cfg": {
            "input_columns": ["question", *LETTERS],
            "output_column": "answerKey",
            "test_split": "validation",
        },
        "infer_cfg": {
            "prompt_template": {
                "type": PromptTemplate,
                "template": {
                    letter: f"Answer the following question:\n{{question}}\nAnswer: {{{letter}}}"
                    for letter in LETTERS
                },
            },
            "retriever": {"type": ZeroRetriever},
            "inferencer": {"type": PPLInferencer},
        },
        "eval_cfg": {"evaluator": {"type": AccEvaluator}},
    }
]
"""CommonsenseQA's validation set in the words of OpenCompass's ``commonsenseqa_ppl_716f78``, with
the options written out, without its worked examples, which a model of the hub chooses."""
