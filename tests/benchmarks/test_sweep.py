"""The plain way of benchmarks/sweep.py trains on the same rows, by the same recipe."""

import pytest
from transformers import AutoTokenizer

from benchmarks import sweep
from benchmarks.sides import plain_training
from osora_bench.models.weights import location
from osora_bench.planning.cell import cell_of
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.training import data
from tests.conftest import QUICK


@pytest.fixture
def cells(places):
    return sweep.demo_cells("some", places)


def test_the_cells_stand_for_all_of_the_demo(cells, places):
    assert sum(cells[1]) == len(sweep.demo_cells("all", places)[0]) == sweep.SHARED_BY


def test_both_train_on_the_same_tokens(cells):
    cell = cells[0][1]
    tokenizer = AutoTokenizer.from_pretrained(location(cell.config.model))
    task = sweep.recipe(cell)["task"]
    pairs = plain_training.dialogues(task, cell.config.seed)
    plain = [plain_training.encoded(pair, tokenizer, task) for pair in pairs]
    assert plain == data.tokenised(cell.config, tokenizer).rows


def test_the_plain_way_uses_pefts_own_pissa(cells):
    recipes = {cell.config.method.name: sweep.recipe(cell)["method"]["peft"] for cell in cells[0]}
    assert recipes["pissa"]["init_lora_weights"] == "pissa"
    assert plain_training.adapter(dict(recipes["osora"])).peft_type == "OSORA"


def test_opencompass_is_handed_the_same_questions_by_name(cells):
    config = sweep.opencompass_config(cells[0][0], None)
    assert [one["abbr"] for one in config.datasets] == ["gsm8k-toy", "commonsenseqa-toy"]
    assert config.datasets[0]["type"] == "opencompass.datasets.gsm8k.GSM8KDataset"
    assert "content" not in config.datasets[0]
    assert "peft_path" not in config.models[0]


@pytest.mark.sweep
@pytest.mark.long
def test_both_ways_run_a_cell(places, tmp_path):
    overrides = ["model=toy", "task=toy", "method=osora", "device=cpu", *QUICK, *places]
    with composer():
        cell = cell_of(resolve(compose(overrides, "cell"), "cell"), overrides)
    start, ours = sweep.run_harness([cell], tmp_path)
    plain = sweep.run_plain(cell, tmp_path / "plain")
    assert start > 0 < plain.training < plain.total
    assert ours[cell.run_id].total > 0
    assert plain.scores.keys() == ours[cell.run_id].scores.keys()
