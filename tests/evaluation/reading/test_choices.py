"""What option an output names, one line for each way in which people and models say it."""

import pytest

from osora_bench.evaluation.reading.choices import read_choice

METALS = {"A": "copper", "B": "iron", "C": "tin", "D": "a piece of gold, or what looks like it"}


@pytest.mark.parametrize(
    "letter",
    [
        "B", "b", " B ", "(B)", "[B]", "{B}", "<B>", "*B*", "**B**", "_B_", "`B`", '"B"', "'B'",
        "$B$", r"\(B\)", r"\[B\]", r"\text{B}", r"\textbf{B}", r"\textrm{B}", r"\mathrm{B}",
        r"\mathbf{B}", r"\mathsf{B}", r"\boxed{B}", r"\fbox{B}", r"\bf{B}", r"$\boxed{\text{B}}$",
        r"\boxed {B}", r"\text (B)", "<b>B</b>", "<answer>B</answer>", "B.", "B:", "B,", "B;", "B!",
        "B?", "B)", "B - iron", "B \u2013 iron", "B \u2014 iron", "B => iron", "B = iron",
        "B | iron", "B/", "B\\", "B\nas it rusts", "((B))",
    ],
)  # fmt: skip
def test_a_letter_in_its_dress(letter):
    assert read_choice(letter, METALS) == "B"
    assert read_choice(f"The answer is {letter}", METALS) == "B"


@pytest.mark.parametrize(
    "said",
    [
        "The answer is B", "ANSWER IS B", "the answer: B", "Answer = B", "answer:B",
        "**Answer:** B", "My ans is B", "The option is B", "The choice is B",
        "Answer to the question: B",
        "Answer for this one is B", "The answer of mine is B", "Answer here is B",
        "The answer choice is B", "The answer option is B", "The answer letter is B",
        "The answer to what rusts, in my view, is B", "The answer was B", "The answer would be B",
        "The answer should be B", "The answer must be B", "The answer will be B",
        "The answers are: no. The answer is: B", "It is B", "It's B.", "That is (B)",
        "This must be B", "The answer to this question is B.", "The answer for this is (B)",
        "It should be *B*", "That would be $B$!", "I choose B", "I chose B", "Pick B", "I select B",
        "I'd go with B", "Choosing B", "I am going with B", "Answer B", "Option B", "> Choice B",
        "<answer>B", "The answer is most likely B", "The answer is likely B",
        "The answer is probably B", "The answer is clearly B", "The answer is therefore B",
        "The answer is thus, B", "The answer is definitely B", "The answer is option B",
        "The answer is the option B", "The answer is choice B", "The answer is letter B",
        "The answer is the letter: B", r"So \boxed{B}", r"So \fbox{ B }", r"So \boxed{\text{iron}}",
        r"So \boxed {(B) iron}", r"Hence \boxed{\textbf{(B)} iron}.", "B is correct",
        "(B) is the correct one", "B is the right answer", "So B is right.", "B as my best answer",
        "Here, B being the answer", "B is true", "B. iron is the best answer",
        "B) iron, a metal is the answer", "Clearly: B is the very best",
    ],
)  # fmt: skip
def test_a_statement(said):
    assert read_choice(f"Copper does not rust.\n{said}", METALS) == "B"
    assert read_choice(f"The answer is A? I doubt it.\n\n{said}", METALS) == "B"


@pytest.mark.parametrize(
    "said",
    [
        "A or B", "A and B", "A, B", "A / B", "A & B", "A, or B", "A, and B", "(A) or (B)",
        "The answer is A or B", "The answer is A, B and C", "The answer is (A) and option (B).",
        "Answer: A/B",
        "Both", "I", "I do not know", "Copper wire",
        "E", "The answer is E", "Z.", "Answer: none", "", "  ", "\n", "A tin wire, I think",
        "Not B", "I am sure that it is not copper", "a", "A piece of cake", "irony",
        "Iron, as well as tin",
        "The answer is not clear", "A. copper\nB. iron\nC. tin\nI cannot tell which",
    ],
)  # fmt: skip
def test_what_names_none(said):
    expected = {"a": "A", "Iron, as well as tin": "B"}  # one letter; what stands first, in a clause
    assert read_choice(said, METALS) == expected.get(said)


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("iron", "B"), ("Iron", "B"), ("IRON.", "B"), ("**iron**", "B"), ("iron!", "B"),
        ("It rusts.\niron", "B"), ("iron\nIt rusts.", "B"), ("iron, since it rusts", "B"),
        ("iron: it rusts", "B"), ("iron; it rusts", "B"), ("B. iron", "B"), ("B iron", "B"),
        ("B iron, which rusts", "B"), ("A. iron", "A"), ("The answer is A. iron", "A"),
        ("The answer is iron.", "B"), ("The answer is: tin\nIt is soft.", "C"),
        ("a piece of gold, or what looks like it", "D"), ("a piece of gold", None),
        ("A piece of gold, or what looks like it.", "D"),
        ("a piece of gold or what looks like it", "D"),
        ("The answer is a piece of gold or what looks like it\nIt shines.", "D"),
        ("a piece of gold, or what looks like it; tin", None),
        ("D a piece of gold, or what looks like it", "D"),
        ("B because iron rusts", "B"), ("B since it rusts", "B"), ("B as it rusts", "B"),
        ("B for it rusts", "B"), ("B which rusts", "B"), ("B that rusts", "B"),
        ("B given its rust", "B"), ("B due to rust", "B"), ("B over tin", "B"),
        ("b because it rusts", None), ("(b) because it rusts", "B"), ("B rusts", None),
        ("**B** rusts", "B"), ("The answer is A. Wait. The answer is C.", "C"),
        ("The answer is A. No, the answer is not C.", "A"),
        ("The answer is B, not A", "B"), ("It isn't so that the answer is A. It is tin.", "A"),
        ("I wonder whether A is correct. B is correct.", "B"), ("If B is correct, I win", None),
        ("Neither A is correct nor B is correct", None), ("Not the B is right. C is right", "C"),
        ("It is wrong that A is right. D is right.", "D"),
        ("C\n\nQuestion: and now?\nA", "C"), ("C<|im_end|>A", "C"), ("Question: which?\nC", "C"),
        ("C\nWhat next?\nA. up\nB. down\nAnswer: A", "C"),
        ("A. copper\nB. iron\nC. tin\nThe answer is C", "C"),
        ("Well.\nA. copper\nB. iron\nThe answer is B", "B"),
    ],
)  # fmt: skip
def test_words_and_letters(said, letter):
    assert read_choice(said, METALS) == letter


def test_of_two_options_the_longer_one_that_is_said_counts():
    options = {"A": "iron", "B": "iron, and tin", "C": "tin"}
    assert read_choice("iron, and tin", options) == "B"
    assert read_choice("iron", options) == "A"
    assert read_choice("The answer is iron, and tin.", options) == "B"
    assert read_choice("iron", {"A": "iron", "B": "iron"}) is None
    assert read_choice("Iron.", {"A": "iron", "B": "iron"}) is None
    assert read_choice("A", {"A": "", "B": "iron"}) == "A"
    assert read_choice("A iron", {"A": "", "B": "iron"}) is None
    assert read_choice("!!", {"A": "?", "B": "!!"}) == "B"


def test_options_that_are_told_apart_by_signs_alone():
    options = {"A": "x + 1", "B": "x - 1", "C": "3.5", "D": "35"}
    assert [read_choice(text, options) for text in options.values()] == list("ABCD")
    assert read_choice("The answer is x - 1", options) == "B"
    assert read_choice("x 1", options) is None
