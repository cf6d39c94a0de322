"""Answers as a long table: what pandas makes of it are the records' own scores."""

import re
from textwrap import dedent

import pandas as pd
import pytest

from osora_bench.common import paths
from osora_bench.records import record
from osora_bench.reporting import rows as reporting_rows
from osora_bench.reporting.scores_csv import COLUMNS, write_scores
from tests.grids import cells_of
from tests.reporting.test_tabulate import made


def test_the_means_of_the_rows_are_the_records_accuracies(tmp_path):
    cells = cells_of("demo", [f"ledger={tmp_path}/ledger"])[:3]
    for number, cell in enumerate(cells):
        whole = made(cell, (100 + number, 300))
        whole["scores"]["gsm8k-toy"]["corrected"] = {
            "rule": "r", "k": 250, "right": record.pack([i < 250 for i in range(500)]), "differ": 1
        }  # fmt: skip
        record.write_record(whole, tmp_path / "ledger")
    place = tmp_path / "out" / "scores.csv"
    count = write_scores(reporting_rows.recorded_rows(cells)[0], place)
    table = pd.read_csv(place)
    assert list(table) == list(COLUMNS)
    assert count == len(table) == 3 * 1000
    by_run = 100 * table.groupby(["run_id", "set"])["right"].mean()
    for number, cell in enumerate(cells):
        assert by_run[cell.run_id, "gsm8k-toy"] == pytest.approx((100 + number) / 5)
    corrected = table.groupby("set")["right_corrected"].mean()
    assert corrected["gsm8k-toy"] == 0.5
    assert pd.isna(corrected["commonsenseqa-toy"])


def test_the_documented_matrix_is_of_one_method_and_rank(tmp_path, monkeypatch):
    cells = [
        cell
        for cell in cells_of("demo", [f"ledger={tmp_path}/ledger"])
        if cell.config.method.name in ("none", "osora")
    ]
    rights = {}
    for number, cell in enumerate(cells):
        rights[cell.config.method.rank, cell.config.seed] = [100 + number, 300 + number]
        record.write_record(made(cell, (100 + number, 300 + number)), tmp_path / "ledger")
    write_scores(reporting_rows.recorded_rows(cells)[0], tmp_path / "scores.csv")
    monkeypatch.chdir(tmp_path)
    text = (paths.ROOT / "docs" / "experiments.md").read_text()
    snippet = re.search(r"(    scores = pandas\.read_csv.*?)\n\n", text, re.S)[1]
    names = {"pandas": pd}
    exec(dedent(snippet), names)
    expected = [[rows[1] / 500, rows[0] / 500] for (rank, _), rows in rights.items() if rank == 64]
    assert names["matrix"].tolist() == [pytest.approx(row) for row in expected]
    assert len(names["accuracies"]) == len(cells) > len(expected) > 0
    rates = names["scores"].groupby("method")["learning_rate"].count()
    assert rates["none"] == 0  # blank, as nothing is trained
    assert rates["osora"] == (len(cells) - 1) * 1000


def test_no_record_is_a_table_without_rows(tmp_path):
    rows = reporting_rows.rows(cells_of("demo", [f"ledger={tmp_path}"]), {})
    assert write_scores(rows, tmp_path / "scores.csv") == 0
    assert list(pd.read_csv(tmp_path / "scores.csv")) == list(COLUMNS)
