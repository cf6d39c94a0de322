"""The paper's own accuracies give the paper's own tables; figures are drawn from records."""

import itertools
import shutil
import subprocess
from dataclasses import replace
from decimal import Decimal
from functools import cache
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from osora_bench.cli.main import main
from osora_bench.common.errors import UserError
from osora_bench.models import counting
from osora_bench.planning.cell import Cell, cell_of
from osora_bench.planning.config import plain
from osora_bench.planning.experiments import load_experiment
from osora_bench.records import record
from osora_bench.reporting import figures, reference, render, tabulate
from osora_bench.reporting import rows as reporting_rows
from osora_bench.reporting import table as reporting_table
from osora_bench.reporting.numbers import percent
from tests import grids

HEADS = {
    "table1": ["Model", "Method", "BoolQ", "PIQA", "SIQA", "HellaSwag", "WinoGrande", "ARC_e",
               "ARC_c", "OBQA", "Avg."],
    "table2": ["Model", "Method", "MATH", "GSM8K", "Avg."],
    "table3": ["r", "LoRA", "VeRA", "OSoRA"],
    "table4": ["Model", "MATH", "GSM8K", "Avg."],
    "table5": ["Method", "Params", "MATH", "GSM8K"],
    "table6": ["Method", "Params", "MATH", "GSM8K"],
    "table7": ["Model", "Method", "r", "η", "Batch"],
    "table8": ["Model", "Method", "r", "η", "Batch"],
    "figure3": ["Method", "MATH", "GSM8K"],
}  # fmt: skip
"""Headings as the paper prints them, in its order."""
MISPRINTED = {"59.38": "59.51", "71.50": "71.37", "83.00": "83.01"}
RESULTS = ["table1", "table2", "table3", "table4", "table5", "table6", "figure3"]


cells_of = cache(grids.cells_of)


def rights(value: str, n: int) -> int:
    nearest = int(Decimal(value) * n / 100)
    return next(k for k in range(nearest, nearest + 2) if str(percent(k, n)) == value)


def fed_record(cell: Cell, printed: dict) -> dict:
    """A record of the cell with the paper's accuracies."""
    config = cell.config
    method, scores = config.method, {}
    for dataset in config.eval.datasets:
        key = reference.Key(config.model.name, method.name, method.rank, dataset.label)
        n = dataset.questions
        k = rights(printed[key].value, n)
        scores[dataset.name] = {
            "k": k, "n": n, "questions": n, "accuracy": 100 * k / n,
            "right": record.pack([i < k for i in range(n)]),
        }  # fmt: skip
    return {
        "run_id": cell.run_id,
        "config": plain(config),
        "provenance": {"fingerprints": dict(cell.fingerprints)},
        "parameters": {"trainable": counting.count(config).trainable},
        "training": None,
        "scores": scores,
        "measured": {},
    }


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """One ledger with every cell of the paper's tables at its printed accuracies."""
    folder = tmp_path_factory.mktemp("ledger")
    for name in RESULTS:
        printed = reference.load_reference(name)
        for cell in cells_of(name):
            if not (folder / f"{cell.run_id}.json").exists():
                record.write_record(fed_record(cell, printed), folder)
    return folder


def built(name: str, ledger, **options) -> reporting_table.Table:
    cells = [replace(c, config=replace(c.config, ledger=str(ledger))) for c in cells_of(name)]
    tables, damaged = tabulate.build_tables(load_experiment(name), cells, **options)
    assert damaged == []
    return tables[0]


def printed_rows(name: str) -> list[list[str]]:
    """The reference's rows in the paper's order: the numbers of each, with the means corrected."""
    rows: dict[int, list[str]] = {}
    for number in reference.load_reference(name).values():
        misprinted = number.key.column == "Avg." and number.value in MISPRINTED
        value = MISPRINTED[number.value] if misprinted else number.value
        rows.setdefault(number.row, []).append(value)
    return [rows[row] for row in sorted(rows)]


@pytest.mark.parametrize("name", RESULTS)
def test_the_papers_accuracies_give_the_papers_table(name, ledger):
    table = built(name, ledger)
    assert list(table.frame) == HEADS[name]
    numbers = [
        [text for column, text in row.items() if column in table.numbers and text != "-"]
        for row in table.frame.to_dict("records")
    ]
    assert numbers == printed_rows(name)


@pytest.mark.parametrize("name", ["table1", "table2", "table4", "table5", "table6", "figure3"])
def test_rows_are_the_papers_in_its_order(name, ledger):
    table = built(name, ledger)
    order = dict.fromkeys(
        (n.row, n.key.model, n.key.method) for n in reference.load_reference(name).values()
    )
    keys = next(iter(table.numbers.values()))
    assert [(k.key.model, k.key.method) for k in keys] == [(m, a) for _, m, a in sorted(order)]


def test_cells_that_tables_share_are_run_once(ledger):
    runs = {name: {cell.run_id for cell in cells_of(name)} for name in RESULTS}
    assert len(set().union(*runs.values())) == 15 + 10 + 14 + 1 + 2 + 2 + 2
    assert len(runs["table4"] & runs["table2"]) == 2
    assert len(runs["table6"] & runs["table2"]) == 4


@pytest.mark.parametrize(("name", "of"), [("table7", "table1"), ("table8", "table2")])
def test_hyper_parameters_are_those_that_the_experiment_runs(name, of, ledger):
    table = built(name, ledger)
    assert list(table.frame) == HEADS[name]
    values = table.frame[["r", "η", "Batch"]].to_numpy().tolist()
    assert values == printed_rows(name)
    assert {c.run_id for c in cells_of(name)} == {c.run_id for c in cells_of(of)}


def test_hyper_parameters_are_printed_once_for_neighbours_as_in_the_paper():
    lines = render.markdown(built("table7", "nowhere")).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:19]]
    assert rows[0] == ["LLaMA2-13B", "LoRA", "16", "2e-5", "20"]
    assert rows[3] == ["", "VeRA", "512", "3e-3", ""]
    assert rows[8] == ["", "VeRA", "256", "5e-2", "16"]
    assert rows[9] == ["", "OSoRA", "", "3e-3", "20"]
    assert rows[14] == ["", "OSoRA", "", "", ""]


def test_best_is_bold_for_each_model(ledger):
    text = render.markdown(built("table2", ledger))
    assert text.count("**54.81**") == text.count("**78.85**") == text.count("**53.11**") == 1
    assert "**50.31**" not in text
    text = render.markdown(built("table3", ledger))
    assert all(best in text for best in ("**36.87**", "**33.84**", "**35.86**"))


def test_ours_beside_the_papers_with_the_difference(ledger):
    table = built("table1", ledger, compare=True)
    assert len(table.frame) == 3 * 15
    vera = table.frame[table.frame["Method"].eq("VeRA") & table.frame["Model"].eq("LLaMA2-13B")]
    assert vera[""].tolist() == ["ours", "paper", "difference"]
    assert vera["Avg."].tolist() == ["59.51", "59.38", "+0.13"]
    assert vera["BoolQ"].tolist() == ["67.16", "67.16", "+0.00"]
    params_table = built("table5", ledger, compare=True)
    assert set(params_table.frame["Params"]) == {"196608", "294912", "+0"}
    ranks = built("table3", ledger, compare=True).frame
    assert ranks.iloc[0].tolist() == ["2", "ours", "29.80", "-", "-"]
    assert ranks.iloc[2].tolist() == ["2", "difference", "+0.00", "-", "-"]
    for name in ("table7", "demo"):
        with pytest.raises(UserError, match="no results to stand beside these tables"):
            built(name, ledger, compare=True)


@pytest.mark.parametrize("name", [*RESULTS, "table7", "table8"])
def test_every_table_renders_before_any_run(name, tmp_path):
    for compare in (False, True) if name in RESULTS else (False,):
        table = built(name, tmp_path, compare=compare)
        assert render.write_tables([table], tmp_path / "tables")
        scores = [c for c in table.numbers if c != "Params"]
        if not compare:
            assert set(table.frame[scores].to_numpy().flatten()) <= {"", "-"}


@pytest.mark.parametrize("name", [*RESULTS, "table7", "table8"])
def test_latex_is_balanced_and_escaped(name, ledger):
    text = render.latex(built(name, ledger))
    assert text.count("{") == text.count("}")
    body = text.split("\\midrule")[1].split("\\bottomrule")[0]
    columns = text.split("\\begin{tabular}{")[1].split("}")[0]
    for line in body.strip().splitlines():
        assert line.count(" & ") == len(columns) - 1, line
        assert line.endswith("\\\\")
    assert "_" not in text.replace("\\_", "")
    assert text.isascii()


def compiled(source: Path) -> str:
    """What pdflatex says of a file that it compiles."""
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", source.name]
    run = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Output written" in run.stdout
    return run.stdout


needs_latex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="no pdflatex on this machine: .ci/run installs it"
)


@needs_latex
@pytest.mark.parametrize(
    ("name", "compare"),
    [*itertools.product(RESULTS, (False, True)), ("table7", False), ("table8", False)],
)
def test_latex_compiles_as_it_stands_and_fits_the_page(name, compare, ledger, tmp_path):
    render.write_tables([built(name, ledger, compare=compare)], tmp_path)
    told = compiled(tmp_path / f"{name}.tex")
    assert "Overfull" not in told
    assert "Float too large" not in told


@needs_latex
def test_a_document_takes_the_tables_in(ledger, tmp_path):
    names = [*RESULTS, "table7", "table8"]
    render.write_tables([built(name, ledger) for name in names], tmp_path)
    taken = "\n".join(f"\\input{{{name}}}" for name in names)
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\n"
        f"\\begin{{document}}\n{taken}\nThe end.\\end{{document}}\n"
    )
    compiled(tmp_path / "all.tex")
    labels = (tmp_path / "all.aux").read_text()
    assert all(f"\\newlabel{{tab:{name}}}" in labels for name in names)


def test_limited_sets_and_other_seeds_only_on_request_and_marked(tmp_path):
    cells = cells_of("table4")
    osora = next(c for c in cells if c.config.method.name == "osora")
    made = fed_record(osora, reference.load_reference("table4"))
    limited = {n: {**s, "n": 4, "k": 3, "right": record.pack([True] * 3 + [False])}
               for n, s in made["scores"].items()}  # fmt: skip
    seventh = cell_of(replace(osora.config, seed=7))
    other = {**fed_record(seventh, reference.load_reference("table4"))}
    record.write_record({**made, "scores": limited}, tmp_path)
    record.write_record(other, tmp_path)
    frame = built("table4", tmp_path).frame.set_index("Model")
    assert frame.loc["OSoRA", "Avg."] == ""
    shown = built("table4", tmp_path, others=True)
    frame = shown.frame.set_index("Model")
    assert frame.loc["OSoRA", "MATH"].endswith("†")
    assert "±" in frame.loc["OSoRA", "MATH"]
    assert frame.loc["VeRA", "Avg."] == ""
    assert "† fewer than all questions (as few as 4 of a set)" in render.markdown(shown)


def test_missing_seeds_are_said(tmp_path):
    config = cells_of("table4")[0].config
    cell = Cell("x", config, ())
    row = reporting_rows.Row(cell, [], seeds=3)
    assert row.show([Decimal("1.00"), Decimal("3.00")]) == "2.00 ± 1.41 (2 of 3 seeds)"
    assert row.show([]) == ""


def test_the_leak_is_said_under_table_3_and_not_under_its_clean_twin(tmp_path):
    warning = "the training rows contain the test questions"
    assert warning in render.markdown(built("table3", tmp_path))
    assert warning not in render.markdown(built("table3-clean", tmp_path))


def test_an_unknown_column_names_those_there_are(tmp_path):
    experiment = load_experiment("table4")
    experiment.tables["table4"].columns = ["method", "dataset"]
    with pytest.raises(UserError, match="unknown column 'dataset'. Did you mean 'datasets'"):
        tabulate.build_tables(experiment, cells_of("table4"))


@pytest.mark.parametrize("name", ["figure1", "figure3"])
def test_figures_are_drawn_the_same_each_time(name, tmp_path, ledger):
    cells = [replace(c, config=replace(c.config, ledger=str(ledger))) for c in cells_of(name)]
    twice = [figures.draw(load_experiment(name), cells, tmp_path / part) for part in "ab"]
    assert [p.suffix for p in twice[0]] == [".png", ".svg", ".pdf"]
    for first, second in zip(*twice, strict=True):
        assert first.stat().st_size > 2000
        assert first.read_bytes() == second.read_bytes()


def test_figure_1_says_that_lora_grows_linearly(tmp_path):
    spec = figures.chart(load_experiment("figure1").figures["figure1"], cells_of("figure1"))
    values = spec["data"]["values"]
    # 28 layers x (3584 + 3584 + 512 + 3584), and two vectors of r in each of 28 layers
    assert list(dict.fromkeys(value["series"] for value in values)) == [
        "LoRA: 315,392 more for each rank",
        "VeRA: 56 more for each rank",
        "OSoRA: 56 more for each rank",
    ]
    lora = [value for value in values if value["Method"] == "LoRA"]
    told = {int(v["Trainable"].replace(",", "")) / int(v["Rank"]) for v in lora}
    assert told == {315_392.0}
    assert [v["y"] for v in lora] == pytest.approx([315_392 * int(v["Rank"]) for v in lora], 1e-5)


def test_figure_3_shows_the_numbers_of_the_records(tmp_path, ledger):
    cells = [replace(c, config=replace(c.config, ledger=str(ledger))) for c in cells_of("figure3")]
    spec = figures.chart(load_experiment("figure3").figures["figure3"], cells)
    heights = {value["value"] for value in spec["data"]["values"] if not value["paper"]}
    assert heights == {12.10, 10.08, 9.02, 54.81, 49.05, 44.73}


def test_an_unknown_kind_of_figure_names_those_there_are(tmp_path):
    experiment = load_experiment("figure1")
    experiment.figures["figure1"].kind = "bar"
    with pytest.raises(UserError, match="unknown kind of figure 'bar'. Did you mean 'bars'"):
        figures.draw(experiment, [], tmp_path)


def test_the_verbs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["audit"]) == 0
    assert "printed 71.50, its cells give 71.37" in capsys.readouterr().out
    assert main(["params", "model=toy", "method=osora", "rank=8", "--csv"]) == 0
    line = pd.read_csv(StringIO(capsys.readouterr().out)).iloc[0]
    assert line["trainable"] > 0
    assert main(["params", "method=osorra"]) == 2
    assert "Did you mean 'osora'" in capsys.readouterr().err
    assert main(["params", "rank=x"]) == 2
    assert main(["run", "experiment=table8"]) == 0
    assert "nothing to run" in capsys.readouterr().out
    assert main(["figures", "experiment=figure1", f"out={tmp_path}/f"]) == 0
    assert main(["tables", "experiment=table4", "compare=ours", f"out={tmp_path}/t"]) == 2
    assert "unknown value of compare 'ours'" in capsys.readouterr().err
    assert main(["plan", "experiment=table4", "scale=tiny"]) == 2
    assert "unknown scale 'tiny'. Valid: full, smoke" in capsys.readouterr().err
