"""On the real questions: the right answer is read in the usual dresses, a wrong one never taken
for it."""

import json
import re

import pytest

from osora_bench.common import paths
from osora_bench.evaluation import suites, tasks
from osora_bench.evaluation.reading import corrections, formulas, numbers
from osora_bench.evaluation.reading.choices import read_choice
from osora_bench.planning.compose import compose, composer, resolve

REAL = paths.data_root()
CHOICE_SETS = [
    ("commonsense-0shot", name)
    for name in (
        "BoolQ", "piqa", "siqa", "hellaswag", "winogrande", "ARC-e", "ARC-c", "openbookqa"
    )
] + [("commonsenseqa", "commonsense_qa"), ("gpqa", "GPQA_diamond")]  # fmt: skip
pytestmark = pytest.mark.real_data


def rows(suite, name, tmp_path):
    """The options and the right letter of every question."""
    with composer():
        sets = resolve(compose([f"eval={suite}"], "test"), "test").eval.datasets
    (dataset,) = (d for d in sets if d.name == name)
    absent = [f for f in dataset.files if not (REAL / f).is_file()]
    if absent:
        pytest.skip(f"OSORA_DATA has no {', '.join(absent)}")
    config = suites.dataset_config(dataset)
    tasks.point_at_data(tmp_path)
    shown, column = corrections.options_of(config), config.reader_cfg.output_column
    return [
        (corrections.filled(shown, row), row[column]) for row in tasks.build_dataset(config).test
    ]


def choice_dresses(letter, text):
    return [
        letter, f"({letter.lower()})", f"**{letter}**", f"Answer: {letter}",
        f"The answer is ({letter}).", f"${letter}$", rf"\boxed{{{letter}}}", letter.lower(), text,
        f"{letter}. {text}",
    ]  # fmt: skip


@pytest.mark.parametrize(("suite", "name"), CHOICE_SETS, ids=[name for _, name in CHOICE_SETS])
def test_options_in_ten_dresses(suite, name, tmp_path):
    questions = rows(suite, name, tmp_path)
    whole, false = 0, []
    for place, (options, right) in enumerate(questions):
        whole += all(
            read_choice(d, options) == right for d in choice_dresses(right, options[right])
        )
        wrong = [letter for letter in options if letter != right]
        # of ten thousand questions one wrong option each, by turns: it is a matter of seconds then
        chosen = wrong if len(questions) < 5000 else [wrong[place % len(wrong)]]
        for letter in chosen:
            dresses = choice_dresses(letter, options[letter])
            false += [d for d in dresses if read_choice(d, options) == right]
    assert whole >= 0.99 * len(questions)
    assert false == []


def number_dresses(number):
    text = f"{int(number):,}"
    return [
        f"#### {number}", f"The answer is {number}.", rf"\boxed{{{text.replace(',', '{,}')}}}",
        f"${number}$", f"**{text}**", f"{text}.00", text.replace(",", r",\!"),
        text.replace(",", " "), f"The answer is {text} dollars. That took 3 steps.",
        f"#### {number}\n\nQuestion: What is 5 and 7?\nAnswer: 5 + 7 = 12\n#### 12",
    ]  # fmt: skip


def test_numbers_in_ten_dresses():
    place = REAL / "gsm8k" / "test.jsonl"
    if not place.is_file():
        pytest.skip("OSORA_DATA has no gsm8k/test.jsonl")
    lines = place.read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["answer"].split("#### ")[1].replace(",", "") for line in lines]

    def right(output, gold):
        read = numbers.read_number(output)
        return read is not None and numbers.equal(read, gold)

    assert len(golds) == 1319
    assert sum(all(right(d, g) for d in number_dresses(g)) for g in golds) >= 0.99 * 1319
    for gold in golds:
        number = int(gold)
        wrong = {number + 1, 10 * number, -number, number % 1000, number * 1000 + 1} - {number}
        said = [d for w in wrong for d in number_dresses(str(w))]
        said += [f"{number}.5", f"{number}/2", f"{number - 1}-{number}", f"{number}-{number + 1}"]
        assert not [text for text in said if right(text, gold)]


def formula_dresses(formula):
    return [
        rf"\boxed{{{formula}}}", f"The answer is ${formula}$.", f"The answer is {formula}.",
        f"Final Answer: The final answer is ${formula}$. I hope it is correct.",
        f"${formula}$", rf"First $x=3$. Then $\boxed{{{formula}}}$.", rf"\[ \boxed{{{formula}}} \]",
        f"**Answer:** ${formula}$", rf"Thus, the final answer is \({formula}\).",
        rf"\boxed{{{formula}}}" + "\n\nProblem:\nWhat is 1+1?\nSolution: \\boxed{2}",
    ]  # fmt: skip


def test_formulas_in_ten_dresses():
    """What is written alike: no solver is asked, which would be no help to a wrong reading."""
    from opencompass.datasets.math import extract_boxed_answer

    place = REAL / "math" / "math.json"
    if not place.is_file():
        pytest.skip("OSORA_DATA has no math/math.json")
    solved = json.loads(place.read_text(encoding="utf-8")).values()
    golds = [extract_boxed_answer(row["solution"]) for row in solved]

    def right(output, gold):
        read = formulas.read_formula(output)
        return read is not None and bool(formulas.equal(read, gold, lambda *_: False))

    assert len(golds) == 5000
    assert sum(all(right(d, g) for d in formula_dresses(g)) for g in golds) >= 0.99 * 5000
    for gold in golds[::5]:
        wrong = re.sub(r"\d+", lambda m: str(int(m[0]) + 1), gold, count=1)
        if wrong != gold:
            assert not [d for d in formula_dresses(wrong) if right(d, gold)]
