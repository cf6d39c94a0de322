"""What formula an output gives as its answer, and whether two formulas are one."""

from fractions import Fraction

import pytest

from osora_bench.evaluation.reading import formulas
from osora_bench.evaluation.reading.formulas import equal, is_formula, normal, number, read_formula


@pytest.mark.parametrize(
    ("output", "formula"),
    [
        # boxed
        (r"\boxed{x^2}", "x^2"), (r"\fbox{x^2}", "x^2"), (r"\boxed {x^2}", "x^2"),
        (r"\boxed{ 5 }", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2}", "1,2"), (r"\boxed{1}, \boxed{2}", "1,2"),
        (r"\boxed{1} or \boxed{2}", "1,2"),
        (r"\boxed{1}$, and $\boxed{2}$ or $y=\boxed{3}", "1,2,3"), (r"\boxed{1}. \boxed{2}", "2"),
        (r"\boxed{7} so \boxed{1} and \boxed{2}", "1,2"), (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{}", None), (r"\boxed{5", None), (r"The answer is \boxed{3}. So 5", "3"),
        # stated
        ("The answer is 3.5.", "3.5"), ("The answer is 3.", "3"), ("The answers are 1, 2.", "1, 2"),
        ("Answer: $x^2$ as was shown", "x^2"), ("**Answer:** x^2", "x^2"),
        ("The answer is thus 5.", "5"),
        ("The answer is therefore 5", "5"), ("The answer is then 5", "5"),
        ("The answer is simply 5", "5"),
        ("The answer is just 5", "5"), ("The answer was 5", "5"), ("The answer would be 5", "5"),
        ("The answer to this question is x+1", "x+1"), ("The answer for it is x+1", "x+1"),
        ("The answer of this is x+1", "x+1"), ("The answer is:\n$5$", "5"),
        ("THE ANSWER IS 5! Yes 7", "5"),
        ("The answer is 5? Or 7", "5"), ("The answer is $$5$$, I say.", "5"),
        (r"The answer is \(5\), I say.", "5"),
        (r"The answer is \[5\], I say.", "5"), ("The answer is $1$ and $2$.", "1,2"),
        ("The answer is $1$ or $2$", "1,2"),
        ("The answer is $1$ but not $2$.", "1"), ("The answer is $1$. Then $2$ is not.", "1"),
        (r"The answer is \$5", r"\$5"), ("The answer is 5 apples of all those 18 here", "18"),
        ("The answer is x = 5", "5"), ("The answer is y = x + 5", "x + 5"),
        ("The answer is x + y = 5", "x + y = 5"), ("The answer is east.", "east"),
        ("The answer is 4.\nThe answer is 5.", "5"), ("The answer is 4. No, the answer is 5.", "5"),
        ("The answer is 4. That answer is correct.", "4"), ("The answer: 4\n\nMy answer is:", "4"),
        # the last one
        ("So $x = 5$", "5"), ("So $x = 5$ is it.", "5"), ("First $7$.\nSo $x = 5$", "5"),
        ("First $7$.\nNo more", "7"),
        ("x^2 + 1", "x^2 + 1"), ("It makes 7.\nx^2", "x^2"),
        ("It makes 18 of all the apples here.", "18"),
        ("It is 1,234 of them all, not one more", "1,234"),
        ("It is 3 / 4 of them all and no more", "3 / 4"),
        ("It is -7 of them all, and that is it", "-7"), ("east", "east"), ("to the east", None),
        ("", None),
        ("I do not know how to do this at all", None),
        ("Well.\nNothing of it is clear to me here", None),
        ("x" * 1001, None), (r"\boxed{" + "1" * 998 + "}", "1" * 998),
        (r"\boxed{" + "1" * 1001 + "}", None),
        ("The answer is x + 1,", "x + 1"), ("The answer is .5", ".5"),
        ("Well.\nSo $x+1$ is it, I say", "x+1"), ("Well, $x+1$ is it, I say", "x+1"),
        # turns
        (r"\boxed{5}" + "\n\nProblem:\nWhat is 1+1?\n" + r"\boxed{2}", "5"),
        (r"Problem: What? \boxed{5}", "5"),
    ],
)  # fmt: skip
def test_a_formula_is_read(output, formula):
    assert read_formula(output) == formula


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\left( 1, 2 \right)", "(1,2)"), (r"\displaystyle x", "x"), (r"1\!2", "12"),
        (r"a\,b", "ab"),
        (r"a\:b\;c", "abc"), (r"a\quad b\qquad c", "abc"), (r"\big(1\Big)", "(1)"),
        (r"\bigg(1\Bigg)", "(1)"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"), (r"\tfrac{1}{2}", r"\frac{1}{2}"),
        (r"\cfrac{1}{2}", r"\frac{1}{2}"),
        (r"\text{ east }", "east"), (r"\textbf{a}", "a"), (r"\textrm{a}", "a"),
        (r"\mathrm{a}", "a"),
        (r"\mathbf{a}", "a"), (r"\mbox{a}", "a"), (r"\textit{a}", "a"), (r"a\ b~c", "abc"),
        (r"45^\circ", "45"), (r"45^{\circ}", "45"), (r"45\degree", "45"), ("45\u00b0", "45"),
        (r"10\%", "10"), (r"\$10", "10"), ("$10$", "10"), ("1{,}234", "1234"), ("1,234", "1234"),
        ("1,234,567", "1234567"), ("(1,234)", "(1,234)"), ("[1,234)", "[1,234)"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac 1 2", r"\frac{1}{2}"), (r"\frac1{25}", r"\frac{1}{25}"),
        (r"\frac{1}2", r"\frac{1}{2}"),
        (r"\sqrt2", r"\sqrt{2}"), (r"\sqrt x", r"\sqrt{x}"), (r"x\le 2", "x<=2"),
        (r"x\leq2", "x<=2"),
        (r"x\ge2", "x>=2"), (r"x\geq 2", "x>=2"), ("x = 5", "5"), ("f(x) = x^2", "x^2"),
        (r"x \in [1,2]", "[1,2]"),
        ("5 units", "5"), ("5 square units", "5"), ("5 cm", "5"), ("5 cubic inches", "5"),
        ("5 feet", "5"),
        ("5 meters", "5"), ("5 dollars", "5"), ("5 degrees", "5"), ("5 hours", "5"),
        ("5 minutes", "5"),
        ("5 miles", "5"), ("5 cents", "5"), ("5 points", "5"), ("5 ways", "5"), ("5 people", "5"),
        ("5 years", "5"), ("5 cm^2", "5"), ("5 cm^{2}", "5"), (r"5\text{ cm}^2", "5"),
        ("5.", "5"), ("a  b", "ab"),
        ("y = x = 5", "y=x=5"), (r"\lefteqn", r"\lefteqn"), (r"\leftarrow", r"\leftarrow"),
        (r"\sqrt{10}", r"\sqrt{10}"),
    ],
)  # fmt: skip
def test_formulas_written_in_two_ways(one, other):
    assert normal(one) == other
    assert normal(other) == other


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", Fraction(5)), ("-5", Fraction(-5)), ("+5", Fraction(5)), ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)), ("5.", Fraction(5)), ("1/2", Fraction(1, 2)),
        ("-1/2", Fraction(-1, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)), (r"-\frac{1}{2}", Fraction(-1, 2)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        (r"-\frac{-1}{2}", Fraction(1, 2)), (r"\frac{1}{-2}", Fraction(-1, 2)), ("1/0", None),
        (r"\frac{1}{0}", None),
        ("x", None), ("1/2/3", None), ("1e3", None), ("9" * 30, Fraction(10**30 - 1)),
        ("9" * 31, None), ("", None),
    ],
)  # fmt: skip
def test_the_value_of_a_number(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("value", "gold", "same"),
    [
        ("0.5", r"\frac{1}{2}", True), (r"\frac12", r"\frac{1}{2}", True), ("10", r"10\%", True),
        ("3.7", "3", False), ("5", "-5", False), ("x=5", "5", True), ("east", "West", False),
        (r"\text{East}", "east", True), ("-x=5", "5", False), ("5", r"-\theta=5", False),
        ("", "5", False),
    ],
)  # fmt: skip
def test_what_needs_no_algebra(value, gold, same):
    def solve(*_):
        pytest.fail("asked for")

    assert equal(value, gold, solve) is same


def test_the_rest_is_algebras():
    asked = []

    def solve(*pair):
        asked.append(pair)

    assert equal("x + 1", r"1+ x\,", solve) is None
    assert equal("2", r"\sqrt4", lambda *_: True) is True
    assert equal(r"\pi", "3", lambda *_: False) is False
    assert asked == [("x+1", "1+x")]


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("5", True), (r"\pi", True), ("x", True), ("(a)", True), ("east", True), ("x,y", True),
        ("x=y", True),
        ("a^b", True), ("", False), ("?", False), ("Idonotknowhowtodothis", False),
        ("no,sir", False),
        ("Thereare5waystodothisinall", False),
    ],
)  # fmt: skip
def test_what_opencompass_read_has_an_answers_form(value, form):
    assert is_formula(value) is form


def test_the_closing_brace_is_the_opening_ones():
    assert formulas._closing("{a{b}c}d", 0) == 7
    assert formulas._closing(r"{a\}b}", 0) == 6
    assert formulas._closing("a{b}", 0) is None
    assert formulas._closing("{a", 0) is None
    assert formulas._closing("{" + "a" * 998 + "}", 0) == 1000
    assert formulas._closing("{" + "a" * 999 + "}", 0) is None
