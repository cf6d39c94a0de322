"""Layout and figure `rows`, and figures of a part of an experiment's cells."""

import pytest

from osora_bench.common import paths
from osora_bench.planning.experiments import FigureSpec, load_experiment
from osora_bench.records import record
from osora_bench.reporting import figures, tabulate
from osora_bench.reporting.rows import recorded_rows, selected
from tests.grids import cells_of
from tests.reporting.test_tabulate import made

EXPERIMENT = """\
title: Rows
seed: [0]
set: {task: toy, eval: toy, trainer.learning_rate: 1e-3}
blocks:
  - {model: [toy], method: [lora, osora], rank: [4], set: {task.max_rows: 100}}
  - {model: [toy], method: [lora], rank: [4], set: {task.max_rows: 200}}
  - {model: [toy], method: [lora, vera], rank: [16]}
tables:
  rows: {layout: rows, title: By rows, methods: [lora, osora]}
figures:
  rows: {kind: rows, title: By rows, methods: [lora, osora, vera]}
"""


@pytest.fixture
def cells(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path)
    (tmp_path / "rows.yaml").write_text(EXPERIMENT)
    found = cells_of("rows", [f"ledger={tmp_path}/ledger"])
    for place, cell in enumerate(found):
        record.write_record(made(cell, (50 * place, 100)), tmp_path / "ledger")
    return found


def test_a_row_a_number_of_training_rows(cells):
    ((table,), _) = tabulate.build_tables(load_experiment("rows"), cells)
    assert table.frame.to_numpy().tolist() == [["100", "10.00", "15.00"], ["200", "20.00", "-"]]
    assert list(table.frame) == ["Rows", "LoRA", "OSoRA"]


def test_a_line_a_method_against_the_training_rows(cells):
    spec = figures.chart(load_experiment("rows").figures["rows"], cells)
    axis = spec["layer"][-1]["encoding"]["x"]["axis"]
    assert (axis["title"], axis["values"]) == ("training rows", [100, 200])
    lines = {}
    for value in spec["data"]["values"]:
        place = min(axis["values"], key=lambda tick: abs(tick - value["x"]))
        lines.setdefault(value["series"], []).append((place, value["y"]))
    # VeRA's cells were trained on all rows
    assert lines == {"LoRA": [(100, 10), (200, 20)], "OSoRA": [(100, 15)]}


def test_a_figure_takes_the_ranks_that_it_selects(cells):
    rows, _ = recorded_rows(cells)
    select = [{"method": ["lora", "vera"], "rank": 16}, {"method": ["osora"]}]
    spec = FigureSpec("forest", "T", select=select, baseline="lora")
    chosen = [row for row in rows if selected(row, spec)]
    assert {(r.cell.config.method.name, r.cell.config.method.rank) for r in chosen} == {
        ("lora", 16), ("vera", 16), ("osora", 4),
    }  # fmt: skip
    figures.check("forest", spec, chosen)
