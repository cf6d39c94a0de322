"""A method file of a user's own: counted though no experiment runs it, and its mistakes told."""

import shutil

import pytest

from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.models.adapter_config import instantiate
from osora_bench.planning import compose
from osora_bench.planning.config import MethodConfig
from osora_bench.sweep import multirun

FILE = """\
name: {name}
label: Mine
rank: 16
rank_bounded: false
peft:
  _target_: {target}
  task_type: CAUSAL_LM
  r: ${{method.rank}}
  target_modules: ${{model.target_modules}}
"""


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Writes conf/method/mine.yaml in a copy of conf/; gives its place."""
    monkeypatch.setattr(paths, "CONF", shutil.copytree(paths.CONF, tmp_path / "conf"))

    def written(text=FILE, name="mine", target="peft.LoraConfig"):
        place = paths.CONF / "method" / "mine.yaml"
        place.write_text(text.format(name=name, target=target))
        return place

    return written


def test_a_method_that_no_experiment_runs_is_counted_at_its_own_rank(add, capsys):
    """LoRA's count: r (d_in + d_out) of q_proj (128 x 128) and v_proj (64 x 128), four layers."""
    add()
    assert main(["params", "method=mine", "model=toy"]) == 0
    assert f"{4 * 16 * (128 + 128 + 64 + 128):,}" in capsys.readouterr().out


def test_an_experiment_that_cannot_be_read_is_told_and_left_out(add, tmp_path, monkeypatch, capsys):
    """Nobody named it: what the others say is counted."""
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path / "experiments")
    paths.EXPERIMENTS.mkdir()
    (paths.EXPERIMENTS / "bad.yaml").write_text("titel: t\nseed: [0]\n")
    (paths.EXPERIMENTS / "good.yaml").write_text(
        "title: t\nseed: [0]\nblocks: [{model: [toy], method: [mine], rank: [4]}]\n"
    )
    add()
    assert main(["params", "method=mine", "model=toy"]) == 0
    told = capsys.readouterr()
    assert f"{4 * 4 * (128 + 128 + 64 + 128):,}" in told.out
    assert told.err.count("osora-bench: left out, experiments/bad.yaml: ") == 1
    assert main(["plan", "experiment=bad"]) == 2


def test_a_class_that_is_none_of_peft_is_told():
    method = MethodConfig("mine", "", None, False, {"_target_": "pathlib.PurePath"})
    with pytest.raises(UserError, match=r"_target_=pathlib.PurePath makes no PEFT configuration"):
        instantiate(method)


def test_a_file_with_another_name_in_it_is_told(add):
    place = add(name="mien")
    told = f"{place}: name: mien, but its file is mine.yaml"
    assert compose.member_problem("method", "mine") == told


def test_a_file_that_is_no_yaml_is_told_with_its_line(add, capsys):
    place = add(text="name: mine\n  label: Mine\n")
    for call in (multirun.main, lambda a: main(["params", *a])):
        assert call(["method=mine"]) == 2
        assert f"{place}, line 2: not YAML" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["model", "method", "task", "eval", "trainer", "tracker"])
def test_nothing_is_wrong_with_the_files_that_are_here(group):
    assert [compose.member_problem(group, n) for n in compose.group_choices(group)] == [None] * len(
        compose.group_choices(group)
    )
