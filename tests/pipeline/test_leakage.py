"""Training rows that hold the questions: counted before training, in record and table."""

import json
import os
from pathlib import Path

import pytest

from osora_bench.benchdata import made_up
from osora_bench.benchdata.overlap import Question, Questions
from osora_bench.cli.main import main
from osora_bench.common import exits
from osora_bench.evaluation.suites import questions
from osora_bench.planning import smoke
from osora_bench.records import record
from osora_bench.reporting import rows as reporting_rows
from osora_bench.reporting.layouts import notes

DATA = Path(os.environ.get("OSORA_DATA", "none"))


def counts(told, task, dataset):
    (line,) = [line for line in told.splitlines() if f"| {task} |" in line and dataset in line]
    return [int(cell) for cell in line.strip("| ").split("|")[3:]]


@pytest.mark.long
def test_gpqa_as_published_trains_on_its_questions(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smoke, "data_folder", lambda _: tmp_path / "data")
    monkeypatch.setenv("OSORA_DATA", "nowhere")
    assert main(["leakage", "experiment=table3", "scale=smoke", *places]) == 0
    questions, whole, _ = counts(capsys.readouterr().out, "gpqa", "GPQA_diamond")
    assert whole == questions > 0


@pytest.mark.long
def test_a_table_is_counted_where_its_model_cannot_run(places, tmp_path, monkeypatch, capsys):
    """No weights and no GPU: GPQA's rows and questions, as many as there are, are all it takes."""
    monkeypatch.setattr(made_up, "GPQA_ROWS", {"main": 448, "extended": 546, "diamond": 198})
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))
    argument = ["leakage", "experiment=table3", *places, "model.path=nowhere/none"]
    assert main(argument) == exits.MISTAKE
    told = capsys.readouterr().err
    assert "gpqa_main.csv: no such file" in told
    assert "GPU" not in told
    assert "weights" not in told
    made_up.write_data(tmp_path / "data")
    assert main(argument) == exits.OK
    questions, whole, _ = counts(capsys.readouterr().out, "gpqa", "GPQA_diamond")
    assert whole == questions == 198


@pytest.mark.long
def test_the_embedded_tasks_do_not(places, capsys):
    assert main(["leakage", "experiment=demo", *places]) == 0
    told = capsys.readouterr().out
    assert counts(told, "toy", "gsm8k-toy") == [500, 0, 0]
    assert counts(told, "toy", "commonsenseqa-toy") == [500, 0, 0]


def test_a_record_and_its_table_say_what_was_found(make_cell, session, tmp_path, capsys):
    """A row of the task is a test question with an answer."""
    cell = make_cell("method=lora", "trainer.max_steps=2", "eval.limit=3")
    ((text,),) = questions(session.sets(cell)["gsm8k-toy"])[1].wordings
    rows = [{"q": f"Well: {text.upper()}", "a": "2"}, {"q": "Another one.", "a": "3"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    words = "prompt: '{q}', response: '{a}'"
    leaking = make_cell(
        "method=lora", "trainer.max_steps=2", "eval.limit=3",
        f"task.sources=[{{path: {tmp_path}/rows.jsonl, rows: 2, {words}}}]",
    )  # fmt: skip
    session.run(leaking)
    told = capsys.readouterr().out
    assert "WARNING: gsm8k-toy: 1 of 3 questions stand in the training rows, 0 others" in told
    made = record.read_record(leaking.record)
    assert made["leakage"] == {"gsm8k-toy": {"exact": 1, "near": 0, "questions": 3}}
    row = reporting_rows.Row(leaking, [made])
    (warning,) = [line for line in notes.notes_below([row]) if "training rows" in line]
    assert warning.endswith("whole and in part: GSM8K-toy 1 and 0 of 3.")
    session.run(cell)
    assert record.read_record(cell.record)["leakage"] == {}


def lines(path):
    return [json.loads(line) for line in (DATA / path).read_text("utf-8").splitlines()]


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="OSORA_DATA has no GSM8K")
def test_what_docs_say_of_gsm8k():
    train = [f"{row['question']}\n{row['answer']}" for row in lines("gsm8k/train.jsonl")]
    asked = [Question(((row["question"],),)) for row in lines("gsm8k/test.jsonl")]
    found = Questions(asked).in_rows(train)
    assert (found.questions, len(found.exact), len(found.near)) == (1319, 0, 3)


@pytest.mark.skipif(not (DATA / "commonsenseqa").is_dir(), reason="OSORA_DATA has none of it")
def test_what_docs_say_of_commonsenseqa():
    def read(split):
        rows = [row["question"] for row in lines(f"commonsenseqa/{split}_rand_split.jsonl")]
        return [(row["stem"], tuple(choice["text"] for choice in row["choices"])) for row in rows]

    train = ["\n".join([stem, *options]) for stem, options in read("train")]
    found = Questions(Question(((stem,),), options) for stem, options in read("dev")).in_rows(train)
    assert (found.questions, len(found.exact), len(found.near)) == (1221, 1, 0)
