"""Tables are a pure function of records: a reviewed golden ledger gives the same bytes."""

from decimal import Decimal
from pathlib import Path

import pytest

from osora_bench.common.errors import UserError
from osora_bench.planning.cell import Cell
from osora_bench.planning.config import plain
from osora_bench.planning.experiments import load_experiment
from osora_bench.records import record
from osora_bench.reporting import numbers, render, tabulate
from osora_bench.reporting import rows as reporting_rows
from osora_bench.reporting.layouts import methods, notes
from tests.grids import cells_of

GOLDEN = Path(__file__).parent / "golden"
N = 500
# right answers on the two sets, by method and rank
RIGHT = {
    ("none", None): (10, 100),
    ("lora", 1): (250, 200),
    ("lora", 2): (300, 260),
    ("lora", 4): (400, 260),
    ("lora", 8): (450, 300),
    ("lora", 16): (487, 333),
    ("lora", 32): (470, 333),
    ("dora", 16): (487, 321),
    ("pissa", 16): (450, 440),
    ("vera", 8): (100, 120),
    ("vera", 16): (120, 120),
    ("vera", 64): (233, 300),
    ("osora", 8): (150, 140),
    ("osora", 16): (200, 180),
    ("osora", 32): (250, 222),
    ("osora", 64): (333, 300),
}


def score(k: int, n: int = N, questions: int = N) -> dict:
    verdicts = [i < k for i in range(n)]
    accuracy = 100 * k / n
    return {
        "k": k,
        "n": n,
        "questions": questions,
        "accuracy": accuracy,
        "right": record.pack(verdicts),
    }


def made(cell: Cell, rights: tuple[int, ...], **limits: int) -> dict:
    names = [d.name for d in cell.config.eval.datasets]
    return {
        "run_id": cell.run_id,
        "config": plain(cell.config),
        "provenance": {},
        "parameters": {"trainable": 1000 * (cell.config.method.rank or 0)},
        "training": None,
        "scores": {name: score(k, **limits) for name, k in zip(names, rights, strict=True)},
        "measured": {},
    }


@pytest.fixture
def ledger(tmp_path):
    """The demo's cells with the numbers of RIGHT; VeRA at rank 32 has not been run."""
    cells = cells_of("demo", [f"ledger={tmp_path}"])
    for cell in cells:
        key = (cell.config.method.name, cell.config.method.rank)
        if key in RIGHT:
            record.write_record(made(cell, RIGHT[key]), tmp_path)
    return cells


def test_golden_ledger_gives_the_reviewed_tables(ledger, tmp_path):
    tables, damaged = tabulate.build_tables(load_experiment("demo"), ledger)
    assert damaged == []
    written = render.write_tables(tables, tmp_path / "tables")
    assert {p.name for p in written} == {p.name for p in GOLDEN.iterdir()}
    for path in written:
        assert path.read_text() == (GOLDEN / path.name).read_text(), path.name


def test_a_damaged_record_is_named_and_the_others_still_make_tables(ledger):
    lora = next(c for c in ledger if c.label == "toy lora r=16 seed=0")
    lora.record.write_text(lora.record.read_text()[:-9])
    tables, damaged = tabulate.build_tables(load_experiment("demo"), ledger)
    assert len(damaged) == 1
    assert lora.record.name in damaged[0]
    frame = tables[0].frame.set_index("Method")
    assert frame.loc["LoRA", "Avg."] == ""
    assert frame.loc["PiSSA", "Avg."] == "89.00"


def test_no_record_at_all_still_gives_a_table(tmp_path):
    cells = cells_of("demo", [f"ledger={tmp_path}"])
    tables, _ = tabulate.build_tables(load_experiment("demo"), cells)
    for table in tables:
        assert "No run has finished yet." in render.markdown(table)
        assert not table.best.to_numpy().any()


def test_a_limited_set_is_never_shown_as_a_full_score(tmp_path):
    cells = cells_of("demo", [f"ledger={tmp_path}"])
    for cell in cells:
        record.write_record(made(cell, (3, 4), n=6), tmp_path)
    tables, _ = tabulate.build_tables(load_experiment("demo"), cells)
    assert set(tables[0].frame["Avg."]) == {""}
    assert "a limit cut the set: GSM8K-toy, CSQA-toy" in render.markdown(tables[0])


def test_a_set_that_is_left_out_is_blank_and_so_is_the_average(tmp_path):
    cells = cells_of("demo", [f"ledger={tmp_path}", "eval.without=[commonsenseqa-toy]"])
    for cell in cells:
        whole = made(cell, (300, 0))
        del whole["scores"]["commonsenseqa-toy"]
        record.write_record(whole, tmp_path)
    tables, _ = tabulate.build_tables(load_experiment("demo"), cells)
    frame = tables[0].frame
    assert set(frame["GSM8K-toy"]) == {"60.00"}
    assert set(frame["CSQA-toy"]) == set(frame["Avg."]) == {""}
    told = render.markdown(tables[0])
    assert "Left blank, since eval.without leaves it out: CSQA-toy." in told
    assert "a limit cut" not in told


def test_percentages_are_rounded_half_up_like_the_papers():
    assert numbers.percent(1, 16) == Decimal("6.25")
    assert numbers.percent(1, 800) == Decimal("0.13")  # 0.125
    assert numbers.mean([Decimal("72.47"), Decimal("44.68")]) == Decimal("58.58")  # 58.575


def test_several_seeds_are_a_mean_with_their_spread(tmp_path):
    config = cells_of("demo")[0].config
    cell = Cell("x", config, ())
    runs = [made(cell, rights) for rights in ((400, 300), (410, 310), (420, 320))]
    row = reporting_rows.Row(cell, runs)
    averages = row.averages()
    assert averages == [Decimal("70.00"), Decimal("72.00"), Decimal("74.00")]
    assert numbers.shown_values(averages) == "72.00 ± 2.00"


def test_standard_error_is_the_binomial_one():
    config = cells_of("demo")[0].config
    cell = Cell("x", config, ())
    row = reporting_rows.Row(cell, [made(cell, (250, 250))])
    # two sets of 500 at one half: sqrt(0.25 / 500 / 2) of 100 points
    assert row.standard_error() == pytest.approx(100 * (0.25 / 1000) ** 0.5)


def test_an_unknown_layout_names_those_there_are():
    experiment = load_experiment("demo")
    experiment.tables["ranks"].layout = "rank"
    with pytest.raises(UserError, match="unknown table layout 'rank'. Did you mean 'ranks'"):
        tabulate.build_tables(experiment, cells_of("demo"))


def test_answers_that_were_cut_are_told_below_a_table(tmp_path):
    """The most of a run, set by set; records of before there was a count say nothing."""
    cells = [c for c in cells_of("demo", [f"ledger={tmp_path}"]) if c.config.method.rank]
    for cell, cut in zip(cells[:3], (7, 30, None), strict=True):
        body = made(cell, (100, 200))
        if cut is not None:
            list(body["scores"].values())[0]["cut"] = cut  # noqa: RUF015
        record.write_record(body, tmp_path)
    rows, _ = reporting_rows.recorded_rows(cells[:3])
    told = "Answers cut at the length limit, in one run at most: 30 of 500 (GSM8K-toy)."
    assert told in notes.notes_below(rows)
    assert not any("cut at" in note for note in notes.notes_below(rows[2:]))


def test_corrected_scores_have_a_column_of_their_own(tmp_path):
    """Of one set 100 of 500 are right, and 150 without a mistake; the other has no mistake."""
    cells = [c for c in cells_of("demo", [f"ledger={tmp_path}"]) if c.config.method.rank]
    body = made(cells[0], (100, 200))
    first, second = body["scores"].values()
    first["corrected"] = {"rule": "commas are none", "k": 150, "differ": 50, "right": ""}
    second["corrected"] = None
    record.write_record(body, tmp_path)
    experiment = load_experiment("demo")
    (spec,) = [s for s in experiment.tables.values() if s.layout == "methods"][:1]
    spec.columns, spec.methods = ["method", "average", "corrected"], ["lora"]
    spec.select = None
    rows, _ = reporting_rows.recorded_rows(cells[:1])
    table = methods.by_method("t", spec, rows)
    assert table.frame.iloc[0, 1:].tolist() == ["30.00", "35.00"]
    assert "Avg. corrected: without what OpenCompass misreads (GSM8K-toy: commas are none)." in (
        table.notes
    )
