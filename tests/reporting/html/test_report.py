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
from osora_bench.planning.experiments import TableSpec, load_experiment
from osora_bench.records import record
from osora_bench.reporting import tabulate
from osora_bench.reporting.html import findings, page, tables
from osora_bench.reporting.html.report import Part, read_ledgers, report
from osora_bench.reporting.layouts.against import against
from osora_bench.reporting.reference import Key, Printed
from osora_bench.reporting.rows import Row, recorded_rows
from osora_bench.reporting.rows import rows as rows_of
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


def asked_and_told(part, rows):
    main_rows = findings.main_rows(part.experiment, rows)
    return findings.question(part.experiment, main_rows), findings.answer(
        part.experiment, main_rows
    )


def test_question_and_answer_are_of_the_file_and_the_numbers(part):
    rows, _ = recorded_rows(part.cells)
    asked, told = asked_and_told(part, rows)
    assert asked == (
        "How accurate are Base; LoRA and OSoRA at ranks 2, 4 and 8 on GSM8K-toy and CSQA-toy "
        "(1,000 questions), trained on Toy tasks, with Toy and 2 seeds for each that is trained?"
    )
    assert told == (
        "OSoRA r=8 has the highest accuracy of all 7, 51.00 % (95 % interval 48.01 to 53.99), "
        "which no test tells from that of OSoRA r=4, OSoRA r=2 and LoRA r=8. "
        "Of one seed (OSoRA r=8), this is said of these adapters, not of the methods."
    )
    none = [replace(row, runs=[]) for row in rows]
    assert asked_and_told(part, none) == (asked, "No run has finished yet.")


def test_the_highest_is_that_of_the_whole_suite_not_of_the_first_table(part):
    rows, _ = recorded_rows(part.cells)
    part.experiment.tables["scores"].methods = ["none", "lora"]
    asked, told = asked_and_told(part, rows)
    assert "LoRA and OSoRA at ranks" in asked
    assert told.startswith("OSoRA r=8 has the highest accuracy of all 7, ")


def test_a_baseline_wins_ties_and_loses(part):
    rows = [r for r in recorded_rows(part.cells)[0] if r.cell.config.method.rank in (None, 4)]
    part.experiment.tables["against"] = TableSpec("against", "T", baseline="osora")
    asked, told = asked_and_told(part, rows)
    assert asked == (
        "How accurate are Base; LoRA and OSoRA at rank 4 on GSM8K-toy and CSQA-toy (1,000 "
        "questions), trained on Toy tasks, with Toy and 2 seeds for each that is trained?"
    )
    assert told == (
        "OSoRA r=4 has the highest accuracy of all 3, 49.50 % (95 % interval 45.96 to 53.04), "
        "significantly above every other; OSoRA r=4 wins against 2, ties with 0 and loses to 0 of "
        "the 2 others (paired tests, Holm, 5 %)."
    )


def test_ranks_of_some_methods_and_one_seed_are_said_of_those_alone(part):
    rows = recorded_rows(part.cells)[0]
    of = {"lora": 2, "osora": 8}
    some = [r for r in rows if of.get(r.cell.config.method.name, 8) == r.cell.config.method.rank]
    some = [replace(row, runs=row.runs[:1], seeds=1) for row in some]
    asked, told = asked_and_told(part, some)
    assert asked == (
        "How accurate are LoRA at rank 2; OSoRA at rank 8 on GSM8K-toy and CSQA-toy (1,000 "
        "questions), trained on Toy tasks, with Toy and one seed each?"
    )
    assert told.endswith(". Of one seed each, this is said of these adapters, not of the methods.")
    unfinished = [some[0], replace(some[1], runs=[])]
    _, told = asked_and_told(part, unfinished)
    assert told.startswith("LoRA r=2 has the highest accuracy of the 1 of 2 that have finished, ")


def test_rows_of_one_method_and_rank_are_told_apart(part):
    row = recorded_rows(part.cells)[0][1]
    config = row.cell.config
    more = replace(config, task=replace(config.task, max_rows=50))
    other = replace(row, cell=replace(row.cell, config=more))
    assert findings.names([row, other]) == ["LoRA r=2, all rows", "LoRA r=2, 50 rows"]


def test_what_nothing_runs_has_a_sentence_of_its_own():
    for name, told in (
        (
            "figure1",
            (
                "How many parameters has each of LoRA, VeRA and OSoRA at ranks 2, 4, 8, 16, 32, 64 "
                "and 3 more, with Qwen2-7B?",
                "Nothing is run for it: parameters are counted.",
            ),
        ),
        ("table7", ("Which settings has each of ", "Nothing is run for it: settings are listed.")),
    ):
        cells = cells_of(name)
        said = asked_and_told(Part(load_experiment(name), cells), rows_of(cells, {}))
        assert said[0].startswith(told[0])
        assert said[1] == told[1]


def test_losses_that_are_no_numbers_leave_a_page(part, ledger):
    for place, victim in enumerate(sorted(ledger.glob("*.json"))):
        body = json.loads(victim.read_text())
        if body["training"]:
            last = [0.0, float("nan"), float("inf"), 1.0][place % 4]
            body["training"]["loss"] = [[1, 2.0], [2, last]]
        del body["sha256"]  # written by hand: write_record refuses what is no number
        victim.write_text(json.dumps({**body, "sha256": record._digest(body)}))
    text = report([part], read_ledgers([ledger]))
    data = json.loads(
        next(t for t, a in Elements(text).sources("script") if a.get("id") == "data"),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    losses = [entry["training"]["loss"][-1][1] for entry in data["records"].values()
              if entry["training"]]  # fmt: skip
    assert {0.0, "nan", "inf", 1.0} == set(losses)
    assert "without values that are no finite number: " in Elements(text).text


@pytest.mark.parametrize("names", [("records", "data"), ("main", "record"), ("two", "two-scores")])
def test_an_experiment_may_be_called_as_the_page_calls_its_own_parts(part, ledger, names):
    parts = [replace(part, experiment=replace(part.experiment, name=name)) for name in names]
    found = Elements(report(parts, read_ledgers([ledger]))).found
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {f"experiment-{name}" for name in names} < set(ids)


def test_how_to_run_the_rest_is_as_the_report_was_asked_for(part, ledger, tmp_path):
    out = tmp_path / "page.html"
    asked = [f"ledger={ledger}", "trainer.max_steps=1"]
    assert main(["report", "experiment=two", *asked, f"out={out}"]) == 0
    hint = f"osora-bench run experiment=two ledger={ledger} trainer.max_steps=1"
    assert hint in Elements(out.read_text()).text


def test_a_difference_leads_to_the_records_of_both_sides(part, ledger):
    rows = [r for r in recorded_rows(part.cells)[0] if r.cell.config.method.rank in (None, 4)]
    by_name = {row.name: [run["run_id"] for run in row.runs] for row in rows}
    table = against("t", TableSpec("against", "T", baseline="osora"), rows)
    seen = tables.view(table, {})
    for line in seen.lines:
        name, *numbers = line.cells
        assert {cell.runs for cell in numbers} == {
            ",".join(by_name["OSoRA r=4"] + by_name[name.text])
        }


def test_questions_and_seeds_lead_to_their_records_and_the_average_comes_first(part):
    rows, _ = recorded_rows(part.cells)
    (scores, _) = tabulate.tables_of(part.experiment, rows)
    seen = tables.view(scores, {})
    assert [column.heading for column in seen.columns] == [
        "Method", "r", "Avg.", "Params", "GSM8K-toy", "CSQA-toy", "n", "Seeds",
    ]  # fmt: skip
    assert [column.kind for column in seen.columns] == ["name"] + 7 * ["number"]
    runs = ",".join(run["run_id"] for run in rows[1].runs)
    assert [cell.runs for cell in seen.lines[1].cells[2:]] == 6 * [runs]
    assert seen.lines[1].cells[-2].text == "1,000"


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
        (["--watch"], "--watch follows the experiments that are named: experiment=A,B"),
        (["experiment=two", "every=5"], "every=5 is for --watch"),
        (["experiment=two,two"], "experiment=two,two: two is named twice"),
        (["experiment=two", "--watch", "every=0"], "every=0: a whole number"),
    ):
        assert main(["report", *wrong]) == 2, wrong
        assert told in capsys.readouterr().err


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
    assert 'class="watch" data-seconds="2"' in pages[0]
    assert 'http-equiv="refresh"' not in pages[0]
    assert "Left: 1 missing" in Elements(pages[0]).text
    assert "data-seconds" not in out.read_text()
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
