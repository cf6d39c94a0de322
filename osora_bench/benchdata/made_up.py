"""The made-up data that scale=smoke reads: a few rows in the format of each real file."""

import csv
import io
import json
from pathlib import Path
from typing import Any

ROWS = 12
"""Rows of each made-up file; HellaSwag's prompt takes ten of them."""


def write_data(folder: Path) -> None:
    """Write every file into a data folder; those that are there and right are kept."""
    for name, text in _files().items():
        place = folder / name
        if not place.is_file() or place.read_text(encoding="utf-8") != text:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")


def _files() -> dict[str, str]:
    """Every file that the paper's tasks and suites read, by its place in the data folder."""
    choices = [{"label": "ABCDE"[i], "text": f"{i}"} for i in range(5)]
    question = {"stem": "Which is 1?", "choices": choices[:4]}
    csqa = {"answerKey": "B", "question": {**question, "choices": choices}}
    arc = _lines({"id": "made up", "question": question, "answerKey": "B"})
    gsm8k = _lines({"question": "What is 1 and 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"})
    piqa = _lines({"id": "made up", "goal": "Count.", "sol1": "1, 2", "sol2": "2, 1"})
    siqa = _lines({"context": "A counts.", "question": "What?", **_named("answer", "ABC")})
    hellaswag = _lines({"query": "Count: 1, 2,", "choices": [*"3456"], "gold": 0})
    problem = {"problem": "What is 1 and 1?", "solution": r"It is $\boxed{2}$."}
    meta = {"type": "made up", "query": "What is 1 and 1?", "response": "The answer is: 2"}
    told = {"instruction": "What is 1 and 1?", "input": "", "output": "It is 2.", "answer": "2"}
    gpqa = {name: _gpqa(count) for name, count in GPQA_ROWS.items()}
    sentence = {"qID": "made up", "sentence": "1 is less than 2 so _ is less.", "answer": "1"}
    return {
        "metamathqa/MetaMathQA-395K.json": json.dumps(
            [{**meta, "original_question": f"What is 1 and {i}?"} for i in range(ROWS)]
        ),
        **{
            f"llm-adapters/{name}.json": json.dumps([told] * ROWS)
            for name in ("commonsense_170k", "math_10k")
        },
        **{f"commonsenseqa/{split}_rand_split.jsonl": _lines(csqa) for split in ("train", "dev")},
        "gsm8k/train.jsonl": gsm8k,
        "gsm8k/test.jsonl": gsm8k,
        **{
            f"math/{name}.json": json.dumps({str(i): problem for i in range(ROWS)})
            for name in ("math", "test_prm800k_500")
        },
        "SuperGLUE/BoolQ/val.jsonl": _lines(
            {"question": "is 1 less", "passage": "1 is less than 2.", "label": "true"}
        ),
        **{f"piqa/{split}.jsonl": piqa for split in ("train", "dev")},
        **{f"piqa/{split}-labels.lst": "0\n" * ROWS for split in ("train", "dev")},
        **{f"siqa/{split}.jsonl": siqa for split in ("train", "dev")},
        **{f"siqa/{split}-labels.lst": "1\n" * ROWS for split in ("train", "dev")},
        "hellaswag/hellaswag.jsonl": hellaswag,
        "hellaswag/hellaswag_train_sampled25.jsonl": hellaswag,
        "winogrande/dev.jsonl": _lines({**sentence, **_named("option", "12")}),
        "ARC/ARC-e/ARC-Easy-Dev.jsonl": arc,
        "ARC/ARC-c/ARC-Challenge-Dev.jsonl": arc,
        **{f"openbookqa/Main/{split}.jsonl": arc for split in ("train", "test")},
        **{f"gpqa/gpqa_{name}.csv": text for name, text in gpqa.items()},
    }


GPQA_ROWS = {"main": ROWS, "extended": ROWS, "diamond": ROWS // 2}


def _lines(row: dict[str, Any]) -> str:
    return (json.dumps(row) + "\n") * ROWS


def _named(name: str, ends: str) -> dict[str, str]:
    return {f"{name}{end}": end for end in ends}


def _gpqa(rows: int) -> str:
    """Questions in the columns of GPQA's files, where OpenCompass reads them by position."""
    options = ["Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["Record ID", *(f"-{i}" for i in range(6)), "Question", *options, "Explanation"]
    )
    for i in range(rows):
        writer.writerow([f"rec{i}", *[""] * 6, f"What is {i} and 0?", *range(i, i + 4), "Count."])
    return stream.getvalue()
