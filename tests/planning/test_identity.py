"""Run ids of the committed records: what they were, they stay."""

import hashlib
import json
from dataclasses import replace

import pytest
from peft import PromptLearningConfig

from osora_bench.common import paths
from osora_bench.common.fingerprint import fingerprint
from osora_bench.planning import identity
from osora_bench.planning.config import Config, ExcludeConfig, KeyConfig, SourceConfig
from osora_bench.records import record as records

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


def sourced(cell, **more):
    """The cell on rows of files that are not there, whose content is known."""
    source = SourceConfig(path="a.jsonl", rows=3, prompt="{q}", response="{a}", **more)
    return replace(cell.config, task=replace(cell.config.task, sources=[source]))


def test_a_run_id_is_the_hash_of_what_counts(make_cell):
    """Told in full once: by the names that stand in the committed run ids."""
    cell = make_cell("method=lora", "seed=3")
    exclude = ExcludeConfig(path="b.json", rows=2, column="q")
    key = KeyConfig("n", {"1": "x"})
    config = sourced(cell, first=2, exclude=exclude, labels="c.lst", key=key)
    model = config.model.path
    files = {f: f"of {f}" for d in config.eval.datasets for f in d.files}
    content = {"a.jsonl": "A", "b.json": "B", "c.lst": "C", model: "M", **files}
    told = identity.identity(config, dict(content))
    assert list(told) == ["numerics_version", "model", "eval", "method", "task", "trainer", "seed"]
    assert (told["numerics_version"], told["seed"]) == (1, 3)
    assert (told["model"]["path"], told["model"]["revision"]) == ("M", None)
    assert [d["files"] for d in told["eval"]["datasets"]] == [
        [f"of {f}" for f in d.files] for d in config.eval.datasets
    ]
    assert told["task"]["sources"] == [
        {"path": "A", "rows": 3, "prompt": "{q}", "response": "{a}", "first": 2,
         "exclude": {"path": "B", "rows": 2, "column": "q"},
         "labels": "C", "key": {"column": "n", "answers": {"1": "x"}}}
    ]  # fmt: skip
    assert None not in told["method"].values()
    assert False not in told["method"].values()
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    run_id = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert identity.run_id(config, dict(content)) == run_id
    del told["eval"]
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    training_id = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert identity.training_id(config, dict(content)) == training_id


def test_cells_that_differ_in_their_suite_only_have_one_training(make_cell):
    cell, other = make_cell(), make_cell("eval.datasets.0.limit=3")
    assert cell.run_id != other.run_id
    assert cell.training_id == other.training_id != make_cell("seed=1").training_id


def test_fingerprints_are_of_what_is_named_and_looked_at_once(make_cell, tmp_path, monkeypatch):
    """What is not there is what the ledger's records were made with, or absent."""
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text("{}\n")
    exclude = ExcludeConfig(path="b.json", rows=2, column="q")
    config = sourced(make_cell("method=lora"), exclude=exclude, labels="c.lst")
    known = {f: f"of {f}" for d in config.eval.datasets for f in d.files}
    content = {**known, "other": "X"}
    found = identity.fingerprints(config, content)
    named = [f for d in config.eval.datasets for f in d.files]
    assert list(found) == [*dict.fromkeys(named), "a.jsonl", "c.lst", "b.json", config.model.path]
    assert found["a.jsonl"] == fingerprint(tmp_path / "data" / "a.jsonl")
    assert found["b.json"] == "absent:b.json"
    assert found[config.model.path] == fingerprint(paths.resolve(config.model.path))
    assert content == {**found, "other": "X"}
    parts = {key: {} for key in ("config", "parameters", "training", "scores", "measured")}
    made_with = {"fingerprints": {"b.json": "B"}}
    body = {**parts, "run_id": "0123456789ab", "provenance": made_with}
    records.write_record(body, tmp_path / "other")
    there = replace(config, ledger=str(tmp_path / "other"))
    assert identity.fingerprints(there, dict(known))["b.json"] == "B"
    untrained = replace(make_cell("method=none").config, task=config.task)
    assert "a.jsonl" not in identity.fingerprints(untrained, dict(known))


def test_a_model_of_a_hub_counts_by_its_revision(make_cell):
    config = make_cell().config
    hub = replace(config, model=replace(config.model, path="org/name", revision="abc"))
    told = identity.identity(hub)["model"]
    assert (told["path"], told["revision"]) == ("org/name", "abc")
    assert identity.revision(hub) == "abc"
    assert identity.revision(replace(hub, model=replace(hub.model, revision=None))) == "UNPINNED"
    assert identity.revision(config) == "local"
