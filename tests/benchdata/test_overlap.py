"""Questions found in training rows, against a search that compares everything with everything."""

import random

import pytest

from osora_bench.benchdata.overlap import GRAM, SHORTEST, Overlap, Question, Questions, words


def slow(questions, rows):
    """The definition, without any index."""
    texts = [words(row) for row in rows]

    def stands(part, text):
        return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))

    exact, near = [], []
    for number, question in enumerate(questions):
        wordings = [[words(part) for part in wording] for wording in question.wordings]
        parts = [part for wording in wordings for part in wording]
        parts += [words(part) for part in question.beside]
        grams = [part[i : i + GRAM] for part in parts for i in range(len(part) - GRAM + 1)]
        if any(
            max(map(len, wording)) >= SHORTEST and all(stands(part, text) for part in wording)
            for wording in wordings
            for text in texts
        ):
            exact.append(number)
        elif any(stands(gram, text) for gram in grams for text in texts):
            near.append(number)
    return Overlap(len(questions), tuple(exact), tuple(near))


def test_it_finds_what_a_comparison_of_all_with_all_finds():
    chance = random.Random(0)
    met = set()

    def texts(most):
        count = chance.randrange(1, 3)
        return tuple(
            " ".join(chance.choices("abc", k=chance.randrange(1, most))) for _ in range(count)
        )

    for _ in range(30):
        rows = [" ".join(chance.choices("abc", k=chance.randrange(3, 60))) for _ in range(6)]
        questions = [Question((texts(12), texts(8)), texts(16)) for _ in range(8)]
        copied = chance.choice(rows).split()
        start = chance.randrange(len(copied))
        stretch = " ".join(copied[start : start + chance.randrange(4, 30)])
        questions += [Question(((stretch,),)), Question(((stretch, "a b"),))]
        questions.append(Question((("x y",),), (" ".join([*copied[start : start + 14], "x"]),)))
        expected = slow(questions, rows)
        assert Questions(questions).in_rows(rows) == expected
        met |= {(bool(expected.exact), bool(expected.near))}
    assert met >= {(True, True), (True, False)}


LONG = " ".join(f"w{i}" for i in range(20))


@pytest.mark.parametrize(
    ("question", "row", "found"),
    [
        (Question((("is it so or not",),), (LONG,)), f"{LONG} is it so", "near"),  # the passage
        (Question((("is it so or not",),), (LONG,)), "Is it so, or not? Yes.", "exact"),
        (Question((("is it so or not",),), ("he ate a ripe pear",)), "he ate a ripe pear", None),
        (Question((("Al fell down the hill", "Why?"),)), "Why? Al fell down the hill.", "exact"),
        (Question((("Al fell down the hill", "Why?"),)), "Al fell down the hill. How?", None),
        (Question((("He ate a ripe pear",), ("He ate a ripe fig",))), "he ate a ripe fig", "exact"),
        (Question((("", ""),)), "he ate a ripe plum", None),
    ],
)  # fmt: skip
def test_a_question_is_its_own_texts_and_not_what_others_share(question, row, found):
    overlap = Questions([question]).in_rows([row])
    assert (overlap.exact, overlap.near) == (
        (0,) if found == "exact" else (),
        (0,) if found == "near" else (),
    )


@pytest.mark.parametrize(
    ("question", "row", "found"),
    [
        ("Which of these is a metal?", "Q: WHICH of these\nis a metal (A) iron", "exact"),
        ("Which of these is a metal?", "Which of these is a mineral?", None),
        ("Iron or tin?", "Iron or tin?", None),  # too short to say anything
        (" ".join(f"w{i}" for i in range(20)), " ".join(f"w{i}" for i in range(3, 16)), "near"),
        (" ".join(f"w{i}" for i in range(20)), " ".join(f"w{i}" for i in range(3, 15)), None),
        ("does it cost 1,000 dollars", "Does it cost $1 000 dollars?", "exact"),
    ],
)
def test_words_count_and_not_what_stands_between_them(question, row, found):
    overlap = Questions([Question(((question,),))]).in_rows([row])
    assert (overlap.exact, overlap.near) == (
        (0,) if found == "exact" else (),
        (0,) if found == "near" else (),
    )
