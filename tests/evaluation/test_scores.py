"""OpenCompass's files -> answers -> scores, in all of their forms."""

import gzip
import json
from dataclasses import replace

import pytest

from osora_bench.common.errors import UserError
from osora_bench.evaluation import scores
from osora_bench.evaluation.scores import Answer
from osora_bench.planning.config import DatasetConfig
from osora_bench.records.record import unpack

OUTPUTS = {str(i): {"origin_prompt": f"q{i}", "prediction": f"o{i}"} for i in range(12)}
SIQA = DatasetConfig(name="siqa", config="x", questions=20, metric="accuracy", files=[])


def entries(*read, correct=None):
    return [{"pred": text, "correct": bool(correct)} for text in read]


def predictions(n):
    return {str(i): OUTPUTS[str(i)] for i in reversed(range(n))}


def test_answers_are_in_the_order_of_the_questions_whatever_the_form():
    details = {str(i): {"pred": f"r{i}", "correct": i % 2 == 0} for i in (11, *range(11))}
    details["type"] = "GEN"
    listed = [details[str(i)] for i in range(12)]
    for form in (details, listed):
        found = scores.collect({"details": form}, predictions(12))
        assert [a.prompt for a in found] == [f"q{i}" for i in range(12)]
        assert [a.output for a in found] == [f"o{i}" for i in range(12)]
        assert [a.read for a in found] == [f"r{i}" for i in range(12)]
        assert [a.right for a in found] == [True, False] * 6


@pytest.mark.parametrize(
    ("entry", "read"),
    [
        ({"pred": "A"}, "A"), ({"predictions": "A"}, "A"), ({"pred": "A", "predictions": "B"}, "A"),
        ({"pred": ["A"]}, "A"), ({"pred": ["A", "B"]}, ["A", "B"]), ({"pred": ""}, None),
        ({"pred": " "}, None), ({"pred": "NULL"}, None), ({"pred": "None"}, None),
        ({"pred": "null"}, None), ({"pred": None}, None), ({"pred": [" null "]}, None), ({}, None),
        ({"pred": None, "predictions": "B"}, None), ({"pred": 5}, 5),
        ({"pred": "nought"}, "nought"),
    ],
)  # fmt: skip
def test_what_was_read(entry, read):
    (answer,) = scores.collect({"details": [entry]}, predictions(1))
    assert answer.read == read


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        ({"correct": True}, True), ({"correct": False}, False), ({"is_correct": True}, True),
        ({"correct": False, "is_correct": True}, False), ({"correct": [True]}, True),
        ({"correct": [False]}, False), ({"is_correct": 1}, True), ({"correct": 0}, False),
        ({}, None),
    ],
)  # fmt: skip
def test_verdicts(entry, verdict):
    assert scores.verdict_of_answer(entry) is verdict
    (answer,) = scores.collect({"details": [entry]}, predictions(1))
    assert answer.right is bool(verdict)


def test_what_is_no_possible_answer_is_unread_and_what_was_cut_is_marked():
    details = [*entries("A", "T", 5), {"pred": "B", "unjudged": "no time"}]
    found = scores.collect({"details": details}, predictions(4), lambda text: text in "AB5", (1, 3))
    assert [a.read for a in found] == ["A", None, 5, "B"]
    assert [a.cut for a in found] == [False, True, False, True]
    found = scores.collect({"details": details}, predictions(4), too_long=(2,))
    assert [a.too_long for a in found] == [False, False, True, False]
    assert [a.unjudged for a in found] == [None, None, None, "no time"]


@pytest.mark.parametrize("details", [entries("A"), entries("A", "B", "C"), [], None])
def test_another_number_of_verdicts_is_an_error(details):
    with pytest.raises(RuntimeError, match="judged . questions and has predictions for 2"):
        scores.collect({"details": details}, predictions(2))
    with pytest.raises(RuntimeError, match="judged 0 questions and has predictions for 0"):
        scores.collect({"details": []}, {})


ANSWERS = [
    Answer("q0", "o0", "A", True),
    Answer("q1", "o1", None, False, "no time", True),
    Answer("q2", "é\n", "B", False, None, True),
    Answer("q3", "o3", None, False),
    Answer("q4", "o4", None, True, None, True),
]


def test_answers_are_kept_a_line_each(tmp_path):
    place = tmp_path / "a" / "b" / "siqa.jsonl.gz"
    scores.write_answers(ANSWERS, place)
    text = gzip.decompress(place.read_bytes()).decode()
    lines = text.splitlines()
    assert [Answer(**json.loads(line)) for line in lines] == ANSWERS
    assert "é" in text
    scores.write_answers(ANSWERS[:1], place)
    assert len(gzip.decompress(place.read_bytes()).splitlines()) == 1


def test_a_score_counts_what_it_says():
    score = scores.score_of({"accuracy": 40.0}, ANSWERS, SIQA, 1, {"k": 3})
    assert (score.k, score.n, score.questions, score.accuracy) == (2, 5, 20, 40.0)
    assert unpack(score.right, 5) == [True, False, False, False, True]
    assert (score.unread, score.too_long, score.cut, score.unjudged) == (3, 1, 3, 1)
    assert score.corrected == {"k": 3}


@pytest.mark.parametrize(
    ("stated", "right", "n", "agrees"),
    [
        (100 / 3, 1, 3, True), (33.33, 1, 3, True), (33.3, 1, 3, False), (33.34, 1, 3, False),
        (100 / 3 + 5e-7, 1, 3, True), (100 / 3 + 1e-5, 1, 3, False), (0.0, 0, 3, True),
        (66.67, 1, 3, False), (1 / 3, 1, 3, False),
    ],
)  # fmt: skip
def test_a_score_that_its_verdicts_do_not_add_up_to_is_refused(stated, right, n, agrees):
    answers = [Answer("q", "o", "A", i < right) for i in range(n)]
    named = replace(SIQA, metric="score")
    if agrees:
        assert scores.score_of({"score": stated, "accuracy": 7}, answers, named, 0, None).k == right
        return
    with pytest.raises(UserError, match=rf"siqa: OpenCompass says {stated}, its verdicts say 1/3"):
        scores.score_of({"score": stated, "accuracy": 100 / 3}, answers, named, 0, None)


def test_what_was_not_asked_is_said_set_by_set(make_cell):
    full = scores.score_of({"accuracy": 40.0}, ANSWERS, replace(SIQA, questions=5), 0, None)
    names = ["full", "limited", "long", "both", "without"]
    suite = make_cell().config.eval
    suite = replace(suite, datasets=[replace(SIQA, name=name) for name in names])
    found = {
        "full": full,
        "limited": replace(full, questions=20),
        "long": replace(full, too_long=2),
        "both": replace(full, questions=6, too_long=1),
    }
    assert scores.not_run(suite, found) == {
        "limited": "15 of 20 questions: limited",
        "long": "2 prompts: longer than the model's context",
        "both": "1 of 6 questions: limited; 1 prompts: longer than the model's context",
        "without": "left out by eval.without",
    }
