"""What number an output gives as its answer, one line for each way of writing it."""

import pytest

from osora_bench.evaluation.reading.numbers import equal, is_number, read_number


@pytest.mark.parametrize(
    ("output", "number"),
    [
        # how a number is written
        ("18", "18"), ("-18", "-18"), ("- 18", "-18"), ("0.5", "0.5"), (".5", ".5"),
        ("9,500", "9500"), ("9 500", "9500"), ("1,234,567.25", "1234567.25"), ("12 345", "12345"),
        ("9{,}500", "9500"), (r"9,\!500", "9500"), (r"9\,500", "9500"), (r"9\;500", "9500"),
        (r"9\ 500", "9500"), (r"9{\,}500", "9500"), ("9~500", "9500"), ("1,234.00", "1234.00"),
        ("\u22125", "-5"), ("9\u00a0500", "9500"), ("_18_", "18"), ("x_18 of 3", "3"),
        ("3 of x_18", "3"),
        # two numbers that are one value
        ("20-30", "20-30"), ("20 - 30", "20-30"), ("20\u201330", "20\u201330"), ("1/2", "1/2"),
        ("3:4", "3:4"),
        (r"\frac{1}{2}", "1/2"), (r"\dfrac{1}{2}", "1/2"), (r"\tfrac {1} {2}", "1/2"),
        # marked
        ("#### 18", "18"), ("####18", "18"), ("#### $18", "18"), ("#### \u20ac18", "18"),
        ("#### \u00a318", "18"), ("#### **18**", "18"), ("#### (18)", "18"), ("#### [18]", "18"),
        ("#### {18}", "18"), ("#### ~18", "18"), ("#### = 18", "18"), ("#### : 18", "18"),
        ('#### "18"', "18"), ("#### '18'", "18"), ("#### `18`", "18"), ("#### _18_", "18"),
        (r"#### \(18\)", "18"), (r"#### \[ 18 \]", "18"), (r"#### \$18", "18"),
        (r"#### 18\%", "18"),
        ("#### 18\nThat took 3 steps.", "18"), ("So it is 7.\n#### 18 apples, not 5", "18"),
        ("#### 1. First\nThe answer is 5.", "5"), ("#### 2) Then\nThe answer is 5.", "5"),
        ("The answer is 5.\n#### 18", "18"), ("#### none, 5 or 6", "6"),
        # boxed
        (r"\boxed{18}, by 3 steps", "18"), (r"\fbox{18}, by 3 steps", "18"),
        (r"\boxed {18} 3", "18"),
        (r"\boxed{x = 18} 3", "18"), (r"\boxed{\text{18 apples}} 3", "18"),
        (r"\boxed{\textbf{18}} 3", "18"),
        (r"\boxed{\mathbf{18}} 3", "18"), (r"\boxed{\mathrm{18}} 3", "18"),
        (r"\boxed{\mbox{18}} 3", "18"),
        (r"\boxed{\frac{1}{2}} 3", "1/2"), (r"\boxed{{{18}}} 3", "18"),
        (r"\boxed{3} or \boxed{18} 5", "18"),
        (r"\boxed{18}. The answer is 19.", "19"), (r"The answer is 19. \boxed{18}", "18"),
        (r"\boxed{} 18 3", "3"),
        # stated
        ("The answer is 18. I took 3 steps.", "18"), ("answer: 18 (3 steps)", "18"),
        ("Answer = 18, 3", "18"),
        ("**Answer:** 18 in 3 steps", "18"), ("THE ANSWER IS: 18 in 3", "18"),
        ("The answer was 18 in 3", "18"),
        ("The answer would be 18 in 3", "18"), ("The answer are 18 in 3", "18"),
        ("The answer to this question is 18 in 3 steps", "18"),
        ("The answer for it is 18 in 3", "18"),
        ("The answer of mine is 18 in 3", "18"), ("The answer is about 18 in 3", "18"),
        ("The answer is approximately $18 in 3", "18"), ("The answer is equal to 18 in 3", "18"),
        ("The answer is exactly 18 in 3", "18"), ("The answer is a total of 18 in 3", "18"),
        ("The answer is only 18 in 3", "18"), ("The answer is just 18 in 3", "18"),
        ("The answer is USD 18 in 3", "18"), ("The answer is US $18 in 3", "18"),
        ("The answer is 3 + 15 = 18 apples", "18"), ("The answer is 3 + 15 = 18 of 5", "18"),
        ("The answer is that 7 of 18 do. I asked 3.", "18"), ("The answer is Kim! 3 do.", "3"),
        (r"The answer is $\boxed{18}$ in 3 steps.", "18"),
        ("The answer is 5. The answer is 18.", "18"),
        ("The answer is not known, 18 or 3", "3"), ("The answer is clear.\n18", "18"),
        ("My answers: 5, 6", "6"),
        # the last one
        ("First 3, then 18", "18"), ("18 apples.", "18"), ("It costs $18.", "18"),
        ("x18 and 3", "3"),
        ("18.5.", "18.5"), ("None", None), ("", None), ("eighteen", None),
        # what LaTeX sets as text
        (r"\text{The answer is }18\text{ of }20", "18"), (r"\textbf{The answer is }18 of 20", "18"),
        (r"\mathbf{The answer is }18 of 20", "18"), (r"\mathrm{The answer is }18 of 20", "18"),
        (r"\mbox {The answer is }18 of 20", "18"),
        # turns
        ("18\n\nQuestion: What is 1 and 1?\n#### 2", "18"), ("Question: What?\n#### 18", "18"),
        ("18<|im_end|>5", "18"),
    ],
)  # fmt: skip
def test_a_number_is_read(output, number):
    assert read_number(output) == number


@pytest.mark.parametrize(
    ("value", "gold", "same"),
    [
        ("9500", "9,500", True), ("9500.00", "9500", True), ("0.5", ".5", True), ("-5", "-5", True),
        ("9500", " 9500 ", True), ("5", "-5", False), ("1/2", "0.5", False), ("20-30", "20", False),
        ("950", "9500", False), ("5", "five", False),
    ],
)  # fmt: skip
def test_numbers_are_compared_by_value(value, gold, same):
    assert equal(value, gold) is same


@pytest.mark.parametrize(
    ("value", "number"),
    [("18", True), ("-1.5", True), ("NULL", False), ("NaN", False), ("Infinity", False)],
)  # fmt: skip
def test_what_opencompass_read_is_a_number_or_none(value, number):
    assert is_number(value) is number
