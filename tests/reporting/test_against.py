"""Paired differences against numbers worked out another way; the table of tried rates."""

from dataclasses import replace

import pytest
import scipy.stats

from osora_bench.common.errors import UserError
from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import Experiment, FigureSpec, TableSpec
from osora_bench.records import record
from osora_bench.reporting import figures, render, statistics, tabulate
from osora_bench.reporting import rows as reporting_rows
from osora_bench.reporting.charts import of_rows
from osora_bench.reporting.layouts import against, costs, notes, ranking, tuning
from osora_bench.reporting.layouts.methods import by_method
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
        config = {"seed": seed, "trainer": {"processes": 1}}
        told = {"run_id": f"{cell.run_id}-{seed}", "config": config, "provenance": {}}
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
    assert list(table.frame["Method"]) == ["LoRA r=32", "VeRA r=64"]
    # 1 of 4 questions differs, in each set: a standard error of 25 / sqrt(2) points
    margin = 1.959964 * 25 / 2**0.5
    interval = f"{25 - margin:+.2f} to {25 + margin:+.2f}"
    p = f"{2 * scipy.stats.norm.sf(2**0.5):.3f}"
    assert table.frame.iloc[0].tolist() == ["LoRA r=32", "+25.00", interval, p, "OSoRA ties"]
    assert table.frame.iloc[1].tolist() == ["VeRA r=64", "", "", "", ""]
    assert table.notes[1].startswith("Test: Student's t of the paired difference")
    assert "Of one seed (OSoRA, LoRA)" in table.notes[-1]
    assert "paired by question" in render.markdown(table)
    with pytest.raises(UserError, match="2 rows are of baseline osora"):
        against.against("t", spec, [*rows, rows[0]])
    with pytest.raises(UserError, match="unknown baseline 'osra'. Did you mean 'osora'"):
        against.against("t", TableSpec("against", "T", baseline="osra"), rows)


def cells_on_one_set():
    """By method a cell of the demo, with one set of 40 questions."""
    cells = {
        c.config.method.name: c for c in cells_of("demo", ["eval.without=[commonsenseqa-toy]"])
    }
    suite = cells["osora"].config.eval
    one_set = replace(suite, datasets=[replace(suite.datasets[0], questions=40)])
    return {n: replace(c, config=replace(c.config, eval=one_set)) for n, c in cells.items()}


def test_p_is_adjusted_for_all_methods_of_the_table(cell):
    """One set, one seed: McNemar's exact test, of two comparisons by Holm."""
    cells = cells_on_one_set()
    rows = []
    for method, right in (("osora", 30), ("lora", 20), ("vera", 27), ("pissa", 0)):
        rows.append(row(cells[method], [[[i < right for i in range(40)]]] if right else []))
    table = against.against("t", TableSpec("against", "T", baseline="osora"), rows)
    raw = [scipy.stats.binomtest(0, n).pvalue for n in (10, 3)]
    assert table.frame["p (Holm)"].tolist() == [f"{2 * raw[0]:.3f}", f"{raw[1]:.3f}", ""]
    assert table.frame["so"].tolist() == ["OSoRA wins", "OSoRA ties", ""]
    assert table.notes[1] == "Test: McNemar's exact test (one seed each, one set)."


def test_every_pairs_test_is_named_and_the_same_in_both_tables(cell):
    """One method of two seeds beside three of one, on one set."""
    cells = cells_on_one_set()
    rows = []
    for method, seeds, right in (
        ("osora", 1, 30),
        ("lora", 1, 21),
        ("vera", 2, 24),
        ("dora", 1, 20),
    ):
        rows.append(row(cells[method], [[[i < right for i in range(40)]]] * seeds))
    table = against.against("t", TableSpec("against", "T", baseline="osora"), rows)
    assert "p is adjusted (Holm) for the table's 3 comparisons; a ranking's" in table.notes[0]
    exact, others = table.notes[1].split("; ")
    assert exact == "Tests: McNemar's exact test (one seed each, one set): LoRA, DoRA"
    assert others.endswith(": VeRA.")
    raw = [scipy.stats.binomtest(0, n).pvalue for n in (9, 10)]
    answers = [r.answers(r.datasets) for r in rows]
    raw.append(statistics.p_values([answers[0], answers[2]])[0, 1])
    lora, dora, vera = statistics.holm(raw)
    assert table.frame["p (Holm)"].tolist() == [f"{p:.3f}" for p in (lora, vera, dora)]
    below = ranking.ranking("t", TableSpec("ranking", "T"), rows).notes
    assert "(Holm over 6 pairs, 5 %)" in below[1]
    exact, others = below[2].split("; ")
    assert exact.endswith("(one seed each, one set): pairs of OSoRA, LoRA, DoRA")
    assert others.endswith(": all others.")
    assert below[3].startswith("`against` adjusts for the comparisons with its baseline alone")
    by_pair = statistics.p_values(answers)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert by_pair[i, j] == pytest.approx(statistics.p_values([answers[i], answers[j]])[0, 1])


def test_models_are_compared_apart(cell):
    """Each with the baseline on itself, and with Holm's adjustment and ranks of its own."""
    cells = {c.config.method.name: c for c in cells_of("demo")}
    rows = []
    for label, right in (("One", (30, 20)), ("Two", (10, 10))):
        for method, count in zip(("osora", "lora"), right, strict=True):
            config = cells[method].config
            suite = config.eval
            one_set = replace(suite, datasets=[replace(suite.datasets[0], questions=40)])
            config = replace(config, model=replace(config.model, label=label), eval=one_set)
            verdicts = [[i < count for i in range(40)]]
            rows.append(row(replace(cells[method], config=config), [verdicts]))
    table = against.against("t", TableSpec("against", "T", baseline="osora"), rows)
    assert table.groups == ["One", "Two"]
    raw = scipy.stats.binomtest(0, 10).pvalue  # one comparison a model: nothing to adjust
    assert table.frame["p (Holm)"].tolist() == [f"{raw:.3f}", "1.000"]
    assert table.frame["so"].tolist() == ["OSoRA wins", "OSoRA ties"]
    assert "p is adjusted (Holm) for each model's comparisons; a" in table.notes[0]
    ranked = ranking.ranking("r", TableSpec("ranking", "R", baseline="lora"), rows)
    assert ranked.groups == ["One", "One", "Two", "Two"]
    assert ranked.frame["Rank"].tolist() == ["1", "2", "1 to 2", "1 to 2"]
    assert ranked.best["Avg."].tolist() == [True, False, True, True]
    assert render.markdown(ranked).count("| One ") == 1


def one_set_rows(*given):
    """A row of one set of 40 questions for each (model, method, seeds, right)."""
    cells = {c.config.method.name: c for c in cells_of("demo")}
    rows = []
    for label, method, seeds, right in given:
        config = cells[method].config
        suite = replace(config.eval, datasets=[replace(config.eval.datasets[0], questions=40)])
        config = replace(config, model=replace(config.model, label=label, name=label), eval=suite)
        verdicts = [[[i < right for i in range(40)]]] * seeds
        rows.append(row(replace(cells[method], config=config), verdicts))
    return rows


def test_a_model_without_the_baseline_is_blank_and_named():
    rows = one_set_rows(
        ("One", "osora", 1, 30),
        ("One", "lora", 1, 20),
        ("Two", "lora", 1, 9),
        ("Two", "vera", 1, 5),
    )
    table = against.against("t", TableSpec("against", "T", baseline="osora"), rows)
    assert table.groups == ["One", "Two", "Two"]
    raw = scipy.stats.binomtest(0, 10).pvalue
    assert table.frame["p (Holm)"].tolist() == [f"{raw:.3f}", "", ""]
    said = "Left blank, since no row of OSoRA is there: Two."
    assert said in table.notes
    assert table.notes[1] == "Test: McNemar's exact test (one seed each, one set)."
    ranked = ranking.ranking("t", TableSpec("ranking", "T", baseline="osora"), rows)
    assert ranked.frame["P(above OSoRA)"].tolist() == ["", "0.00", "", ""]
    assert said in ranked.notes
    forest = FigureSpec("forest", "F", baseline="osora")
    figures.check("f", forest, rows)
    spec = of_rows.forest(forest, rows)
    assert [value["name"] for value in spec["data"]["values"]] == ["One, LoRA r=32"]
    assert spec["title"]["subtitle"].endswith("; left out, without OSoRA r=64: Two")
    with pytest.raises(
        UserError, match="table t: unknown baseline 'dora'. .* Valid: lora, osora, vera"
    ):
        ranking.ranking("t", TableSpec("ranking", "T", baseline="dora"), rows)
    with pytest.raises(UserError, match="on One 2 rows are of baseline osora"):
        against.against("t", TableSpec("against", "T", baseline="osora"), [*rows, rows[0]])


def test_only_tests_that_some_pair_had_are_named():
    """A run of one seed on each of two models is no pair of such runs."""
    rows = one_set_rows(
        ("One", "osora", 1, 30),
        ("One", "lora", 2, 20),
        ("Two", "osora", 1, 9),
        ("Two", "lora", 2, 5),
    )
    below = ranking.ranking("t", TableSpec("ranking", "T"), rows).notes
    assert [note for note in below if "McNemar" in note] == []
    assert any(note.startswith("Test: Student's t") for note in below)
    assert "(paired t, Holm over" in notes.notes_below(rows)[0]
    rows[1] = one_set_rows(("One", "lora", 1, 20))[0]
    below = ranking.ranking("t", TableSpec("ranking", "T"), rows).notes
    assert any("one set): pairs of OSoRA, LoRA on One; Student" in note for note in below)
    assert "(McNemar between rows of one run, else paired t, Holm" in notes.notes_below(rows)[0]
    held = against.against("t", TableSpec("against", "T", baseline="osora"), rows).notes
    assert "one set): LoRA on One; Student" in held[1]
    assert held[1].endswith(": LoRA on Two.")
    (alone,) = ([note for note in notes.notes_below(rows[:1]) if "n = 40" in note],)
    assert "Holm" not in alone[0]


def test_a_table_without_a_pair_says_so():
    (alone,) = rows = one_set_rows(("One", "osora", 1, 30))
    said = "There is nothing to compare here: complete are OSoRA r=64 only."
    for layout in (against.against, ranking.ranking):
        spec = TableSpec("x", "T", baseline="osora")
        table = layout("t", spec, rows)
        assert said in table.notes
        assert "Holm" not in " ".join(table.notes)
        empty = layout("t", spec, [reporting_rows.Row(alone.cell, [])])
        assert empty.notes == ["No run has finished yet."]
    pair = [*rows, *one_set_rows(("One", "lora", 1, 20))]
    assert "Holm" not in " ".join(ranking.ranking("t", TableSpec("ranking", "T"), pair).notes)
    compared = against.against("t", TableSpec("against", "T", baseline="osora"), pair)
    assert compared.notes[0].endswith("; p is of one comparison.")


def test_answers_without_spread_are_no_certainty():
    rows = one_set_rows(("One", "osora", 1, 0), ("One", "lora", 1, 0), ("One", "vera", 1, 9))
    ranked = ranking.ranking("t", TableSpec("ranking", "T"), rows)
    most = 100 * scipy.stats.binomtest(0, 40).proportion_ci(0.95).high
    assert ranked.frame["95 % interval"].tolist()[1:] == [f"0.00 to {most:.2f}"] * 2
    assert any(note.endswith("Pearson's: OSoRA r=64, LoRA r=32.") for note in ranked.notes)
    table = against.against("t", TableSpec("against", "T", baseline="osora"), rows)
    assert table.frame["95 % interval"][0] == "+0.00 to +0.00"
    assert any(note.endswith("which is no certainty: LoRA r=32.") for note in table.notes)
    told = notes.notes_below(rows[:2])[0]
    assert "all answers of a set are alike" in told
    assert "at most 0.0" not in told


def test_what_is_compared_in_the_sister_table_is_named():
    rows = one_set_rows(("One", "osora", 1, 30), ("One", "lora", 1, 20), ("One", "vera", 1, 9))
    tuned = replace(rows[1].cell, config=replace(rows[1].cell.config, tuning={"tried": []}))
    rows[1] = replace(rows[1], cell=tuned)
    specs = {"r": TableSpec("ranking", "R"), "a": TableSpec("against", "A", baseline="osora")}
    given, other, held = tabulate.tables_of(Experiment("E", [0], tables=specs), rows)
    assert (given.name, other.name, held.name) == ("r", "r-tuned", "a")
    apart = "apart as settings given and tuned are"
    assert given.notes[-1] == f"Compared in table r-tuned, {apart}: LoRA r=32."
    assert other.notes[-1] == f"Compared in table r, {apart}: OSoRA r=64, VeRA r=64."
    assert held.notes[-1].startswith("Not compared, since of these and the baseline one has")
    assert held.notes[-1].endswith(": LoRA r=32.")


@pytest.mark.parametrize("layout", [against.against, ranking.ranking, costs.costs, by_method])
def test_a_choice_at_the_end_is_marked_wherever_it_is_shown(cell, layout):
    cells = {c.config.method.name: c for c in cells_of("demo")}
    verdicts = [[[True, False]] * 2]
    at_end = replace(cells["lora"].config, tuning={"tried": [], "edge": ["trainer.learning_rate"]})
    rows = [row(cells["osora"], []), row(replace(cells["lora"], config=at_end), [])]
    rows[1] = replace(rows[1], runs=row(cells["lora"], verdicts).runs)
    for run in rows[1].runs:
        run |= {"parameters": {}, "measured": {"seconds": {}, "peak_memory_mb": 1}}
    table = layout("t", TableSpec("x", "T", baseline="osora"), rows)
    names = set(table.frame["Method"])
    assert names & {"LoRA‡", "LoRA r=32‡"}
    assert not names & {"OSoRA‡", "OSoRA r=64‡"}
    assert any("‡: at a setting that is the first or last of those tried" in n for n in table.notes)
    assert r"\ddag{}" in render.latex(table)


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


def test_the_lowest_is_that_of_one_choice_where_the_rank_was_tuned_too():
    """In the order of a grid that grew: what was added last stands where its values belong."""
    cells = {c.config.method.name: c for c in cells_of("demo")}
    rows = []
    for rank, schedule, alpha, loss in (
        (8, "linear", 16, 0.5),
        (8, "cosine", 16, 0.6),
        (16, "linear", 16, 0.4),
        (16, "cosine", 16, 0.7),
        (4, "linear", 16, 0.45),
        (8, "linear", 8, 0.3),
    ):
        config = cells["lora"].config
        config = replace(config, method=replace(config.method, rank=rank))
        tries = (f"rank={rank}", f"schedule={schedule}", f"lora_alpha={alpha}")
        runs = [{"training": {"validation": {"rows": 8, "tokens": 16, "loss": loss}}}]
        rows.append(reporting_rows.Row(replace(cells["lora"], config=config, tries=tries), runs))
    table = tuning.tuning("t", TableSpec("tuning", "T"), rows)
    assert set(table.frame["Method"]) == {"LoRA"}
    assert table.frame["Loss"].tolist() == [
        "0.4500", "0.3000", "0.5000", "0.6000", "0.4000", "0.7000",
    ]  # fmt: skip
    assert table.best["Loss"].tolist() == [False, True, False, False, False, False]
    assert table.of["Loss"][1] is rows[-1]
