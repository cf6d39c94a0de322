"""What `plan` shows: states, what waits, hours counted once, how precise a suite can be."""

import json
import math

import pytest

from osora_bench.cli import plan
from osora_bench.cli.main import main
from osora_bench.planning import estimate
from osora_bench.planning.experiments import load_experiment
from osora_bench.reporting import figures
from tests.grids import expansion_of
from tests.planning.test_tuning import experiments, with_loss  # noqa: F401 (a fixture)


def test_every_cell_has_a_line_and_those_that_wait_no_run_id(experiments, places):  # noqa: F811
    made = plan.lines(expansion_of("tuned", places))
    assert [line.state for line in made] == ["missing"] * 4 + ["waiting"] * 4
    assert [line.run_id is None for line in made] == [False] * 4 + [True] * 4
    told = plan.text(made)
    assert any("toy lora r=4 seed=3 rate=0.001" in line for line in told)
    assert any("for the choice of one of 3 learning rates" in line for line in told)
    assert told[-1].startswith("8 cells: 4 missing, 4 waiting; about ")


def test_json_has_the_same_lines(experiments, places, capsys):  # noqa: F811
    assert main(["plan", "experiment=tuned", "--json", *places]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in listed] == ["missing"] * 4 + ["waiting"] * 4
    assert listed[4]["run_id"] is None
    assert listed[4]["suite"] == "toy"


def test_a_training_that_several_suites_share_counts_once(experiments, places):  # noqa: F811
    trials = expansion_of("tuned", places).cells[1:]
    for trial in trials:
        with_loss(trial, 1.0)  # the first is the best of equals
    made = plan.lines(expansion_of("tuned", places))
    todo = [line for line in made if line.state == "missing"]
    trained = [line for line in todo if line.cell.config.method.name == "lora"]
    # two suites: seed 3 was trained by the trial, seed 4 is trained once
    expected = sum(line.cost.hours for line in todo) - 3 * trained[0].cost.training
    assert plan.hours_left(made) == pytest.approx(expected)


def test_a_damaged_record_is_no_work_to_be_done(experiments, places):  # noqa: F811
    expansion = expansion_of("tuned", places)
    whole = plan.lines(expansion)
    expansion.cells[0].ledger.mkdir(parents=True, exist_ok=True)
    expansion.cells[0].record.write_text("{")
    made = plan.lines(expansion_of("tuned", places))
    assert made[0].state == "damaged"
    left = plan.hours_left(whole) - plan.hours_left(made)
    assert left == pytest.approx(whole[0].cost.hours)


def test_precision_is_the_binomial_one_at_one_half(make_cell):
    suite = make_cell("eval=toy", "eval.limit=100").config.eval
    assert estimate.precision(suite) == (200, pytest.approx(100 * math.sqrt(0.25 / 200)))


def test_cells_of_one_label_are_told_apart_by_what_is_set(experiments, places):  # noqa: F811
    block = "{model: [toy], method: [lora], rank: [4]"
    (experiments / "modules.yaml").write_text(
        "title: t\nseed: [0]\nblocks:\n"
        + f"  - {block}, set: {{model.target_modules: [q_proj], task.max_rows: 9}}}}\n"
        + f"  - {block}, set: {{model.target_modules: [v_proj], task.max_rows: 9}}}}\n"
        + f"  - {block}, seed: [1], set: {{task.max_rows: 9}}}}\n"
    )
    made = plan.lines(expansion_of("modules", places))
    assert [line.label for line in made] == [
        'toy lora r=4 seed=0 model.target_modules=["q_proj"]',
        'toy lora r=4 seed=0 model.target_modules=["v_proj"]',
        "toy lora r=4 seed=1",
    ]
    told = plan.text(made)
    assert sum('target_modules=["q_proj"] toy  ' in line for line in told) == 1


BLOCKS = "{model: [toy], method: [none, vera]}, {model: [toy], method: [lora], rank: [4, 8]}"


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ("select: [{method: [lorra]}]", "unknown method 'lorra'. Did you mean 'lora'?"),
        ("methods: [lora, lorra]", "unknown method 'lorra'. Did you mean 'lora'?"),
        ("select: [{method: [lora], rank: 16}]", "no cell of lora has rank 16; valid: 4, 8"),
        ("select: [{method: [lora], rnk: 4}]", "unknown key of select 'rnk'. Did you mean 'rank'"),
        ("select: [{rank: 4}]", "select: {'rank': 4} names no methods"),
        ("select: [{method: lora}]", "select: {'method': 'lora'} names no methods"),
    ],
)
def test_what_a_table_or_figure_selects_and_no_cell_has_is_told(
    shown,
    told,
    experiments,  # noqa: F811
    places,
    capsys,
):
    for kind in ("table", "figure"):
        layout = "layout" if kind == "table" else "kind"
        (experiments / "bad.yaml").write_text(
            f"title: t\nseed: [0]\nblocks: [{BLOCKS}]\n"
            f"{kind}s: {{t: {{{layout}: ranks, title: t, {shown}}}}}\n"
        )
        for verb in ("plan", "run"):
            assert main([verb, "experiment=bad", *places]) == 2
            error = capsys.readouterr().err
            assert f"{kind} t: " in error
            assert told in error


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("layout: methods, title: t, columns: [method, pramas]", "Did you mean 'params'"),
        ("layout: costs, title: t, columns: [pramas]", "Did you mean 'params'"),
        ("layout: against, title: t, baseline: pissa", "unknown baseline 'pissa'"),
    ],
)
def test_a_table_that_cannot_be_made_is_told_before_a_run_as_by_it(
    table,
    told,
    experiments,  # noqa: F811
    places,
    capsys,
):
    (experiments / "bad.yaml").write_text(
        f"title: t\nseed: [0]\nblocks: [{BLOCKS}]\ntables: {{t: {{{table}}}}}\n"
    )
    for verb in ("plan", "run"):
        assert main([verb, "experiment=bad", *places]) == 2
        assert told in capsys.readouterr().err
    assert main(["plan", "experiment=bad", "methods=lora", *places]) == 2


def test_some_methods_leave_what_is_selected_of_the_others(experiments, places):  # noqa: F811
    shown = "title: t, methods: [vera, lora], select: [{method: [vera]}, {method: [lora], rank: 4}]"
    (experiments / "some.yaml").write_text(
        f"title: t\nseed: [0]\nblocks: [{BLOCKS}]\n"
        f"tables: {{t: {{layout: ranks, {shown}}}}}\nfigures: {{t: {{kind: ranks, {shown}}}}}\n"
    )
    assert main(["plan", "experiment=some", "methods=lora", *places]) == 0
    assert main(["tables", "experiment=some", "methods=none", *places]) == 0
    figures.check_figures(load_experiment("some"), expansion_of("some", ["methods=none"]).cells)
