"""The word problems: right answers, splits that share nothing, one seed gives the same bytes."""

import ast
import itertools
import json
import operator
import re
from fractions import Fraction

import pytest

from osora_bench.arithmetic import __main__ as command
from osora_bench.arithmetic import problems
from osora_bench.arithmetic.wording import SPLITS, WORDS

OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: Fraction(a) / b,
}


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (problems.DATA / name).read_text().splitlines()]


def split_rows(split: str) -> list[dict]:
    if split == "train":
        return read("train.jsonl")
    return [row for steps in problems.STEPS for row in read(f"{split}-{steps}/test.jsonl")]


ROWS = {split: split_rows(split) for split in SPLITS}
ALL = [row for rows in ROWS.values() for row in rows]


def evaluated(text: str) -> int:
    """A calculation by Python's own parser, not by the code that made it."""
    node = ast.parse(text, mode="eval").body
    assert isinstance(node, ast.BinOp)
    sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[type(node.op)]
    return OPERATIONS[sign](ast.literal_eval(node.left), ast.literal_eval(node.right))


def test_committed_data_is_what_the_seed_gives(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["osora_bench.arithmetic", "--output", str(tmp_path)])
    command.main()
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    committed = {p.relative_to(problems.DATA): p for p in problems.DATA.rglob("*.jsonl")}
    assert made == {name: place.read_bytes() for name, place in committed.items()}
    assert sum(map(len, made.values())) < 2e6


def test_another_seed_gives_other_rows():
    assert problems.rows("test", 2, 1) != problems.rows("test", 2, 2)


def test_there_are_as_many_rows_of_each_number_of_steps_as_the_plan_says():
    for split, rows in ROWS.items():
        counts = {n: sum(row["steps"] == n for row in rows) for n in problems.STEPS}
        assert counts == problems.ROWS[split]
    assert len(ROWS["test"]) == 1000


def test_every_worked_line_is_right_and_goes_on_from_the_one_before():
    for row in ALL:
        *lines, final = row["answer"].split("\n")
        results = []
        for line in lines:
            calculation, result = line.split("=")
            assert evaluated(calculation) == int(result)
            if results:
                assert calculation.startswith(results[-1])
            results.append(result)
        assert final == f"#### {results[-1]}"
        assert len(lines) == len(row["operations"]) == row["steps"]


def test_the_answer_follows_from_the_numbers_of_the_question():
    """In the order in which the question names them, by the operations that the row names."""
    for row in ALL:
        first, *others = map(int, re.findall(r"\d+", row["question"]))
        value = Fraction(first)
        for sign, number in zip(row["operations"], others, strict=True):
            value = OPERATIONS[sign](value, number)
        assert value == int(row["answer"].rpartition("#### ")[2])
        assert 0 < value <= problems.LARGEST


def test_each_phrase_of_a_question_is_of_the_operation_that_is_worked_out():
    for split, rows in ROWS.items():
        words = WORDS[split]
        patterns = {
            sign: [re.sub(r"\\{\w+\\}", r"\\w+", re.escape(p)) for p in phrases]
            for sign, phrases in words.steps.items()
        }
        for row in rows:
            told = row["question"]
            for sign in row["operations"]:
                ends = [m.end() for p in patterns[sign] if (m := re.search(p, told))]
                assert ends, (row["question"], sign)
                told = told[min(ends) :]


def calculations(rows: list[dict]) -> set[tuple[str, ...]]:
    """Of all steps; a sum and a product in either order are one."""
    found = set()
    for line in itertools.chain(*(row["answer"].split("\n")[:-1] for row in rows)):
        a, sign, b = re.match(r"(\d+)([-+*/])(\d+)=", line).groups()
        found.add((sign, *sorted((a, b)))) if sign in "+*" else found.add((sign, a, b))
    return found


@pytest.mark.parametrize(("one", "other"), itertools.combinations(SPLITS, 2))
def test_splits_share_no_calculation_phrase_name_or_thing(one, other):
    assert not calculations(ROWS[one]) & calculations(ROWS[other])
    for mine, theirs in (
        (WORDS[one].names.split(), WORDS[other].names.split()),
        (WORDS[one].things.split(), WORDS[other].things.split()),
        (WORDS[one].openings, WORDS[other].openings),
        (WORDS[one].endings, WORDS[other].endings),
        *((WORDS[one].steps[sign], WORDS[other].steps[sign]) for sign in OPERATIONS),
    ):
        assert not {*mine} & {*theirs}


def test_no_calculations_and_no_question_stand_twice():
    for split in SPLITS:
        chains = [row["answer"] for row in ROWS[split]]
        assert len({*chains}) == len(chains)
    questions = [row["question"] for row in ALL]
    assert len({*questions}) == len(questions)


def test_no_step_repeats_or_undoes_the_one_before():
    for row in ALL:
        assert not re.search(r"(.)\1", row["operations"])
        numbers = [int(n) for n in re.findall(r"(\d+)[-+*/]\d+=", row["answer"])]
        assert all(a != c for a, c in zip(numbers, numbers[2:], strict=False))


def test_every_operation_is_asked_often():
    for split, rows in ROWS.items():
        for sign in OPERATIONS:
            share = sum(sign in row["operations"] for row in rows) / len(rows)
            assert share > 0.25, (split, sign, share)
