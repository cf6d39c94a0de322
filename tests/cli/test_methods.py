"""docs/methods.md is what the code makes, and names every class of the installed PEFT."""

from typing import get_args, get_type_hints

import pytest
import yaml
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from osora_bench.cli import methods
from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.planning.compose import group_choices
from tests.more_methods import EVERY

MAKE = "osora-bench methods > docs/methods.md"
SECTIONS = [
    yaml.safe_load((paths.CONF / "method" / f"{name}.yaml").read_text())["peft"] for name in EVERY
]


@pytest.mark.long
def test_the_page_is_what_is_made(capsys):
    assert main(["methods"]) == 0
    written = (paths.ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == capsys.readouterr().out, MAKE


def test_every_class_of_peft_has_a_file_or_a_reason():
    """A new PEFT release shows here what is missing."""
    kinds = PEFT_TYPE_TO_CONFIG_MAPPING.values()
    there = {kind.__name__ for kind in kinds if kind.__module__.startswith("peft.")}
    used = {target for s in SECTIONS if (target := s["_target_"]).startswith("peft.")}
    assert {target.rpartition(".")[2] for target in used} | methods.LEFT_OUT.keys() == there


def test_every_start_of_lora_has_a_file_or_a_reason():
    (names,) = (
        a for a in get_args(get_type_hints(LoraConfig)["init_lora_weights"]) if a is not bool
    )
    used = {s["init_lora_weights"] for s in SECTIONS if "init_lora_weights" in s} - {True}
    assert used | methods.STARTS.keys() == {*get_args(names), "lora_ga"}  # PEFT's type lacks it
    assert methods.SETTINGS.keys() <= LoraConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", group_choices("method"))
def test_every_file_says_what_it_trains_and_an_adapter_where_it_comes_from(name):
    source, trains = methods.told(name)
    assert trains
    assert bool(source) == (name in EVERY)


def test_a_file_that_does_not_say_so_is_told(tmp_path, monkeypatch):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# Mine.\nname: mine\n")
    monkeypatch.setattr(paths, "CONF", tmp_path)
    with pytest.raises(UserError, match="mine.yaml: does not begin with a comment `NAME"):
        methods.told("mine")


def test_the_verb_takes_no_options(capsys):
    assert main(["methods", "method=lora"]) == 2
    assert "unknown option 'method=lora'" in capsys.readouterr().err
