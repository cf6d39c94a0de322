"""Which reader a set has, and the options that its prompt shows."""

import pytest
from mmengine.config import ConfigDict

from osora_bench.evaluation.reading import corrections, solver


def config(post=None, judge="AccEvaluator", prompt="Q\nA. {x}\nB. {y}\nAnswer:", **more):
    """A set's configuration, as OpenCompass writes them."""
    evaluation = {"evaluator": {"type": judge}}
    if post is not None:
        evaluation["pred_postprocessor"] = {"type": post}
    template = {"type": "PromptTemplate", "template": prompt}
    return ConfigDict(infer_cfg={"prompt_template": template, **more}, eval_cfg=evaluation)


def some_function():
    """Stands for a post-processor that a configuration holds itself."""


def test_names_are_bare():
    assert corrections.named("a.b.last_option_postprocess") == "last_option_postprocess"
    assert corrections.named("x") == "x"
    assert corrections.named(some_function) == "some_function"
    assert corrections.named(None) == "None"


@pytest.mark.parametrize(
    "post",
    ["first_option_postprocess", "last_option_postprocess", "first_capital_postprocess",
     "last_capital_postprocess", "match_answer_pattern", "GPQA_Simple_Eval_postprocess",
     "opencompass.utils.text_postprocessors.first_option_postprocess"],
)  # fmt: skip
def test_what_is_read_by_a_letter_has_the_options_reader(post):
    reader = corrections.reader_of(config(post))
    row = {"x": "iron", "y": "tin"}
    assert reader.read("The answer is tin.", row) == "B"
    assert reader.read("neither of them", row) is None
    assert (reader.right("B", "B"), reader.right("B", "A")) == (True, False)
    assert [reader.possible(text) for text in ("A", "B", "C", "", "AB")] == [True, True] + 3 * [
        False
    ]
    assert reader.rule.startswith("an option's letter")


@pytest.mark.parametrize(
    ("post", "judge", "reader"),
    [
        ("gsm8k_postprocess", "Gsm8kEvaluator", corrections.NUMBER),
        ("gsm8k_postprocess", "AccEvaluator", corrections.NUMBER),
        ("math_postprocess_v2", "MATHEvaluator", corrections.FORMULA),
        (None, "MATHVerifyEvaluator", corrections.VERIFIED),
        ("math_postprocess", "MATHEvaluator", None),
        ("math_postprocess_v2", "AccEvaluator", None),
        (None, "AccEvaluator", None),
        ("some_postprocess", "AccEvaluator", None),
    ],
)
def test_other_sets_have_theirs_or_none(post, judge, reader):
    assert corrections.reader_of(config(post, judge)) is reader


def test_what_has_no_options_or_is_scored_by_perplexity_has_none():
    assert corrections.reader_of(config("first_option_postprocess", prompt="Q: {q}")) is None
    assert corrections.reader_of(ConfigDict(infer_cfg={}, eval_cfg={})) is None


def rounds(*turns):
    return {"round": [{"role": role, "prompt": text} for role, text in turns]}


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("A. {x}\nB. {y}", {"A": "{x}", "B": "{y}"}), ("A) {x}\nB) {y}", {"A": "{x}", "B": "{y}"}),
        ("(A) {x}\n(B) {y}", {"A": "{x}", "B": "{y}"}), ("A: Yes\nB: No", {"A": "Yes", "B": "No"}),
        ("A.Yes\nB.No\nC. {z} and {x}", {"A": "Yes", "B": "No", "C": "{z} and {x}"}),
        ("A. {x}", {}), ("", {}), ("B. {x}\nC. {y}", {}), ("A. {x}\nC. {y}", {}),
        ("A. {x}\nB. {y}\nD. {z}", {"A": "{x}", "B": "{y}"}), ("a. {x}\nb. {y}", {}),
        ("A. up\nB. down\nAnswer: A\nA. {x}\nB. {y}\nC. {z}", {"A": "{x}", "B": "{y}", "C": "{z}"}),
        ("A. up\nB. down\nC. no\nA. {x}\nB. {y}", {"A": "{x}", "B": "{y}"}),
        (rounds(("HUMAN", "A. up\nB. down"), ("BOT", "A"), ("HUMAN", "A. {x}\nB. {y}"),
                ("BOT", "A. no\nB. no")), {"A": "{x}", "B": "{y}"}),
        (rounds(("BOT", "A. up\nB. down")), {}), ({}, {}),
    ],
)  # fmt: skip
def test_options_are_those_of_the_last_turn_that_is_asked(prompt, options):
    assert corrections.options_of(config(prompt=prompt)) == options


def test_the_example_template_counts_where_no_other_says_anything():
    example = {"template": "A. {x}\nB. {y}"}
    options = {"A": "{x}", "B": "{y}"}
    assert corrections.options_of(config(prompt="", ice_template=example)) == options
    other = config(prompt="A. up\nB. down", ice_template=example)
    assert corrections.options_of(other) == {"A": "up", "B": "down"}
    alone = ConfigDict(infer_cfg={"ice_template": example})
    assert corrections.options_of(alone) == options


def test_columns_are_filled_in():
    shown = {"A": "{x}", "B": "{y} of {x}", "C": "Yes {}"}
    filled = {"A": "5", "B": "{x} of 5", "C": "Yes {}"}
    assert corrections.filled(shown, {"x": 5, "y": "{x}"}) == filled


def test_readers_of_numbers_and_formulas():
    number, formula, verified = corrections.NUMBER, corrections.FORMULA, corrections.VERIFIED
    assert number.read("#### 9,500", {}) == "9500"
    assert number.right("9500", "9,500")
    assert [number.possible(text) for text in ("5", "NULL")] == [True, False]
    for reader in (formula, verified):
        assert reader.read(r"\boxed{\frac12}", {}) == r"\frac12"
        assert reader.right("0.5", r"\frac{1}{2}") is True
    assert [formula.possible(text) for text in ("x", "no,sir")] == [True, False]
    assert [verified.possible(t) for t in ("[1]", "[]", "timeout", "x[1]")] == [True] + 3 * [False]


def test_what_is_written_otherwise_is_asked_of_the_solver(monkeypatch):
    asked = []
    monkeypatch.setattr(solver, "equal", lambda *pair: asked.append(pair))
    assert corrections.FORMULA.right("x + 1", "1 + x") is None
    assert asked == [("x+1", "1+x")]
