"""Run ids of the committed records: what they were, they stay."""

import json
from dataclasses import replace

import pytest
from peft import PromptLearningConfig

from osora_bench.common import paths
from osora_bench.planning import identity
from osora_bench.planning.config import Config

LEDGER = sorted((paths.RESULTS / "ledger").glob("*.json"))


def test_there_are_committed_records():
    assert len(LEDGER) > 80


@pytest.mark.parametrize("place", LEDGER, ids=[p.stem for p in LEDGER])
def test_a_committed_run_id_follows_from_its_record(place, monkeypatch, tmp_path):
    """From the configuration and the content of its files that the record holds, with no file."""
    monkeypatch.setenv("OSORA_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    record = json.loads(place.read_text(encoding="utf-8"))
    told, found = record["config"], record["provenance"]["fingerprints"]
    config = Config.of({**told, "ledger": str(tmp_path), "runs": str(tmp_path)})
    assert identity.run_id(config, dict(found)) == record["run_id"] == place.stem


@pytest.mark.parametrize(
    ("overrides", "version"),
    [
        ([], 1),
        (["trainer.precision=bfloat16"], 2),  # of a model in float32
        (["trainer.precision=bfloat16", "model.dtype=bfloat16"], 1),
        (["trainer.precision=bfloat16", "model.dtype=bfloat16", "method=full"], 2),
        (["trainer.precision=bfloat16", "method=none"], 1),
        (["method=full"], 1),
    ],
)
def test_only_cells_whose_numbers_a_fix_changed_have_its_version(overrides, version, make_cell):
    told = identity.identity(make_cell("method=lora", *overrides).config)
    assert told["numerics_version"] == version


def test_prompt_methods_answer_through_the_outermost_forward_pass(make_cell):
    cell = make_cell("method=lora", "trainer.precision=bfloat16", "model.dtype=bfloat16")
    prompt = {"_target_": "peft.PromptTuningConfig", "num_virtual_tokens": 4}
    config = replace(cell.config, method=replace(cell.config.method, peft=prompt))
    assert identity.identity(config)["numerics_version"] == 2


def test_prompt_methods_are_those_that_peft_calls_so():
    """Each of PEFT's own configurations, by its name alone: planning loads no torch."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = [kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING.values() if "peft." in kind.__module__]
    assert len(kinds) > 20
    named = {k.__name__ for k in kinds if any(w in k.__name__ for w in identity.PROMPT_CLASSES)}
    prompts = {k.__name__ for k in kinds if issubclass(k, PromptLearningConfig)}
    assert named - prompts == {"AdaptionPromptConfig"}  # a version too many harms no one
    assert prompts <= named
