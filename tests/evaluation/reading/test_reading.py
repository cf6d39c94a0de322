"""docs/reading.md shows what is read of an output; `osora-bench judge` says so, set by set."""

import json

import pytest

from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.planning.compose import compose, composer, resolve
from tests.evaluation.reading.shown import SETS, files, outputs, places, table

PAGE = paths.ROOT / "docs" / "reading.md"


@pytest.fixture
def judge(tmp_path, monkeypatch, capsys):
    """What `osora-bench judge` says of a set's outputs, on a made-up question of it."""

    def run(name):
        root = tmp_path / name  # one of its own: a file's rows are read once a process
        for place, text in files(name).items():
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_text(text, encoding="utf-8")
        monkeypatch.setenv("OSORA_DATA", str(root))
        answers = tmp_path / "answers.jsonl"
        lines = zip(places(name), outputs(name), strict=True)
        answers.write_text(
            "".join(json.dumps({"position": p, "output": o}) + "\n" for p, o in lines)
        )
        suite, set_ = SETS[name][0], name.partition(",")[0]
        with composer():
            sets = resolve(compose([f"eval={suite}"], "test"), "test").eval.datasets
        index = [d.name for d in sets].index(set_)
        count = f"eval.datasets.{index}.questions={places(name)[-1] + 1}"
        arguments = ["--suite", suite, "--set", set_, str(answers)]
        assert main(["judge", *arguments, count, f"runs={tmp_path}/runs"]) == 0
        *judged, last = map(json.loads, capsys.readouterr().out.splitlines())
        return judged, last["summary"]

    return run


@pytest.mark.parametrize("name", SETS)
def test_the_page_shows_what_is_read(name, judge):
    judged, summary = judge(name)
    assert table(name, judged) in PAGE.read_text(encoding="utf-8"), table(name, judged)
    assert summary["k"] == sum(line["right"] for line in judged)
    assert summary["unread"] == sum(line["unread"] for line in judged)
    assert summary["corrected"]["k"] == sum(line["corrected_right"] for line in judged)
    differ = sum(line["right"] != line["corrected_right"] for line in judged)
    assert summary["corrected"]["differ"] == differ


def test_the_corrected_reading_of_choices_is_the_same_for_every_set(judge):
    """The right one in its dresses, the last statement, and nothing of what says nothing."""
    for name in ("BoolQ", "siqa", "commonsense_qa", "GPQA_diamond"):
        judged, _ = judge(name)
        read = [line["corrected_read"] for line in judged]
        assert read[:20] == ["B"] * 16 + [None] * 3 + ["A"]
    assert [line["corrected_read"] for line in judge("BoolQ")[0]][20:] == ["A", "B", None]


def test_answers_that_are_right_to_a_reader_are_right(judge):
    numbers, _ = judge("gsm8k")
    assert [line["corrected_right"] for line in numbers] == [True] * 9 + [False] * 4
    assert [line["corrected_read"] for line in numbers][-4:] == [
        "9499-9500", "19000/2", "500", None,
    ]  # fmt: skip
    for name in ("math", "math, by math-verify", "math_prm800k_500"):
        formulas, _ = judge(name)
        assert [line["corrected_right"] for line in formulas] == [True] * 9 + [False] * 4
    whole, _ = judge("math, whole")
    assert [line["right"] for line in whole] == [True, True, True]
    assert [line["corrected_right"] for line in whole] == [False, True, True]
