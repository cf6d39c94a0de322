"""Paired differences against numbers worked out another way; the table of tried rates."""

from dataclasses import replace

import pytest
import scipy.stats

from osora_bench.common.errors import UserError
from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import TableSpec
from osora_bench.records import record
from osora_bench.reporting import render
from osora_bench.reporting import rows as reporting_rows
from osora_bench.reporting.layouts import against, ranking, tuning
from tests.grids import cells_of
from tests.reporting.test_tabulate import score


def row(cell, verdicts_by_seed):
    """A row whose runs have given verdicts: a list (seeds) of lists (sets) of verdicts."""
    runs = []
    names = [d.name for d in cell.config.eval.datasets]
    for seed, verdicts in enumerate(verdicts_by_seed):
        scores = {}
        for name, right in zip(names, verdicts, strict=True):
            n = len(right)
            scores[name] = {**score(sum(right), n, n), "right": record.pack(right)}
        told = {"run_id": f"{cell.run_id}-{seed}", "config": {"seed": seed}, "provenance": {}}
        runs.append({**told, "scores": scores, "training": None})
    return reporting_rows.Row(cell, runs, len(runs))


@pytest.fixture
def cell():
    return cells_of("demo")[0]


def test_the_table_names_the_baseline_first_and_leaves_unrun_methods_blank(cell):
    verdicts = [[[True, True, False, True]] * 2]
    cells = {c.config.method.name: c for c in cells_of("demo", ["eval.limit=4"])}
    rows = [
        row(cells["osora"], verdicts),
        row(cells["lora"], [[[True, False, False, True]] * 2]),
        reporting_rows.Row(cells["vera"], []),
    ]
    spec = TableSpec("against", "T", baseline="osora")
    table = against.against("t", spec, rows)
    assert list(table.frame) == ["Method", "OSoRA less it", "95 % interval", "p (Holm)", "so"]
    assert list(table.frame["Method"]) == ["LoRA", "VeRA"]
    # 1 of 4 questions differs, in each set: a standard error of 25 / sqrt(2) points
    margin = 1.959964 * 25 / 2**0.5
    interval = f"{25 - margin:+.2f} to {25 + margin:+.2f}"
    p = f"{2 * scipy.stats.norm.sf(2**0.5):.3f}"
    assert table.frame.iloc[0].tolist() == ["LoRA", "+25.00", interval, p, "OSoRA ties"]
    assert table.frame.iloc[1].tolist() == ["VeRA", "", "", "", ""]
    assert "Of one seed (OSoRA, LoRA)" in table.notes[1]
    assert "paired by question" in render.markdown(table)
    with pytest.raises(UserError, match="2 rows are of baseline osora"):
        against.against("t", spec, [*rows, rows[0]])
    with pytest.raises(UserError, match="unknown baseline 'osra'. Did you mean 'osora'"):
        against.against("t", TableSpec("against", "T", baseline="osra"), rows)


def test_p_is_adjusted_for_all_methods_of_the_table(cell):
    """One set, one seed: McNemar's exact test, of two comparisons by Holm."""
    cells = {
        c.config.method.name: c for c in cells_of("demo", ["eval.without=[commonsenseqa-toy]"])
    }
    suite = cells["osora"].config.eval
    one_set = replace(suite, datasets=[replace(suite.datasets[0], questions=40)])
    rows = []
    for method, right in (("osora", 30), ("lora", 20), ("vera", 27), ("pissa", 0)):
        chosen = replace(cells[method], config=replace(cells[method].config, eval=one_set))
        rows.append(row(chosen, [[[i < right for i in range(40)]]] if right else []))
    table = against.against("t", TableSpec("against", "T", baseline="osora"), rows)
    raw = [scipy.stats.binomtest(0, n).pvalue for n in (10, 3)]
    assert table.frame["p (Holm)"].tolist() == [f"{2 * raw[0]:.3f}", f"{raw[1]:.3f}", ""]
    assert table.frame["so"].tolist() == ["OSoRA wins", "OSoRA ties", ""]


def test_a_ranking_says_between_which_ranks_each_method_may_stand(cell):
    cells = {c.config.method.name: c for c in cells_of("demo", ["eval.limit=40"])}
    rights = {"osora": 30, "vera": 29, "lora": 10, "pissa": None, "dora": 9}
    rows = [
        row(cells[m], [[[i < n for i in range(40)]] * 2] * 2)
        if n
        else reporting_rows.Row(cells[m], [])
        for m, n in rights.items()
    ]
    table = ranking.ranking("t", TableSpec("ranking", "T", baseline="lora"), rows)
    assert table.frame["Method"].tolist() == ["OSoRA", "VeRA", "LoRA", "DoRA", "PiSSA"]
    assert table.frame["Rank"].tolist() == ["1 to 2", "1 to 2", "3 to 4", "3 to 4", ""]
    assert table.frame["P(above LoRA)"].tolist() == ["1.00", "1.00", "", "0.00", ""]
    assert table.frame["Seeds"].tolist() == ["2", "2", "2", "2", ""]
    assert table.best["Avg."].tolist() == [True, True, False, False, False]
    half = 196 * (0.75 * 0.25 / 39 / 2) ** 0.5
    assert table.frame["95 % interval"][0] == f"{75 - half:.2f} to {75 + half:.2f}"


def test_tried_rates_show_the_lowest_loss_of_each_method(cell):
    def trial(method, rate, loss):
        config = cells[method].config
        config = replace(config, trainer=replace(config.trainer, learning_rate=rate))
        validation = {"rows": 8, "tokens": 16, "loss": loss}
        runs = [{"training": {"validation": validation}}] if loss else []
        return reporting_rows.Row(Cell("x", config, ()), runs)

    cells = {c.config.method.name: c for c in cells_of("demo")}
    rows = [trial("dora", 1e-3, 0.7), trial("dora", 1e-2, 0.6), trial("vera", 1e-2, 0.9)]
    table = tuning.tuning("t", TableSpec("tuning", "T"), [*rows, trial("vera", 0.1, None)])
    text = render.markdown(table)
    assert [r.split() for r in text.splitlines() if r.startswith("| DoRA")] == [
        ["|", "DoRA,", "r", "=", "16", "|", "0.7000", "|", "**0.6000**", "|", "-", "|"]
    ]
    assert "16 tokens in 8 rows" in text
    assert table.frame.iloc[1].tolist()[1:] == ["-", "0.9000", ""]


def test_other_settings_that_were_tried_have_a_row_each():
    cells = {c.config.method.name: c for c in cells_of("demo")}
    rows = []
    for method, tries, loss in (
        ("lora", ("rate=0.1", "lora_alpha=8"), 0.5),
        ("lora", ("rate=0.1", "lora_alpha=16"), 0.4),
        ("vera", ("rate=0.1", "d_initial=0.5"), 0.9),
    ):
        runs = [{"training": {"validation": {"rows": 8, "tokens": 16, "loss": loss}}}]
        rows.append(reporting_rows.Row(replace(cells[method], tries=tries), runs))
    table = tuning.tuning("t", TableSpec("tuning", "T"), rows)
    ranks = {name: cells[name].config.method.rank for name in ("lora", "vera")}
    assert table.frame.to_numpy().tolist() == [
        [f"LoRA, r = {ranks['lora']}", "rate=0.1, lora_alpha=8", "0.5000"],
        [f"LoRA, r = {ranks['lora']}", "rate=0.1, lora_alpha=16", "0.4000"],
        [f"VeRA, r = {ranks['vera']}", "rate=0.1, d_initial=0.5", "0.9000"],
    ]
    assert table.best["Loss"].tolist() == [False, True, True]
