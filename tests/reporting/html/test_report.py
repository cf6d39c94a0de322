"""The report: a pure function of the ledger, whole in one file, everything in it escaped."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser

import pandas as pd
import pytest

from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.planning.cell import cell_of
from osora_bench.records import record
from osora_bench.reporting.html import findings, page, tables
from osora_bench.reporting.html.report import read_ledgers, report
from osora_bench.reporting.reference import Key, Printed
from osora_bench.reporting.rows import Row, recorded_rows
from osora_bench.reporting.table import Number, Table
from tests.grids import cells_of
from tests.reporting.html import made


class Elements(HTMLParser):
    """Every element with its attributes, and the text inside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside, self.text = [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.found.append(("", {}))

    def handle_data(self, data):
        self.text += data
        if self.found and self.found[-1][0] in ("script", "style"):
            self.inside.setdefault(len(self.found) - 1, []).append(data)

    def sources(self, tag):
        return [
            ("".join(texts), self.found[place][1])
            for place, texts in self.inside.items()
            if self.found[place][0] == tag
        ]


def data_of(text):
    found = [t for t, attrs in Elements(text).sources("script") if attrs.get("id") == "data"]
    return json.loads(found[0])


@pytest.fixture
def part(tmp_path, monkeypatch):
    return made.part_of(tmp_path, monkeypatch, paths)


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger"


def test_the_same_ledger_gives_the_same_bytes(part, ledger):
    assert report([part], read_ledgers([ledger])) == report([part], read_ledgers([ledger]))


def test_the_page_needs_nothing_beside_it(part, ledger):
    text = report([part], read_ledgers([ledger]))
    for tag, attributes in Elements(text).found:
        assert tag not in ("link", "iframe", "img", "object", "embed"), tag
        assert not {"src", "action"} & attributes.keys(), (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes), attributes
        assert "style" not in attributes


def test_the_policy_allows_what_the_page_holds_and_no_more(part, ledger):
    elements = Elements(report([part], read_ledgers([ledger])))
    kind = "Content-Security-Policy"
    (policy,) = [a["content"] for _, a in elements.found if a.get("http-equiv") == kind]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert "unsafe" not in policy

    def hashes(texts):
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]

    run = [text for text, attrs in elements.sources("script") if "type" not in attrs]
    assert directives["script-src"].split() == hashes(run)
    assert directives["style-src"].split() == hashes([t for t, _ in elements.sources("style")])


def test_what_records_say_is_escaped(tmp_path, monkeypatch):
    part = made.part_of(tmp_path, monkeypatch, paths, hostile=True)
    text = report([part], read_ledgers([tmp_path / "ledger"]))
    assert made.HOSTILE not in text
    assert made.HOSTILE in Elements(text).text  # it is shown, as text
    scripts = [attrs for tag, attrs in Elements(text).found if tag == "script"]
    assert len(scripts) == 3  # the data, the library and the page's own
    pool = data_of(text)["pool"]
    labels = {section["label"] for section in pool if section and "architecture" in section}
    assert labels == {f"Model{made.HOSTILE}"}


def test_a_script_that_would_end_its_element_is_refused(monkeypatch):
    with pytest.raises(AssertionError, match="would end the element"):
        page._for_script("'</SCRIPT>'", "x.js")
    for text in ("</script>", "<!--", "\u2028", "&lt;"):
        packed = page.as_data([text])
        assert not set("<>&\u2028") & set(packed)
        assert json.loads(packed) == [text]


def test_every_number_leads_to_its_records(part, ledger):
    text = report([part], read_ledgers([ledger]))
    linked = [
        attrs["href"].removeprefix("#r=").split(",")
        for tag, attrs in Elements(text).found
        if tag == "a" and attrs.get("href", "").startswith("#r=")
    ]
    records = data_of(text)["records"]
    assert {run for runs in linked for run in runs} == set(records)
    assert len(records) == len(part.cells) - 1
    rows, _ = recorded_rows(part.cells)
    lora = next(
        r for r in rows if (r.cell.config.method.name, r.cell.config.method.rank) == ("lora", 4)
    )
    assert [run["run_id"] for run in lora.runs] in linked
    one = records[lora.runs[0]["run_id"]]
    pool = data_of(text)["pool"]
    assert pool[one["provenance"]["code"]]["commit"] == "0123456789abcdef"
    assert pool[one["provenance"]["hardware"]] == {"device": "cpu", "threads": 1}
    assert pool[one["method"]]["rank"] == 4
    assert one["measured"]["training"]["memory_mb"] == 12.0
    assert len(one["training"]["loss"]) <= 24
    assert one["training"]["loss"][-1] == [49, 0.040816]
    assert one["numerics"] == 1


def test_question_and_answer_are_of_the_file_and_the_numbers(part):
    rows, _ = recorded_rows(part.cells)
    main_rows = findings.main_rows(part.experiment, rows)
    assert findings.question(part.experiment, main_rows) == (
        "How accurate are Base, LoRA and OSoRA at ranks 2 to 8 on GSM8K-toy and CSQA-toy "
        "(1,000 questions), trained on Toy tasks, with Toy and 2 seeds each?"
    )
    said = findings.answer(part.experiment, main_rows)
    best = max(
        (r for r in main_rows if r.averages()), key=lambda r: sum(r.averages()) / len(r.runs)
    )
    assert said.startswith(f"{best.name} has the highest accuracy, ")
    assert "95 % interval" in said
    none = [replace(row, runs=[]) for row in main_rows]
    assert findings.answer(part.experiment, none) == "No run has finished yet."


def test_an_empty_ledger_says_so_and_what_to_run(part, tmp_path):
    text = Elements(report([part], read_ledgers([tmp_path / "nothing"]))).text
    assert "No record yet" in text
    assert "osora-bench run experiment=two" in text
    assert "No run has finished yet." in text


def test_damaged_records_are_named(part, ledger):
    victim = sorted(ledger.glob("*.json"))[0]
    victim.write_text(victim.read_text().replace('"revision": "local"', '"revision": "else"'))
    text = Elements(report([part], read_ledgers([ledger]))).text
    assert f"{victim.name}: its checksum does not match its content" in text
    assert str(ledger) not in text
    assert "13 of 13" not in text


def test_records_of_another_numerics_version_are_kept_apart(part, ledger):
    older = cell_of(replace(part.cells[3].config, seed=9))
    record.write_record({**made.whole(older, (1, 1)), "run_id": "0" * 12}, ledger)
    text = report([part], read_ledgers([ledger]))
    records = data_of(text)["records"]
    assert records["0" * 12]["numerics"] is None
    assert "1 record is of an earlier numerics version" in Elements(text).text
    assert "#r=" + "0" * 12 not in text  # in no table
    assert "1 record of no experiment shown here" in Elements(text).text


def test_the_verb(part, ledger, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "page.html"
    call = ["report", "experiment=two", f"ledger={ledger}", f"out={out}"]
    assert main(call) == 0
    assert re.search(rf"\d\.\d MB written to {out}", capsys.readouterr().out)
    text = Elements(out.read_text()).text
    assert "12 of 13 cells have a record" in text
    assert re.search(r"1 missing", text)
    assert main(["report", f"ledger={ledger}", f"out={out}"]) == 0
    assert "Two methods at three ranks" in out.read_text()
    for wrong, told in (
        (["experiment=tow"], "unknown experiment 'tow'. Did you mean 'two'"),
        (["--wach"], "Did you mean '--watch'"),
        (["--watch"], "names"),
        (["experiment=two", "every=5"], "every=5 is for --watch"),
        (["experiment=two", "--watch", "every=0"], "every=0: a whole number"),
    ):
        assert main(["report", *wrong]) == 2, wrong
        assert told in capsys.readouterr().err or told == "names"


def test_watching_writes_the_page_as_records_come_and_ends_with_the_last(
    part, ledger, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out, pages = tmp_path / "page.html", []

    def sleep(seconds):
        assert seconds == 2
        pages.append(out.read_text())
        record.write_record(made.whole(part.cells[-1], (250, 250)), ledger)

    monkeypatch.setattr("osora_bench.cli.page.time.sleep", sleep)
    call = ["report", "experiment=two", f"ledger={ledger}", f"out={out}", "--watch", "every=2"]
    assert main(call) == 0
    assert 'http-equiv="refresh" content="2"' in pages[0]
    assert "Left: 1 missing" in Elements(pages[0]).text
    assert 'http-equiv="refresh"' not in out.read_text()
    assert "13 of 13 cells have a record" in Elements(out.read_text()).text
    assert len(pages) == 1


def test_the_papers_numbers_stand_below_ours_with_the_difference():
    number = Number(Key("m", "lora", 8, "Avg."), Decimal("60.00"))
    row = Row(cells_of("demo")[3], [])
    frame = pd.DataFrame({"Method": ["LoRA"], "Avg.": ["60.00"]})
    best = pd.DataFrame({"Method": [False], "Avg.": [True]})
    table = Table("t", "T", frame, best, numbers={"Avg.": [number]}, of={"Avg.": [row]})
    printed = {number.key: Printed(number.key, 1, "59.38")}
    (line,) = tables.view(table, printed).lines
    assert line.cells[1] == tables.Cell("60.00", "paper 59.38 (+0.62)", best=True)
    assert line.facets == {"model": "Toy", "method": "LoRA", "rank": "8", "task": "Toy tasks"}


def test_figures_of_the_page_are_drawn_for_papers_too(part, ledger, tmp_path, capsys):
    call = ["figures", "experiment=two", f"ledger={ledger}", f"out={tmp_path}/f", "all=true"]
    assert main(call) == 0
    names = {path.name for path in (tmp_path / "f").iterdir()}
    for stem in ("accuracy-by-rank-r-toy-tasks", "accuracy-against-cost-toy-tasks-training-s"):
        assert {f"{stem}.svg", f"{stem}.pdf", f"{stem}.png"} <= names
    assert "training loss, nats" in (tmp_path / "f" / "training-loss-toy-tasks.svg").read_text()
