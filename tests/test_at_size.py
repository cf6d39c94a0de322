"""benchmarks/at_size.py on a model that takes seconds."""

import time

import pytest

from benchmarks import at_size
from osora_bench.common.errors import UserError
from osora_bench.planning import estimate


@pytest.fixture
def small(monkeypatch):
    """Ranks that SmolLM2's shape allows, of the two methods that share decompositions."""
    monkeypatch.setattr(at_size, "METHODS", {"osora": 16, "pissa": 4})


def test_too_little_memory_or_disk_is_told_with_what_is_needed(tmp_path):
    cells = at_size.planned("mistral-7b-instruct-v0.3", None, list(at_size.METHODS), tmp_path)
    at_size.check_room(cells, memory=24e9, disk=24e9)
    with pytest.raises(UserError) as told:
        at_size.check_room(cells, memory=8e9, disk=2e9)
    assert "needs 16." in str(told.value)
    assert "of memory, 8.0 GB are free" in str(told.value)
    assert "needs 17.5 GB of disk, 2.0 GB are free" in str(told.value)


def test_a_large_model_on_a_processor_is_not_expected_to_be_as_fast_as_a_gpu(tmp_path):
    cell = at_size.planned("mistral-7b-instruct-v0.3", None, list(at_size.METHODS), tmp_path)[0]
    assert 10 < 3600 * estimate.estimate_of(cell, {}).hours < 3600


def test_a_stage_within_another_counts_by_itself():
    stages = at_size.Stages()
    with stages.inside("start"):
        time.sleep(0.1)
        with stages.inside("decompositions"):
            time.sleep(0.3)
    taken = stages.taken()
    assert list(taken) == ["decompositions", "start", "rest"]
    assert taken["decompositions"]["seconds"] == pytest.approx(0.3, abs=0.1)
    assert taken["start"]["seconds"] == pytest.approx(0.1, abs=0.1)
    assert 0 < taken["decompositions"]["own"] <= taken["decompositions"]["rss"]


@pytest.mark.sweep
def test_a_second_start_does_nothing_and_prints_the_same_table(small, tmp_path, capsys):
    assert at_size.at_size("smollm2-135m", 1, list(at_size.METHODS), tmp_path) == 0
    first = capsys.readouterr().out
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert at_size.at_size("smollm2-135m", 1, list(at_size.METHODS), tmp_path) == 0
    second = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == times
    assert "1 cells" in first
    assert "1 cells" not in second
    assert first[first.index("| seconds") :] == second[second.index("| seconds") :]
    cells = (line.strip("|").split("|") for line in second.splitlines() if line.startswith("|"))
    rows = {name.strip(): [value.strip() for value in values] for name, *values in cells}
    assert rows["seconds, GB"] == ["OSoRA r=16", "PiSSA r=4"]
    assert rows["decompositions"][0]  # and PiSSA takes them from the store
    assert rows["decompositions"][1] == ""
    assert rows["trained numbers"][0] == f"{16 + 576 + 16 + 192}"
