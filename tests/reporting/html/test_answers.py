"""The page of answers: whose they are, what was read, official and corrected; gated questions."""

import gzip
import json
import shutil
import subprocess

import pytest

from osora_bench.cli.main import main
from osora_bench.records import record
from tests.grids import cells_of
from tests.reporting.html import made
from tests.reporting.html.test_report import Elements, data_of

QUESTIONS = 25


def answers(right, outputs, **more):
    return [
        {"prompt": [{"role": "HUMAN", "prompt": f"What is {i}?"}], "output": output,
         "read": None if output in ("", "?") else output, "right": verdict, "unjudged": None,
         "cut": i == 3, **{key: i in places for key, places in more.items()}}
        for i, (verdict, output) in enumerate(zip(right, outputs, strict=True))
    ]  # fmt: skip


def finished(cell, folder, rights, outputs, *, corrected=None, too_long=0, known=()):
    """A record of a cell, and the answers that it left."""
    body = made.whole(cell, tuple(sum(right) for right in rights))
    for (name, score), right in zip(body["scores"].items(), rights, strict=True):
        score |= {"right": record.pack(right), "n": QUESTIONS, "too_long": too_long}
        if corrected is not None:
            score["corrected"] = {"rule": "a rule", "k": sum(corrected), "differ": 1,
                                  "right": record.pack(corrected)}  # fmt: skip
        place = cell.paths.evaluation / "answers" / f"{name}.jsonl.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(place, "wt") as file:
            file.writelines(
                json.dumps(answer) + "\n" for answer in answers(right, outputs, **dict(known))
            )
    record.write_record(body, folder / "ledger")
    return cell.run_id


@pytest.fixture
def runs(tmp_path):
    """Two runs: A is right in the first ten, B in the last twenty; A's reading is corrected."""
    places = [f"ledger={tmp_path}/ledger", f"runs={tmp_path}/runs", f"eval.limit={QUESTIONS}"]
    cells = [c for c in cells_of("demo", places) if c.config.method.name in ("lora", "osora")]
    first, last = cells[0], cells[-1]
    early, late = [i < 10 for i in range(QUESTIONS)], [i >= 5 for i in range(QUESTIONS)]
    mended = [i < 10 or i == 24 for i in range(QUESTIONS)]
    said = ["?", "", *(f"{made.HOSTILE}{i}" for i in range(2, QUESTIONS))]
    a = finished(first, tmp_path, [early, early], said, corrected=mended, too_long=1)
    b = finished(last, tmp_path, [late, late], [str(i) for i in range(QUESTIONS)], corrected=late)
    return a, b


def call(tmp_path, *arguments):
    return main(["answers", *arguments, f"ledger={tmp_path}/ledger", f"runs={tmp_path}/runs"])


def test_every_question_of_two_runs(runs, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert call(tmp_path, *runs, f"out={out}") == 0
    assert f"written to {out}" in capsys.readouterr().out
    text = out.read_text()
    assert made.HOSTILE not in text
    first, _ = data_of(text)["sets"]
    assert len(first["questions"]) == QUESTIONS
    question = first["questions"][0]
    assert question["prompt"] == "[HUMAN] What is 0?"
    assert [side["marks"] for side in question["sides"]] == [["right", "unread"], ["wrong"]]
    assert first["questions"][1]["sides"][0]["marks"] == ["right", "too long"]
    assert first["questions"][3]["sides"][0]["marks"] == ["right", "cut"]
    last = first["questions"][24]["sides"]
    assert [side["corrected"] for side in last] == [True, True]
    assert last[0]["marks"] == ["wrong"]
    assert last[0]["output"] == last[0]["read"] == f"{made.HOSTILE}24"
    positions = [q["position"] for q in first["questions"]]
    assert positions == list(range(0, 500, 20))  # of the whole set


def test_what_was_not_asked_is_known_where_the_file_says_it(tmp_path):
    places = [f"ledger={tmp_path}/ledger", f"runs={tmp_path}/runs", f"eval.limit={QUESTIONS}"]
    old, new, *_ = (c for c in cells_of("demo", places) if c.config.method.name == "lora")
    right, said = [False] * QUESTIONS, ["", "", *map(str, range(2, QUESTIONS))]
    runs = [
        finished(old, tmp_path, [right, right], said, too_long=1),
        finished(new, tmp_path, [right, right], said, too_long=1, known={"too_long": {1}}),
    ]
    out = tmp_path / "page.html"
    assert call(tmp_path, *runs, f"out={out}") == 0
    questions = data_of(out.read_text())["sets"][0]["questions"]
    unknown = "not known: unread or too long"
    marks = [[side["marks"] for side in question["sides"]] for question in questions[:3]]
    assert marks == [
        [["wrong", unknown], ["wrong", "unread"]],
        [["wrong", unknown], ["wrong", "too long"]],
        [["wrong"], ["wrong"]],
    ]
    assert f"<option>{unknown}</option>" in out.read_text()


def test_bad_calls_are_told(runs, tmp_path, capsys):
    a, b = runs
    for arguments, told in (
        ([], "name one run or two"),
        ([a, b, a], "name one run or two"),
        ([f"{a[:-1]}x"], f"no record of a run '{a[:-1]}x'"),
        ([a, f"runs={tmp_path}/else"], "runs= is given twice"),
    ):
        assert call(tmp_path, *arguments) == 2
        assert told in capsys.readouterr().err
    shutil.rmtree(tmp_path / "runs" / "cells" / b)
    assert call(tmp_path, a, b) == 2
    assert "is not there (any more): name the folder of runs" in capsys.readouterr().err


def test_answers_of_another_start_are_refused(runs, tmp_path, capsys):
    a, b = runs
    cells = tmp_path / "runs" / "cells"
    shutil.rmtree(cells / a)
    shutil.copytree(cells / b, cells / a)
    assert call(tmp_path, a) == 2
    assert f"holds other answers than the record of {a} tells of" in capsys.readouterr().err


def test_gated_questions_get_no_page_that_git_would_commit(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("osora_bench.reporting.html.answers.gated", lambda file: True)
    subprocess.run(["git", "init", "-q", str(tmp_path / "repo")], check=True)
    out = tmp_path / "repo" / "page.html"
    assert call(tmp_path, runs[0], f"out={out}") == 2
    assert "would hold questions that must not be published" in capsys.readouterr().err
    assert not out.exists()
    (tmp_path / "repo" / ".gitignore").write_text("page.html\n")
    assert call(tmp_path, runs[0], f"out={out}") == 0


def test_the_authors_of_gpqa_ask_for_that():
    from osora_bench.benchdata.sets import gated

    (cell, *_) = cells_of("table3")
    assert all(gated(file) for dataset in cell.config.eval.datasets for file in dataset.files)


def test_in_a_browser_by_verdict_and_by_who_was_right(runs, tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: .ci/run installs it")
    out = tmp_path / "page.html"
    assert call(tmp_path, *runs, f"out={out}") == 0
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, complaints = browser.new_page(viewport={"width": 360, "height": 740}), []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("alert"), dialog.dismiss()))
        page.goto(out.as_uri())
        told = page.locator("form output")
        assert page.locator("article").count() == 20
        page.get_by_role("button", name="Next").click()
        assert page.locator("article").count() == 5
        counts = {"ab": 5, "ba": 15, "same": 5, "other": 25}
        for both, count in counts.items():
            page.locator("#both").select_option(both)
            assert told.inner_text() == f"{count} questions"
        page.get_by_role("button", name="Show all").click()
        page.wait_for_timeout(50)
        page.get_by_label("A is").select_option("differs")
        assert told.inner_text() == "1 questions"
        page.get_by_label("A is").select_option("unread")
        assert told.inner_text() == "1 questions"
        page.get_by_label("A is").select_option("")
        page.get_by_label("Contains").fill("what is 7")
        assert told.inner_text() == "1 questions"
        assert "What is 7?" in page.locator("article").inner_text()
        assert made.HOSTILE in page.locator("article").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        found = axe.Axe().run(page).response["violations"]
        browser.close()
    assert complaints == []
    assert [f["id"] for f in found if f["impact"] in ("serious", "critical")] == []
    assert "Answers" in Elements(out.read_text()).text
