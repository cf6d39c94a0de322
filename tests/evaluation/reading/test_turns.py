"""Where an answer's turn ends, and what signs become before anything is read."""

import pytest

from osora_bench.evaluation.reading.turns import first_read, plain


def turns(output):
    """All of an output's turns that are read, in their order."""
    seen = []
    assert first_read(output, seen.append) is None
    return seen


@pytest.mark.parametrize(
    "end",
    [
        "<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<|user|>",
        "<|assistant|>", "<im_end>", "</s>", "[INST]", "[/INST]", "\nQuestion:", "\nProblem:",
        "\nQ:", "\nHuman:", "\nUser:", "\n## Question 2:", "\n**Problem 12 :", "\n  Q3:",
        ". Question:", "! Problem:", "? Question 2:", "3 Question:", "} Problem:", "$ Question:",
        "* Question:", ") Problem 4:", ".Question:",
    ],
)  # fmt: skip
def test_a_turn_ends(end):
    first, second = turns(f"It is five{end} next")
    assert second == "next"
    assert first == "It is five" + (end[0] if end[0] in ".!?3}$*)" else "")


@pytest.mark.parametrize(
    "text",
    ["no Question: here", "a question: here", "User said", "\nQuestions:", "<s> x", "\nAnswer: 5",
     ". problem: x", "the Q: of it"],
)  # fmt: skip
def test_a_turn_goes_on(text):
    assert turns(f"It is five{text}") == [f"It is five{text}"]


def test_the_first_reader_and_the_first_turn_that_hold_anything_count():
    def digits(turn):
        return turn if turn.isdigit() else None

    assert first_read("no</s>7</s>8", digits) == "7"
    assert first_read("no</s>7</s>8", digits, lambda turn: turn.upper()) == "NO"
    assert first_read("7</s>8", digits, lambda turn: turn.upper()) == "7"
    assert first_read("", lambda turn: "x") is None
    assert first_read(" \n</s> 7", lambda turn: "x" + turn) == "x7"


def test_signs_are_plain_ones():
    spaces = "\u00a0\u2009\u202f\u2002\u2003\u200a\u3000"
    assert plain(f"a{spaces}b") == "a" + " " * 7 + "b"
    assert plain("\u22125\uff1a \u201cit\u2019s\u201d\u200b") == '-5: "it\'s"'
    assert plain("  a\r\nb \n") == "a\nb"
    assert plain("\u00e9\u2014") == "\u00e9\u2014"


def test_what_is_longer_than_any_answer_is_read_up_to_a_bound():
    assert plain("x" * 19_999 + "yz") == "x" * 19_999 + "y"
