"""`osora-bench judge`: answers from a file or a cell, judged without a model; what is no answer."""

import json
import shutil
import subprocess
import sys

import pytest

from osora_bench.cli.main import main

TOY = ["--suite", "toy", "--set", "commonsenseqa-toy"]


@pytest.fixture
def judge(tmp_path, capsys):
    """A call's exit status, its lines, and what it says on stderr."""

    def run(*arguments):
        capsys.readouterr()
        status = main(["judge", *map(str, arguments), f"runs={tmp_path}/runs"])
        said = capsys.readouterr()
        return status, [json.loads(line) for line in said.out.splitlines()], said.err

    return run


def written(place, *lines):
    place.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return place


def answer(position, output):
    return json.dumps({"position": position, "output": output})


def test_answers_to_some_questions_in_any_order(judge, tmp_path):
    from osora_bench.toy.tasks import DATA

    rows = (DATA / "commonsenseqa" / "dev_rand_split.jsonl").read_text().splitlines()
    keys = [json.loads(row)["answerKey"] for row in rows]
    place = written(
        tmp_path / "answers.jsonl",
        answer(7, f"Answer: {keys[7]}"), answer(3, keys[3]), "", answer(499, "I don't know"),
    )  # fmt: skip
    status, lines, _ = judge(*TOY, place)
    assert status == 0
    assert [line.get("position") for line in lines] == [3, 7, 499, None]
    assert lines[0] == {
        "set": "commonsenseqa-toy", "position": 3, "read": keys[3], "right": True, "unread": False,
        "corrected_read": keys[3], "corrected_right": True,
    }  # fmt: skip
    assert (lines[1]["read"], lines[1]["corrected_read"]) == ("A", keys[7])
    assert lines[2]["unread"] is True
    assert lines[2]["corrected_read"] is None
    summary = lines[3]["summary"]
    official = 1 + (keys[7] == "A")
    assert (summary["k"], summary["n"], summary["unread"]) == (official, 3, 1)
    corrected = summary["corrected"]
    assert (corrected["k"], corrected["differ"], corrected["unread"]) == (2, 2 - official, 1)
    status, lines, _ = judge(*TOY, place, "--output", tmp_path / "judged.jsonl")
    assert lines == [{"summary": summary}]
    assert len((tmp_path / "judged.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["{"], "line 1: not JSON"),
        (['"B"'], "line 1: lacks 'position'; a line is"),
        (['{"position": 1}'], "line 1: lacks 'output'; a line is"),
        (['{"position": "1", "output": "B"}'], "line 1: 'position' is '1'; a line is"),
        (['{"position": true, "output": "B"}'], "line 1: 'position' is True; a line is"),
        (['{"position": 1, "output": null}'], "line 1: 'output' is None; a line is"),
        ([answer(0, "B"), answer(500, "B")], "line 2: position 500 is none of the set's: 0 to 499"),
        ([answer(-1, "B")], "position -1 is none of the set's"),
        ([answer(0, "B"), "", answer(0, "A")], "line 3: position 0 is given twice"),
        ([], "holds no answers"),
    ],
)
def test_a_line_that_is_no_answer_is_named(lines, told, judge, tmp_path):
    status, out, err = judge(*TOY, written(tmp_path / "answers.jsonl", *lines))
    assert (status, out) == (2, [])
    assert told in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--suite", "tyo", "--set", "x", "a.jsonl"], "tyo"),
        (["--suite", "toy", "--set", "gsm8k", "a.jsonl"],
         "unknown set of suite toy 'gsm8k'. Did you mean 'gsm8k-toy'"),
        (["--suite", "toy", "--set", "gsm8k-toy", "no.jsonl"], "no.jsonl: cannot be read"),
        (["--suite", "toy"], "name --suite S --set NAME ANSWERS.jsonl, or --cell RUN_ID"),
        (["--cell", "0123", "--suite", "toy"], "name no others"),
        (["--cell", "0123"], "no record of a run '0123'"),
    ],
)  # fmt: skip
def test_a_call_that_names_nothing_known_is_refused(arguments, told, judge, tmp_path):
    status, out, err = judge(*arguments)
    assert (status, out) == (2, [])
    assert told in err


def test_a_set_that_is_scored_by_perplexity_is_refused(judge, tmp_path):
    place = written(tmp_path / "answers.jsonl", answer(0, "B"))
    status, _, err = judge("--suite", "gpqa-ppl", "--set", "GPQA_diamond", place)
    assert status == 2
    assert "GPQA_diamond of suite gpqa-ppl is scored by perplexity" in err


def test_a_cells_answers_are_judged_as_its_record_says(session, make_cell, judge, tmp_path):
    cell = make_cell("trainer.max_steps=2", "eval.limit=20")
    record = session.run(cell)
    ledger = f"ledger={tmp_path}/ledger"
    status, lines, _ = judge("--cell", cell.run_id, ledger)
    assert status == 0
    summaries = {line["summary"]["set"]: line["summary"] for line in lines if "summary" in line}
    assert list(summaries) == ["gsm8k-toy", "commonsenseqa-toy"]
    for name, score in record["scores"].items():
        found = summaries[name]
        assert [found[key] for key in ("k", "n", "unread")] == [
            score[key] for key in ("k", "n", "unread")
        ]
        assert {**found["corrected"], "right": score["corrected"]["right"]} == {
            **score["corrected"], "accuracy": 100 * score["corrected"]["k"] / score["n"],
        }  # fmt: skip
    asked = [line["position"] for line in lines if line.get("set") == "gsm8k-toy"]
    assert asked == list(range(0, 500, 25))  # evenly spread over the set's 500
    assert len(judge("--cell", cell.run_id, "--set", "gsm8k-toy", ledger)[1]) == 21
    wrong = f"{cell.run_id[:-1]}x"
    assert f"nearest of 1: {cell.run_id}" in judge("--cell", wrong, ledger)[2]
    shutil.rmtree(cell.paths.evaluation)
    status, _, err = judge("--cell", cell.run_id, ledger)
    assert status == 2
    assert "is not there (any more): the cell's answers cannot be judged" in err


@pytest.mark.long
def test_judging_needs_nothing_that_another_command_has_set_up(tmp_path):
    """In a process that has evaluated nothing."""
    place = written(tmp_path / "answers.jsonl", answer(0, "no letter"))
    start = "from osora_bench.cli.main import main; raise SystemExit(main())"
    command = [sys.executable, "-c", start, "judge", *TOY, place, f"runs={tmp_path}/runs"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    first, _ = map(json.loads, ended.stdout.splitlines())
    assert (first["position"], first["right"], first["unread"]) == (0, False, True)
