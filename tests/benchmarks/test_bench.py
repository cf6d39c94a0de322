"""`make bench`: what it runs, its table, and the code for a GPU on a CPU with tiny shapes."""

import json
import sys

import pytest

import benchmarks.__main__ as bench
from benchmarks import rows as table
from osora_bench.common.errors import UserError

ROW = table.row("a / b", [1.0, 2.0, 3.0], 4.0, "2 / 1 s", at_least=1.5)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    return bench.main()


def test_each_benchmark_is_a_module_with_rows():
    for module in (one for modules in bench.MODULES.values() for one in modules):
        place = table.ROOT / "benchmarks" / f"{module.replace('.', '/')}.py"
        assert "\ndef rows(" in place.read_text(encoding="utf-8"), module


def test_rows_are_chosen_by_name_and_a_bad_one_names_the_valid(monkeypatch, capsys):
    assert bench.chosen("cpu", "step,params") == ["step", "params"]
    assert bench.chosen("cuda", "cells") == ["cuda.cells"]
    assert bench.chosen("cpu", "") == list(bench.MODULES["cpu"])
    assert run(monkeypatch, "--rows", "trainig") == 2
    told = capsys.readouterr().err
    assert "Did you mean 'training'?" in told
    assert all(name in told for name in bench.MODULES["cpu"])


def test_a_gpu_that_is_not_there_is_told_at_once(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("something was measured"))
    assert run(monkeypatch, "--device", "cuda") == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_a_row_shows_quartiles_limit_and_goal():
    assert str(ROW) == "| a / b | 2.00 (1.50 to 2.50) | 4.00 | ≥ 1.5 | 2 / 1 s |"
    assert not ROW.missed
    missed = table.row("a / b", [1.0], None, "", at_most=0.9)
    assert missed.missed
    assert "**≤ 0.9, missed**" in str(missed)
    assert not table.row("a / b", [9.0], None, "").missed


def test_the_table_names_what_missed_its_goal_and_what_failed(monkeypatch, capsys):
    cost, missed = table.Cost(1, 1, 1), table.row("slow / fast", [1.0], None, "", at_least=2)
    results = {"good": ([ROW], None, cost), "bad": ([missed], None, cost),
               "out": ([], "no model", cost)}  # fmt: skip

    def measured(module):
        if module == "broken":
            raise RuntimeError("it fell over")
        return results[module]

    monkeypatch.setattr(bench, "measured", measured)
    lines, well = bench.measure(["good", "bad", "out"])
    assert well
    assert lines[-1] == "Goals missed: slow / fast (≥ 2)."
    assert "| out | | | | no model |" in lines
    lines, well = bench.measure(["good", "broken"])
    assert not well
    assert "| broken | | | | failed: it fell over |" in lines


def test_the_page_keeps_what_stands_around_the_table(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- bench cpu -->\nold\n<!-- end -->\nb\n<!-- bench cuda -->\n<!-- end -->\n"
    )
    monkeypatch.setattr(bench, "PAGE", page)
    bench.write("cpu", [str(ROW)], 0.0, 0.5)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"a\n<!-- bench cpu -->\n{ROW}\n")
    assert text.endswith("<!-- end -->\nb\n<!-- bench cuda -->\n<!-- end -->\n")
    assert "old" not in text


def test_a_benchmark_takes_settings_by_name(monkeypatch, capsys, tmp_path):
    def rows(*, pairs: int = 1, model: str = "toy"):
        yield table.row(model, [pairs], None, "")
        raise table.LeftOut("no data")

    place = tmp_path / "rows.json"
    monkeypatch.setenv("BENCHMARK_ROWS", str(place))
    monkeypatch.setattr(sys, "argv", ["bench", "pairs=3", "model=other"])
    monkeypatch.chdir(tmp_path)
    table.run(rows)
    assert "| other | 3.00 |" in capsys.readouterr().out
    told = json.loads(place.read_text())
    assert told["left_out"] == "no data"
    assert table.Row(**told["rows"][0]).name == "other"
    monkeypatch.setattr(sys, "argv", ["bench", "pair=3"])
    with pytest.raises(SystemExit, match="pairs=1, model=toy"):
        table.run(rows)


def test_what_is_left_out_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path))
    with pytest.raises(table.LeftOut, match="siqa is missing: OSORA_DATA"):
        table.need_data("siqa")


def test_a_command_that_fails_is_told_with_its_words(tmp_path):
    code = "import sys; print('why'); sys.exit(3)"
    with pytest.raises(RuntimeError, match="exit status 3\nwhy"):
        table.cost_of([sys.executable, "-c", code], tmp_path / "output")


def test_a_device_without_benchmarks_is_refused():
    with pytest.raises(UserError, match="unknown benchmark"):
        bench.chosen("cuda", "sweep")
