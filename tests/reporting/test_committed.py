"""What is committed below results/ and in the pages is what the committed ledger gives."""

import pytest

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.planning.grid import Expansion
from osora_bench.records import record
from osora_bench.reporting import committed
from tests.grids import cells_of
from tests.reporting.test_tabulate import made

EXPERIMENT = """\
title: Two methods
seed: [0]
set: {task: toy, eval: toy, ledger: results/ledger}
blocks:
  - {model: [toy], method: [none]}
  - {model: [toy], method: [lora], rank: [4]}
tables:
  both: {layout: methods, title: Both}
"""
PAGE = "Before.\n\n<!-- table two/both -->\nold\n<!-- end -->\n\nAfter.\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one experiment, one of whose cells has a record, and a page."""
    for name in ("experiments", "results/ledger"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "experiments" / "two.yaml").write_text(EXPERIMENT)
    (tmp_path / "README.md").write_text(PAGE)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    ledger = tmp_path / "results" / "ledger"
    (cell, _) = cells_of("two", [f"ledger={ledger}"])
    record.write_record(made(cell, (250, 100)), ledger)
    return tmp_path


def test_tables_and_pages_are_made_from_the_ledger(project):
    written = committed.regenerate(project)
    table = (project / "results" / "tables" / "two" / "both.md").read_text()
    assert "| Toy     | Base     |   **50.00** |  **20.00** | **35.00** |" in table
    assert (project / "README.md").read_text() == PAGE.replace("old\n", table)
    assert len(written) == 5
    page = (project / "results" / "report.html").read_text()
    assert '<h2 id="experiment-two/title">Two methods</h2>' in page
    assert committed.regenerate(project) == written
    assert (project / "README.md").read_text() == PAGE.replace("old\n", table)


def test_only_experiments_that_a_record_may_be_of_are_planned(project, monkeypatch):
    others = {
        "task": EXPERIMENT.replace("task: toy", "task: gpqa"),
        "suite": EXPERIMENT.replace("eval: toy", "eval: gpqa"),
        "method": EXPERIMENT.replace("[none]", "[dora]").replace("[lora]", "[pissa]"),
        "model": EXPERIMENT.replace("[toy]", "[qwen2-7b]"),
        "block": EXPERIMENT.replace("[none]}", "[none], set: {eval: gpqa}}"),
    }
    for name, text in others.items():
        (project / "experiments" / f"{name}.yaml").write_text(text)
    planned = []
    monkeypatch.setattr(
        committed, "expansion", lambda e, _: (planned.append(e.name), Expansion([], []))[1]
    )
    ledger = project / "results" / "ledger"
    found = record.read_ledger(ledger).records
    assert list(committed.recorded(ledger, found)) == []
    assert planned == ["two"]
    planned.clear()
    list(committed.recorded(ledger, found, ["eval=toy", "task=toy"]))
    assert set(planned) == {"task", "suite", "block", "two"}
    planned.clear()
    (project / "experiments" / "full.yaml").write_text(others["suite"] + "full: {eval: toy}\n")
    list(committed.recorded(ledger, found, ["scale=full"]))
    assert set(planned) == {"full", "two"}


def test_a_page_that_asks_for_another_table_is_a_mistake(project):
    (project / "README.md").write_text(PAGE.replace("two/both", "two/bth"))
    with pytest.raises(UserError, match=r"README.md: unknown table 'two/bth'. Did you mean 'two/b"):
        committed.regenerate(project)


def test_what_is_committed_is_what_the_committed_ledger_gives(tmp_path):
    written = committed.regenerate(tmp_path, figures=False)
    for made_now in written:
        name = made_now.relative_to(tmp_path)
        assert (paths.ROOT / name).read_text() == made_now.read_text(), name
    tables = {p.relative_to(paths.ROOT) for p in paths.RESULTS.glob("tables/*/*")}
    assert tables <= {p.relative_to(tmp_path) for p in written}


def test_every_record_that_is_committed_is_whole_and_of_a_clean_commit():
    ledger = record.read_ledger(paths.RESULTS / "ledger")
    assert ledger.damaged == []
    for name, body in ledger.records.items():
        assert body["provenance"]["code"]["dirty"] is False, name
