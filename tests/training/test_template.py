"""Rows that a template cannot be filled with, and templates that are none, are told by place."""

import json

import pytest

from osora_bench.common.errors import UserError
from osora_bench.planning.config import SourceConfig, TaskConfig
from osora_bench.training import data
from osora_bench.training.template import Template


def task(place, **more):
    """Training on one file of two rows."""
    source = {"path": str(place), "rows": 2, "prompt": "{q}", "response": "{a}", **more}
    return TaskConfig(sources=[SourceConfig(**source)], max_rows=None, validation_rows=None)


def told(tmp_path, content, name="rows.jsonl", rows=2, **more):
    """What is said of training on a file."""
    place = tmp_path / name
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as refused:
        data.dialogues(task(place, rows=rows, **more), 0)
    return str(refused.value)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD = {"q": "What is 1 and 1?", "a": "2"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"q": None, "a": "2"}, "{q} is null"),
        ({"q": "Q", "a": None}, "{a} is null"),
        ({"q": ["Q"], "a": "2"}, "{q} is a list"),
        ({"q": {"stem": "Q"}, "a": "2"}, "{q} is an object"),
        ({"q": "Q", "a": ""}, "the response is empty"),
        ({"q": "Q", "a": " \n\t"}, "the response is empty"),
        ({"q": "half \ud83d", "a": "2"}, "half a character (U+D83D, a lone surrogate)"),
        ({"q": "Q"}, "the template asks for 'a'; the row has q"),
    ],
)
def test_what_no_row_should_train_is_told_with_file_and_line(row, why, tmp_path):
    found = told(tmp_path, lines(GOOD, row))
    assert found.startswith(f"{tmp_path}/rows.jsonl, line 2: {why}")


def test_nulls_are_told_in_what_a_template_takes_only(tmp_path):
    found = told(tmp_path, json.dumps([GOOD, {"q": None, "a": "2"}]), "rows.json")
    assert "rows.json, row 2: {q} is null" in found
    place = tmp_path / "rows.jsonl"
    place.write_text(lines(*[{**GOOD, "note": None}] * 2))
    assert data.dialogues(task(place), 0) == [data.Dialogue(GOOD["q"], "2")] * 2


def test_a_response_of_constant_words_alone_says_nothing_of_its_row(tmp_path):
    row = {"q": "Q", "a": ""}
    assert "response is empty" in told(tmp_path, lines(GOOD, row), response="The answer is {a}.")


def test_null_and_missing_options_are_told(tmp_path):
    options = {"options": ["x", "y"], "prompt": "{A} {B}", "response": "{answer}"}
    row = {"x": "1", "y": "2"}
    assert "line 2: the option 'y' is null" in told(
        tmp_path, lines(row, {**row, "y": None}), **options
    )
    assert "line 2: the option 'y' is not in the row: x" in told(
        tmp_path, lines(row, {"x": "1"}), **options
    )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{q.upper}", "{q.upper} names no column; a value inside one is {q[upper]}"),
        ("{question.stem}", "a value inside one is {question[stem]}"),
        ("{q.__class__.__name__}", "names no column"),
        (r"\boxed{}", "{} names no column"),
        ("{0}", "{0} names no column"),
        ("a set {", "Single '{' encountered"),
        ("a set }", "Single '}' encountered"),
        (r"\frac{1}{2}", "{1} names no column"),
        ("{q[}", "expected '}' before end of string"),
        ("{q!x}", "no such conversion"),
        ("{q:{a}}", "a field within a field's format"),
    ],
)
@pytest.mark.parametrize("part", ["prompt", "response"])
def test_a_template_that_is_none_is_told_with_what_to_write(template, why, part, tmp_path):
    found = told(tmp_path, lines(GOOD, GOOD), **{part: template})
    assert found.startswith(f"task.sources.0.{part}: ")
    assert why in found
    assert "written {{ }}" in found


def test_braces_that_a_template_means_as_such_are_told(tmp_path):
    found = told(tmp_path, lines(GOOD, GOOD), response=r"\boxed{x} {a}")
    assert "line 1: the template asks for 'x'; the row has a, q" in found
    assert "written {{ }}" in found


@pytest.mark.parametrize(
    ("template", "row"),
    [
        (r"\boxed{{{a}}}", {"a": 2}),
        ("{question[stem]} {question[choices][0][text]}",
         {"question": {"stem": "S", "choices": [{"text": "T"}]}}),
        ("{Record ID}: {x:.2f} {y!r} {z:>5}", {"Record ID": "r", "x": 1.5, "y": "é", "z": "z"}),
        ("{a} {b} {c}", {"a": True, "b": 1e300, "c": ""}),
    ],
)  # fmt: skip
def test_what_is_a_template_is_str_formats(template, row):
    assert Template(template, "here").filled(row) == template.format(**row)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{q[stem]}", "{q[stem]} asks for 'stem' of a text"),
        ("{q[0]}", "{q[0]} asks for 0 of a text"),
        ("{q:.2f}", "Unknown format code 'f'"),
    ],
)
def test_a_template_that_a_rows_values_are_not_for_names_the_row(template, why, tmp_path):
    found = told(tmp_path, lines(GOOD, GOOD), prompt=template)
    assert "rows.jsonl, line 1: " in found
    assert why in found


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.replace("1?", "é?").encode("latin-1"), "line {}: not UTF-8 ("),
        (lambda t: t.replace("1?", "€?").encode("cp1252"), "line {}: not UTF-8 ("),
        (lambda t: t.encode("utf-16"), "line 1: not UTF-8 ("),
        (lambda t: t.encode("utf-8-sig"), "line 1: begins with a byte order mark"),
    ],
    ids=["latin-1", "cp1252", "utf-16", "bom"],
)
def test_text_in_another_encoding_is_told_with_file_and_line(name, change, why, tmp_path):
    text = {
        "rows.jsonl": lines({"q": "Q", "a": "1"}, GOOD),
        "rows.json": "[\n" + json.dumps(GOOD) + "]",
        "rows.csv": "q,a\nWhat is 1?,2\n",
    }[name]
    assert f"{tmp_path}/{name}, {why.format(2)}" in told(tmp_path, change(text), name)


def test_a_csv_field_that_is_too_long_and_a_quote_that_is_open_are_told(tmp_path):
    long = "x" * 131_073
    assert "rows.csv, line 3: field larger than field limit (131072)" in told(
        tmp_path, f"q,a\n1,2\n{long},2\n", "rows.csv"
    )
    assert "rows.csv, line" in told(tmp_path, 'q,a\n"1,2\n' + f"{long},2\n" * 2, "rows.csv")


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_what_is_no_json_number_is_told(value, tmp_path):
    found = told(tmp_path, f'{lines(GOOD)}{{"q": {value}, "a": "2"}}\n')
    assert f"line 2: not JSON ({value} is no JSON value)" in found
