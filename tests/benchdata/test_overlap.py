"""Questions found in training rows, against a search that compares everything with everything."""

import random

import pytest

from osora_bench.benchdata.overlap import GRAM, SHORTEST, Overlap, Questions, words


def slow(questions, rows):
    """The definition, without any index."""
    texts = [words(row) for row in rows]

    def stands(part):
        return any(text[i : i + len(part)] == part for text in texts for i in range(len(text)))

    exact, near = [], []
    for number, parts in enumerate(questions):
        split = [words(part) for part in parts]
        longest = max(split, key=len)
        if len(longest) >= SHORTEST and stands(longest):
            exact.append(number)
        elif any(stands(part[i : i + GRAM]) for part in split for i in range(len(part) - GRAM + 1)):
            near.append(number)
    return Overlap(len(questions), tuple(exact), tuple(near))


def test_it_finds_what_a_comparison_of_all_with_all_finds():
    chance = random.Random(0)
    met = set()
    for _ in range(30):
        rows = [" ".join(chance.choices("abc", k=chance.randrange(3, 60))) for _ in range(6)]
        questions = [
            [" ".join(chance.choices("abc", k=chance.randrange(1, 16))) for _ in range(2)]
            for _ in range(8)
        ]
        copied = chance.choice(rows).split()
        start = chance.randrange(len(copied))
        questions.append([" ".join(copied[start : start + chance.randrange(4, 30)])])
        questions.append([" ".join([*copied[start : start + 14], "x"])])
        expected = slow(questions, rows)
        assert Questions(questions).in_rows(rows) == expected
        met |= {(bool(expected.exact), bool(expected.near))}
    assert met >= {(True, True), (True, False)}


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
    overlap = Questions([[question]]).in_rows([row])
    assert (overlap.exact, overlap.near) == (
        (0,) if found == "exact" else (),
        (0,) if found == "near" else (),
    )
