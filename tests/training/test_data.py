"""Training rows: what is refused, and which tokens carry the loss."""

import json
import random
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.planning.config import ExcludeConfig, SourceConfig, TaskConfig
from osora_bench.training import data
from osora_bench.training import rows as rows_module
from osora_bench.training.data import Dialogue
from osora_bench.training.rows import read_rows


def jsonl(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def source(path, **more):
    return SourceConfig(path=path, **{"rows": 2, "prompt": "{q}", "response": "{a}", **more})


def test_a_missing_file_names_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path))
    with pytest.raises(UserError, match=rf"{tmp_path}/x.jsonl: no such file. OSORA_DATA names"):
        read_rows("x.jsonl", 1)


def test_a_broken_line_is_named(tmp_path):
    path = jsonl(tmp_path, '{"q": 1}', '{"q": ')
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: not JSON"):
        read_rows(path, 2)


def test_a_line_that_is_no_object_is_named(tmp_path):
    with pytest.raises(UserError, match=r"line 1: not a JSON object"):
        read_rows(jsonl(tmp_path, "[1]"), 1)


def test_another_number_of_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"1 rows, but the configuration says 2"):
        read_rows(jsonl(tmp_path, "{}"), 2)


def test_a_csv_with_a_short_row_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("q,a\n1,2\n3\n")
    with pytest.raises(UserError, match=r"row 2: another number of columns"):
        read_rows(str(path), 2)


def test_an_unknown_kind_of_file_names_those_that_can_be_read(tmp_path):
    (tmp_path / "rows.tsv").write_text("")
    with pytest.raises(UserError, match=r"Valid: .csv, .json, .jsonl"):
        read_rows(str(tmp_path / "rows.tsv"), 0)


def test_a_template_without_its_column_names_the_row_and_its_columns(tmp_path):
    path = jsonl(tmp_path, '{"q": 1, "a": 2}', '{"q": 1, "b": 2}')
    with pytest.raises(UserError, match=r"line 2: the template asks for 'a'; the row has b, q"):
        data.dialogues(TaskConfig(sources=[source(path)], max_rows=None), 0)


def test_options_are_shuffled_by_the_seed_and_the_letter_follows(tmp_path):
    rows = [json.dumps({"good": f"right{i}", "x": f"x{i}", "y": f"y{i}"}) for i in range(60)]
    task = TaskConfig(
        sources=[
            source(
                jsonl(tmp_path, *rows),
                rows=60,
                prompt="{A} {B} {C}",
                response="{answer}",
                options=["good", "x", "y"],
            )
        ],
        max_rows=None,
    )
    made = data.dialogues(task, 0)
    for pair in made:
        assert pair.prompt.split()["ABC".index(pair.response)].startswith("right")
    assert {pair.response for pair in made} == {"A", "B", "C"}
    assert data.dialogues(task, 0) == made
    assert data.dialogues(task, 1) != made


def test_rows_are_drawn_by_the_seed_without_repetition(tmp_path):
    rows = [json.dumps({"q": i, "a": i}) for i in range(50)]
    task = TaskConfig(sources=[source(jsonl(tmp_path, *rows), rows=50)], max_rows=20)
    drawn = [data.dialogues(task, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({pair.prompt for pair in drawn[0]}) == 20


def test_rows_are_read_once_as_long_as_their_files_stay(tmp_path, monkeypatch):
    path, asked = tmp_path / "rows.jsonl", []
    jsonl(tmp_path, *[json.dumps({"q": i, "a": i}) for i in range(9)])
    read = rows_module.read_rows
    monkeypatch.setattr(rows_module, "read_rows", lambda *told: asked.append(told) or read(*told))
    task = TaskConfig(sources=[source(str(path), rows=9)], max_rows=None)
    first = data.dialogues(task, 0)
    first.pop()  # a caller's own
    assert len(data.dialogues(task, 1)) == 9
    assert len(asked) == 1
    path.write_text(path.read_text().replace("8", "77"))
    assert data.dialogues(task, 1)[-1].response == "77"
    data.dialogues(replace(task, max_rows=4), 0)
    data.dialogues(replace(task, max_rows=4), 1)
    assert len(asked) == 4


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(paths.resolve("pkg://osora_bench.toy/model"))


@pytest.mark.parametrize("chat", [True, False])
def test_the_loss_is_on_the_text_or_on_the_answer_alone(tokenizer, chat):
    pairs = [Dialogue("Add 12 and 30.", "12+30=42")]
    settings = {"chat": chat, "max_length": 99}
    (text,) = data.tokenise(pairs, tokenizer, loss_on="text", **settings).rows
    (answer,) = data.tokenise(pairs, tokenizer, loss_on="answer", **settings).rows
    assert text["labels"] == text["input_ids"] == answer["input_ids"]
    kept = [label for label in answer["labels"] if label != data.IGNORED_LABEL]
    assert tokenizer.decode(kept) == "12+30=42" + tokenizer.eos_token
    assert answer["labels"][: -len(kept)] == [data.IGNORED_LABEL] * (
        len(text["labels"]) - len(kept)
    )


def test_rows_are_cut_at_max_length_and_counted(tokenizer):
    pairs = [Dialogue("Add 12 and 30.", "12+30=42"), Dialogue("a", "b")]
    cut = data.tokenise(pairs, tokenizer, chat=True, loss_on="text", max_length=8)
    assert [len(row["input_ids"]) for row in cut.rows] == [8, 6]
    assert cut.truncated == 1


def test_a_row_with_no_answer_left_is_not_trained_on(tokenizer):
    pairs = [Dialogue("Add 12 and 30.", "12+30=42"), Dialogue("a", "b")]
    cut = data.tokenise(pairs, tokenizer, chat=True, loss_on="answer", max_length=6)
    assert len(cut.rows) == cut.truncated == 1
    with pytest.raises(UserError, match=r"max_length=2 leaves no row"):
        data.tokenise(pairs, tokenizer, chat=True, loss_on="answer", max_length=2)


def test_the_first_rows_only_and_none_of_another_file(tmp_path):
    path = jsonl(tmp_path, *(json.dumps({"q": i, "a": i}) for i in range(5)))
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"q": 1}, {"q": 2}]))
    exclude = ExcludeConfig(path=str(other), rows=2, column="q")
    kept = data.source_rows(source(path, rows=5, first=4, exclude=exclude))
    assert [(number, row["q"]) for number, row in kept] == [(1, 0), (4, 3)]
    with pytest.raises(UserError, match="first=6, but it has 5"):
        data.source_rows(source(path, rows=5, first=6))
    with pytest.raises(UserError, match="1 rows of .* are not in it by 'q'"):
        data.source_rows(source(path, rows=5, first=2, exclude=exclude))
    with pytest.raises(UserError, match="unknown column 'id'. Valid: q"):
        data.source_rows(source(path, rows=5, exclude=replace(exclude, column="id")))


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_a_json_file_that_is_no_list_of_objects_is_refused(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError, match=r"rows.json: not"):
        read_rows(str(tmp_path / "rows.json"), 1)


def test_rows_of_every_kind_of_file_are_read(tmp_path):
    rows = [{"q": "1,\u2028x", "a": '"2"'}, {"q": "3\n4", "a": ""}]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    text = 'q,a\n"1,\u2028x","""2"""\n"3\n4",\n'
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8", newline="")
    for kind in ("json", "jsonl", "csv"):
        assert read_rows(str(tmp_path / f"rows.{kind}"), 2) == rows


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"q": 1}\n{"q": "\xe9"}\n', r"rows.jsonl, line 2: not UTF-8 \(.*, byte 0xe9\)"),
        (b'\xef\xbb\xbf{"q": 1}\n', r"line 1: begins with a byte order mark"),
        (b"\n\xe9\n", r"rows.jsonl, line 2: not UTF-8"),
        (b'{"q": NaN}\n', r"line 1: not JSON \(NaN is no JSON value\)"),
        (b'{"q": 1}\n\n', r"line 2: not JSON"),
        (b'{"q": ' + b"[" * 100_000 + b"\n", r"line 1: not JSON"),
    ],
)
def test_a_file_that_is_no_plain_text_is_refused(tmp_path, content, told):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_rows(str(tmp_path / "rows.jsonl"), 2)


def test_a_csv_whose_quote_is_not_closed_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text('q,a\n1,2\n"' + "x" * 140_000, encoding="utf-8")
    with pytest.raises(UserError, match=r"rows.csv, line 3: .*; a quote that is not closed makes"):
        read_rows(str(tmp_path / "rows.csv"), 2)


def test_all_rows_up_to_the_last_may_be_asked_for(tmp_path):
    path = jsonl(tmp_path, *(json.dumps({"q": i, "a": i}) for i in range(5)))
    assert [n for n, _ in data.source_rows(source(path, rows=5, first=5))] == [1, 2, 3, 4, 5]
    task = TaskConfig(sources=[source(path, rows=5)], max_rows=5)
    assert [pair.prompt for pair in data.dialogues(task, 3)] == list("01234")


def test_options_are_as_python_shuffles_them_with_the_seed(tmp_path):
    """The same rows on every machine and in every version."""
    rows = [{"good": f"right{i}", "x": f"x{i}", "y": f"y{i}"} for i in range(8)]
    path = jsonl(tmp_path, *map(json.dumps, rows))
    options = ["good", "x", "y"]
    more = {"rows": 8, "prompt": "{A} {B} {C}", "response": "{answer}", "options": options}
    task = TaskConfig(sources=[source(path, **more)], max_rows=5)
    generator = random.Random(7)
    expected = []
    for row in rows:
        places = [0, 1, 2]
        generator.shuffle(places)
        prompt = " ".join(row[options[place]] for place in places)
        expected.append(Dialogue(prompt, "ABC"[places.index(0)]))
    assert data.dialogues(task, 7) == generator.sample(expected, 5)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"good": "1", "x": None}, "row 1: the option 'x' is null"),
        ({"good": "1", "y": "2"}, "row 1: the option 'x' is not in the row: good, y"),
    ],
)
def test_an_option_that_a_row_lacks_is_named(tmp_path, row, told):
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    more = {"rows": 1, "prompt": "{A}", "response": "{answer}", "options": ["good", "x"]}
    task = TaskConfig(sources=[source(str(tmp_path / "rows.json"), **more)], max_rows=None)
    with pytest.raises(UserError, match=told):
        data.dialogues(task, 0)


def test_validation_rows_are_those_of_no_seed(tmp_path):
    rows = [json.dumps({"q": i, "a": i}) for i in range(30)]
    task = TaskConfig(
        sources=[source(jsonl(tmp_path, *rows), rows=30)], max_rows=None, validation_rows=6
    )
    kept = data.validation_dialogues(task)
    expected = sorted(random.Random(0).sample(range(30), 6))
    assert [int(pair.prompt) for pair in kept] == expected
    for seed in (0, 1):
        trained = [int(pair.prompt) for pair in data.dialogues(task, seed)]
        assert trained == [i for i in range(30) if i not in expected]
    with pytest.raises(UserError, match="validation_rows=30: 30 rows, and one at least"):
        data.dialogues(replace(task, validation_rows=30), 0)
    assert len(data.dialogues(replace(task, validation_rows=29), 0)) == 1
    assert data.validation_dialogues(replace(task, validation_rows=None)) == []


def test_without_a_chat_template_a_row_is_prompt_answer_and_end(tokenizer):
    pairs = [Dialogue("Add 12 and 30.", " 12+30=42")]
    made = data.tokenise(pairs, tokenizer, chat=False, loss_on="answer", max_length=99)
    (row,) = made.rows
    assert tokenizer.decode(row["input_ids"]).endswith(
        "Add 12 and 30. 12+30=42" + tokenizer.eos_token
    )
    answer = tokenizer(" 12+30=42", add_special_tokens=False)["input_ids"]
    assert row["labels"][-len(answer) - 1 :] == [*answer, tokenizer.eos_token_id]
    assert made.truncated == 0
    length = len(row["input_ids"])
    for room, cut in ((length, 0), (length - 1, 1)):
        found = data.tokenise(pairs, tokenizer, chat=False, loss_on="answer", max_length=room)
        assert found.truncated == cut
        assert found.rows[0]["labels"] == row["labels"][:room]
    prompt = length - len(answer) - 1
    with pytest.raises(UserError, match="leaves no row"):
        data.tokenise(pairs, tokenizer, chat=False, loss_on="answer", max_length=prompt)
    one = data.tokenise(pairs, tokenizer, chat=False, loss_on="answer", max_length=prompt + 1)
    assert one.rows[0]["labels"][-1] == answer[0]


def test_a_cells_rows_are_its_own_and_its_held_out_ones_apart(make_cell, tokenizer):
    cfg = make_cell("task.max_rows=4", "seed=3").config
    pairs = data.dialogues(cfg.task, 3)
    settings = {"loss_on": cfg.task.loss_on, "max_length": cfg.task.max_length}
    made = data.tokenise(pairs, tokenizer, chat=cfg.model.chat, **settings)
    assert data.tokenised(cfg, tokenizer) == made
    assert len(made.rows) == 4
    assert data.held_out(cfg, tokenizer) is None
    kept = make_cell("task.max_rows=4", "task.validation_rows=5").config
    apart = data.validation_dialogues(kept.task)
    expected = data.tokenise(apart, tokenizer, chat=cfg.model.chat, **settings)
    assert data.held_out(kept, tokenizer) == expected
    assert len(expected.rows) == 5


def of_groups(tmp_path, *groups):
    """A task of rows whose column `of` has these values, six of them held out."""
    rows = [json.dumps({"q": f"{i}", "a": "yes", "of": of}) for i, of in enumerate(groups)]
    grouped = source(jsonl(tmp_path, *rows), rows=len(rows), group="of")
    return TaskConfig(sources=[grouped], max_rows=None, validation_rows=6)


def test_rewordings_of_one_question_stay_on_one_side(tmp_path):
    task = of_groups(tmp_path, *(f"{i // 4}" for i in range(40)))
    kept, trained = data.validation_dialogues(task), data.dialogues(task, 3)
    assert (len(kept), len(trained)) == (8, 32)  # two groups of four: one would not be enough
    sides = [[dialogue.group for dialogue in side] for side in (kept, trained)]
    assert {sides[0].count(group) for group in sides[0]} == {4}
    assert not set(sides[0]) & set(sides[1])
    off = replace(task, sources=[replace(task.sources[0], group="off")])
    with pytest.raises(UserError, match="unknown column 'off'. Did you mean 'of'"):
        data.dialogues(off, 0)


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        (["0"] * 9 + [None], "line 10: the group 'of' is null"),
        (["0"] * 40, "validation_rows=6: its groups leave no row to train on"),
    ],
)
def test_groups_that_hold_nothing_out_are_told(tmp_path, groups, told):
    with pytest.raises(UserError, match=told):
        data.dialogues(of_groups(tmp_path, *groups), 0)


def test_validation_rows_are_in_the_same_words_for_every_seed(tmp_path):
    rows = [json.dumps({"good": f"right{i}", "x": f"x{i}"}) for i in range(30)]
    more = {"rows": 30, "prompt": "{A} {B}", "response": "{answer}", "options": ["good", "x"]}
    task = TaskConfig(
        sources=[source(jsonl(tmp_path, *rows), **more)], max_rows=None, validation_rows=20
    )
    trained_on_all = replace(task, validation_rows=None)
    words = {pair.prompt for pair in data.dialogues(trained_on_all, 0)}
    kept = data.validation_dialogues(task)
    assert kept == data.validation_dialogues(task)
    assert {pair.prompt for pair in kept} < words  # those of seed 0
    assert {pair.response for pair in kept} == {"A", "B"}
