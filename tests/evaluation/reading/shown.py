"""What docs/reading.md shows: outputs of every kind, and questions of every set to ask them of."""

import csv
import io
import json

CHOICES = [
    "B", "(b)", "**B**", "B.", "Answer: B", "The answer is (B).", "$B$", r"\boxed{B}", "b",
    "{right}", "B. {right}", "The answer is {right}.", "I first thought of A. The answer is B.",
    "Answer: A. No, the answer is B.", "B\n\nQuestion: What next?\nAnswer: A",
    "B\n\nWhat next?\nA. up\nB. down\nAnswer: A", "Both", "I don't know", "A or B", "Answer: A",
]  # fmt: skip
YES = ["Yes, it is.", "No, it is not.", "The passage does not say."]
NUMBERS = [
    "#### 9500", r"\boxed{9{,}500}", r"9,\!500", "9 500", "9,500.00", "$9,500 in all.",
    "The answer is 9,500. That took 3 steps.", "#### 9500\n\nQuestion: What is 1 and 1?\n#### 2",
    "Question: What is 1 and 1?\nAnswer: 9500", "9499-9500", "19000/2", "It is 500.", "No idea.",
]  # fmt: skip
FORMULAS = [
    r"\boxed{\frac{1}{2}}", r"\boxed{\frac12}", r"\boxed{0.5}", "The answer is 0.5.",
    r"Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.",
    r"So $x = \frac{1}{2}$", "1/2", r"\boxed{3}, no, it is \boxed{\frac{1}{2}}.",
    r"\boxed{\frac{1}{2}}" + "\n\nProblem:\nWhat is 1 and 1?\nSolution: " + r"\boxed{2}",
    "The answer is 0.75.", r"\boxed{50\%}", r"\boxed{}", "I do not know how to do this at all.",
]  # fmt: skip
WHOLE = ["The answer is 3.7.", "The answer is 3.", r"\boxed{3\%}"]
TEXTS = ["copper", "iron", "tin", "gold", "lead"]

SETS = {
    "BoolQ": ("commonsense-0shot", [*CHOICES, *YES], "A. Yes, B. No; right is B"),
    "piqa": ("commonsense-0shot", CHOICES, "A. copper, B. iron; right is B"),
    "siqa": ("commonsense-0shot", CHOICES, "A. copper, B. iron, C. tin; right is B"),
    "hellaswag": ("commonsense-0shot", CHOICES, "A. copper to D. gold; right is B. iron"),
    "winogrande": ("commonsense-0shot", CHOICES, "A. copper, B. iron; right is B"),
    "ARC-e": ("commonsense-0shot", CHOICES, "A. copper to D. gold; right is B. iron"),
    "ARC-c": ("commonsense-0shot", CHOICES, "A. copper to D. gold; right is B. iron"),
    "openbookqa": ("commonsense-0shot", CHOICES, "A. copper to D. gold; right is B. iron"),
    "commonsense_qa": ("commonsenseqa", CHOICES, "A. copper to E. lead; right is B. iron"),
    "GPQA_diamond": ("gpqa", CHOICES, "A. copper to D. gold; right is B. iron"),
    "gsm8k": ("gsm8k", NUMBERS, "right is 9500"),
    "math": ("math", FORMULAS, r"right is `\frac{1}{2}`"),
    "math, whole": ("math", WHOLE, "right is 3"),
    "math, by math-verify": ("math-verify", FORMULAS, r"right is `\frac{1}{2}`"),
    "math_prm800k_500": ("math-500", FORMULAS, r"right is `\frac{1}{2}`"),
}
"""By its name in docs/reading.md: the suite, the outputs, and the question of a set."""


def outputs(name: str) -> list[str]:
    """What is said to a set's question."""
    right = "No" if name == "BoolQ" else TEXTS[1]
    return [text.replace("{right}", right) for text in SETS[name][1]]


def places(name: str) -> list[int]:
    """The positions of questions of which B is right: GPQA's options are shifted by position."""
    return [4 * i + 2 if name == "GPQA_diamond" else i for i in range(len(outputs(name)))]


def files(name: str) -> dict[str, str]:
    """A set's files, with the same question often enough."""
    count = places(name)[-1] + 1
    gold = "3" if "whole" in name else r"\frac{1}{2}"
    solved = {"problem": "What?", "solution": rf"\boxed{{{gold}}}"}
    choices = [{"label": "ABCDE"[i], "text": text} for i, text in enumerate(TEXTS)]
    arc = {"id": "1", "question": {"stem": "Which?", "choices": choices[:4]}, "answerKey": "B"}
    csqa = {**arc, "question": {"stem": "Which?", "choices": choices}}
    piqa = {"id": "1", "goal": "Which?", "sol1": TEXTS[0], "sol2": TEXTS[1]}
    siqa = {"context": "Kim looks.", "question": "Which?", "answerA": TEXTS[0],
            "answerB": TEXTS[1], "answerC": TEXTS[2]}  # fmt: skip
    swag = {"query": "Which: it", "choices": TEXTS[:4], "gold": 1}
    wino = {"qID": "1", "sentence": "It is _ .", "option1": TEXTS[0], "option2": TEXTS[1],
            "answer": "2"}  # fmt: skip
    lines = {
        "SuperGLUE/BoolQ/val.jsonl": {"question": "is it", "passage": "It.", "label": "false"},
        "piqa/train.jsonl": piqa, "piqa/dev.jsonl": piqa,
        "siqa/train.jsonl": siqa, "siqa/dev.jsonl": siqa,
        "hellaswag/hellaswag.jsonl": swag, "winogrande/dev.jsonl": wino,
        "ARC/ARC-e/ARC-Easy-Dev.jsonl": arc, "ARC/ARC-c/ARC-Challenge-Dev.jsonl": arc,
        "openbookqa/Main/test.jsonl": arc,
        "commonsenseqa/train_rand_split.jsonl": csqa, "commonsenseqa/dev_rand_split.jsonl": csqa,
        "gsm8k/train.jsonl": {"question": "What?", "answer": "#### 9,500"},
        "gsm8k/test.jsonl": {"question": "What?", "answer": "#### 9,500"},
    }  # fmt: skip
    made = {place: f"{json.dumps(row)}\n" * count for place, row in lines.items()}
    for split in ("train", "dev"):
        made[f"piqa/{split}-labels.lst"] = "1\n" * count
        made[f"siqa/{split}-labels.lst"] = "2\n" * count
    for file in ("math", "test_prm800k_500"):
        made[f"math/{file}.json"] = json.dumps({str(i): solved for i in range(count)})
    return made | {"gpqa/gpqa_diamond.csv": _gpqa(count)}


def _gpqa(count: int) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([*"0123456", "Question", "Correct Answer", "1", "2", "3"])
    for _ in range(count):  # shown at every fourth question as copper, iron, tin, gold
        writer.writerow([*"0123456", "Which?", TEXTS[1], TEXTS[2], TEXTS[3], TEXTS[0]])
    return stream.getvalue()


def table(name: str, judged: list[dict]) -> str:
    """A set's part of docs/reading.md, from the lines of `osora-bench judge`."""
    heads = "| output | OpenCompass reads | corrected |\n|---|---|---|\n"
    rows = ""
    for text, line in zip(outputs(name), judged, strict=True):
        official = _shown(line["read"], line["right"])
        corrected = _shown(line["corrected_read"], line["corrected_right"])
        rows += f"| {_code(text)} | {official} | {corrected} |\n"
    return f"### {name}\n\nSuite {SETS[name][0]}: {SETS[name][2]}.\n\n{heads}{rows}"


def _code(text: str) -> str:
    shown = text.replace("|", "\\|").replace("\n", "⏎")
    return f"`{shown}`"


def _shown(read: str | None, right: bool) -> str:
    return ("nothing" if read is None else _code(str(read))) + (", right" if right else "")
