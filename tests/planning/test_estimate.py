"""What a plan says that its cells will take."""

import json

import pytest

from osora_bench.cli.main import main
from osora_bench.common.allowance import Allowance
from osora_bench.planning import blank as planning_blank
from osora_bench.planning import estimate
from osora_bench.planning.config import plain
from osora_bench.records import record
from tests.grids import cells_of


def test_parameters_are_those_of_the_real_modules(make_cell):

    for name in ("smollm2-135m", "mistral-7b-instruct-v0.3", "qwen2-7b", "llama2-13b-chat"):
        model = make_cell(f"model={name}", "method=none", "task=toy", "trainer=toy").config.model
        exact = sum(p.numel() for p in planning_blank.blank(model).parameters())
        assert estimate.parameters(estimate._shape(model)) == pytest.approx(exact, rel=1e-3)


def test_a_cell_costs_what_its_like_did(make_cell):
    cells = [make_cell(f"method={m}", "method.rank=4") for m in ("lora", "osora")]
    guessed = estimate.estimate_of(cells[0], {})
    assert not guessed.measured
    assert 0 < guessed.hours < 1
    made = [
        {
            "config": plain(cell.config),
            "measured": {"seconds": {"train": 1.0, "total": total}, "peak_memory_mb": 1000},
        }
        for cell, total in zip(cells, (36.0, 72.0), strict=True)
    ]
    known = estimate.measured(made)
    found = estimate.estimate_of(make_cell("method=vera", "seed=5"), known)
    assert found == estimate.Estimate(54 / 3600, 1000 * 2**20 / 1e9, True, 1 / 3600)
    longer = estimate.estimate_of(make_cell("method=vera", "trainer.max_steps=3000"), known)
    assert not longer.measured
    assert longer.hours > estimate.estimate_of(make_cell("method=vera"), {}).hours


def test_what_costs_more_is_estimated_to_cost_more(make_cell, tmp_path):
    def of(*overrides):
        return estimate.estimate_of(make_cell("device=cpu", *overrides), {})

    large = ["model=mistral-7b-instruct-v0.3", "task=math", "eval=math", "trainer=paper"]
    assert of(*large).hours > 0.5
    assert 14 < of(*large).gigabytes < 40
    assert of(*large, "method=full").gigabytes > 80
    assert of(*large, "method=none").hours < of(*large).hours
    assert estimate.LIBRARIES / 1e9 < of(*large, "method=none").gigabytes < of(*large).gigabytes
    assert of(*large, "eval.datasets.0.limit=10").hours < of(*large).hours
    assert of(f"model.path={tmp_path}") is None  # nothing is known of it


@pytest.mark.parametrize(
    ("hours", "told"),
    [(0.004, "14 s"), (0.2, "12 min"), (1.26, "1.3 h"), (25.4, "25 h")],
)
def test_durations(hours, told):
    assert estimate.duration(hours) == told


def test_cells_that_need_more_memory_than_the_group_allows_are_told(make_cell, tmp_path):
    small, large = make_cell("model=toy"), make_cell("model=smollm2-135m", "method=full")
    costs = [(cell, estimate.estimate_of(cell, {})) for cell in (small, large)]
    most = costs[1][1].gigabytes
    assert costs[0][1].gigabytes < 2 < most
    (tmp_path / "self").write_text("0::/a\n")
    (tmp_path / "a").mkdir()
    allowance = Allowance(tmp_path / "self", tmp_path, {})

    def told(limit):
        (tmp_path / "a" / "memory.max").write_text(f"{limit}\n")
        return estimate.over_memory(costs, allowance)

    (line,) = told(2 * 10**9)
    assert line == (
        "1 cells are expected to need more memory than a process may use here, 2.0 GB (limit of "
        f"its control group): {large.label} {most:.1f} GB"
    )
    assert told(10**9)[0].startswith("2 cells are expected")
    assert told("max") == told(int(1e9 * most) + 10**6) == []
    on_gpu = make_cell("model=qwen2-7b", "task=gsm8k", "trainer.learning_rate=1e-3")
    costs[:] = [(on_gpu, estimate.estimate_of(on_gpu, {}))]
    assert costs[0][1] is not None
    assert told(10**9) == []


def test_the_plan_tells_states_costs_and_errors(places, make_cell, capsys, tmp_path, session):
    from osora_bench.pipeline.attempt import attempt

    limits = ["trainer.max_steps=2", "eval.datasets.0.limit=4", "eval.datasets.1.limit=4"]
    arguments = ["plan", "experiment=demo", *places, *limits]
    assert main([*arguments, "--json"]) == 0
    listed = {c["label"]: c for c in json.loads(capsys.readouterr().out)}
    first = listed["toy lora r=1 seed=0"]
    assert first["state"] == "missing"
    assert first["hours"] > 0
    assert first["measured"] is False

    cells = cells_of("demo", [*places, *limits])
    assert attempt(cells[0]) == "done"
    capsys.readouterr()
    cells[1].paths.folder.mkdir(parents=True)
    cells[1].fail("ValueError: no\nmore of it")
    assert main([*arguments, "--json"]) == 0
    listed = {c["run_id"]: c for c in json.loads(capsys.readouterr().out)}
    assert listed[cells[0].run_id]["state"] == "done"
    assert listed[cells[1].run_id]["error"] == "ValueError: no"
    seconds = record.read_record(cells[0].record)["measured"]["seconds"]["total"]
    assert listed[cells[2].run_id]["hours"] == pytest.approx(seconds / 3600)
    assert listed[cells[2].run_id]["measured"] is True
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "as before  ValueError: no" in told
    assert "17 cells: 1 done, 15 missing, 1 failed; about" in told
