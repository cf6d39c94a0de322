"""Every YAML composes and validates; every mistake is told with the valid choices."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from osora_bench.cli.run import check_shown
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.planning import config
from osora_bench.planning.compose import (
    check_overrides,
    compose,
    composer,
    group_choices,
    quoted,
    resolve,
    written,
)
from osora_bench.planning.experiments import load_experiment
from tests.grids import expansion_of

MEMBERS = [(group, name) for group in config.GROUPS for name in group_choices(group)]
EXPERIMENTS = sorted(p.stem for p in paths.EXPERIMENTS.glob("*.yaml"))


def composed(*overrides: str) -> config.Config:
    with composer():
        return resolve(compose(overrides, "test"), "test")


@pytest.mark.parametrize(("group", "name"), MEMBERS)
def test_every_file_composes_and_is_named_like_its_file(group, name):
    chosen = [f"{group}={name}"]
    if group == "task":  # by default suite and recipe are named like the task
        chosen += ["eval=toy", "trainer=toy"]
    if name == "none" and group == "eval":  # then something else must judge
        chosen.append("task.validation_rows=8")
    cfg = composed(*chosen)
    section = getattr(cfg, group)
    if hasattr(section, "name"):
        assert section.name == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_expands(name):
    """Into cells of which its tables and figures can be made."""
    found = expansion_of(name)
    assert len(found.cells) == len({cell.run_id for cell in found.cells}) > 0
    experiment = load_experiment(name)
    assert experiment.tables or experiment.figures
    check_shown(experiment, found.everything)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model=lama"], ["unknown model 'lama'", "qwen2-7b", "toy"]),
        (["method=lora2"], ["unknown method 'lora2'", "Did you mean 'lora'", "vera"]),
        (["task=mth"], ["unknown task 'mth'", "toy"]),
        (["method=lora,dorra"], ["unknown method 'dorra'", "Did you mean 'dora'"]),
        (["trainer.learning_rat=1"], ["unknown key", "Did you mean 'trainer.learning_rate'"]),
        (["sed=1"], ["unknown key 'sed'", "seed"]),
        (["+trainer.nesterov=true"], ["unknown key 'trainer.nesterov'"]),
        (["eval.datasets.0.limt=3"], ["Did you mean 'eval.datasets.0.limit'"]),
    ],
)
def test_unknown_names_are_refused_with_the_valid_ones(overrides, parts):
    with pytest.raises(UserError) as caught:
        check_overrides(overrides)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.rank=0", "method.rank=0 for osora: a rank is at least 1"),
        ("method.rank=-4", "method.rank=-4 for osora: a rank is at least 1"),
        ("trainer.batch_size=0", "trainer.batch_size=0: must be at least 1"),
        ("trainer.learning_rate=0", "must be above 0"),
        ("trainer.warmup_ratio=1", "warmup_ratio=1.0: a share of the steps"),
        ("trainer.warmup_ratio=-0.1", "warmup_ratio=-0.1: a share of the steps"),
        ("trainer.micro_batch_size=5", "no multiple of trainer.micro_batch_size=5"),
        ("model.dtype=int8", "unknown model.dtype 'int8'"),
        ("task.loss_on=prompt", "Valid: answer, text"),
        ("model.target_modules=[]", "name at least one module"),
        ("seed=-1", "seed=-1: must be between"),
        ("trainer.checkpoint_minutes=-1", "checkpoint_minutes=-1.0: must be at least 0, or null"),
        ("trainer.checkpoint_minutes=nan", "checkpoint_minutes=nan: must be at least 0, or null"),
        ("eval.datasets.0.limit=0", "limit=0: must be at least 1"),
        ("method.peft.r=3", "method.rank=64 has no effect"),
        ("seed=abc", "seed"),
        ("method.peft.nonsense=1", "use +method.peft.nonsense=1"),
        ("model.target_modules=''", "name at least one module"),
        ("model.target_modules=[1]", "model.target_modules takes a list in brackets"),
        ("model.target_modules=7", "all-linear, or a regular expression that whole names match"),
        ("model.target_modules=.*q_prj", "'.*q_prj' matches no module. Linear layers here: down"),
        ("model.target_modules='(q_proj'", "'(q_proj' is no regular expression (missing )"),
        ("model.target_modules={q: 1}", "model.target_modules takes a list in brackets"),
        ("eval.without=gsm8k", "eval.without takes a list in brackets, e.g. [a,b] or null"),
        ("trainer.batch_size=many", "trainer.batch_size takes a whole number"),
        ("trainer.max_steps=1.5", "trainer.max_steps takes a whole number or null"),
        ("trainer.learning_rate=fast", "trainer.learning_rate takes a number"),
        ("model.chat=perhaps", "model.chat takes true or false"),
        ("method.peft=lora", "method.peft takes settings by name, e.g. {a: 1} or null"),
        ("model.architecture=[1]", "model.architecture takes settings by name"),
        ("model.dtype=[float32]", "model.dtype takes one text"),
    ],
)
def test_impossible_values_are_refused(override, message):
    with pytest.raises(UserError, match=None) as caught:
        composed(override)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps=abc", "trainer.max_steps takes a whole number or null"),
        ("seed=", "seed takes a whole number"),
        ("seed=null", "seed takes a whole number"),
        ("++seed=x", "seed takes a whole number"),
        ("seed.a=3", "seed takes a whole number"),
        ("eval.datasets.0.limit=x", "eval.datasets.0.limit takes a whole number or null"),
        ("eval.datasets.0={limit: x}", "eval.datasets.0.limit takes a whole number or null"),
        ("eval.datasets.x.limit=3", "eval.datasets takes a list in brackets, e.g. [a,b]"),
        ("task.sources.0.exclude=x", "task.sources.0.exclude takes settings by name, e.g. {a: 1}"
         " or null"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_told_in_one_sentence_with_what_is_right(override, message):
    with pytest.raises(UserError) as caught:
        check_overrides(["method.rank=8", override])
    assert str(caught.value) == f"{override}: {message}"


def test_of_a_sweep_the_value_is_told_that_is_of_the_wrong_type():
    check_overrides(["seed=0,1", "method.rank=choice(1,2)", "seed=range(0,3)"])
    with pytest.raises(UserError) as caught:
        check_overrides(["seed=0,x", "method.rank=choice(1,2.5)"])
    assert str(caught.value).splitlines() == [
        "seed=x: seed takes a whole number",
        "method.rank=2.5: method.rank takes a whole number or null",
    ]


def test_a_list_with_a_wrong_entry_says_which_is_wrong():
    with pytest.raises(UserError, match=r"takes a list in brackets, e.g. \[a,b\] \(Key 'limt' not"):
        check_overrides(["eval.datasets=[{name: a, limt: 3}]"])


def test_what_an_interpolation_leads_to_is_told_with_what_is_right():
    with pytest.raises(UserError, match=r"seed takes a whole number: While .* 'osora'") as caught:
        composed("seed=${method.name}")
    assert "\n" not in str(caught.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError) as caught:
        composed("method.rank=0", "trainer.batch_size=-1")
    assert "method.rank=0" in str(caught.value)
    assert "trainer.batch_size=-1" in str(caught.value)


def test_a_method_without_adapter_takes_no_rank():
    with pytest.raises(UserError, match="'none' has no adapter, so no rank"):
        composed("method=none", "method.rank=4")


def test_what_is_more_than_a_value_is_left_to_hydra():
    chosen = [
        "method=lora",
        "+method.peft.bias=all",
        "method.peft.bias=none",
        "~method.peft.lora_dropout",
    ]
    cfg = composed(*chosen)
    assert cfg.method.peft["bias"] == "none"
    assert "lora_dropout" not in cfg.method.peft


def test_values_of_a_file_are_written_as_they_are_there():
    values = ["é", "back\\slash", 'a "b"', "${seed}", ["a, b", "é"], 2e-5, None, True]
    keys = [f"+method.peft.v{n}={written(value)}" for n, value in enumerate(values)]
    peft = composed("method=lora", "seed=7", *keys).method.peft
    assert [peft[f"v{n}"] for n in range(len(values))] == [*values[:3], 7, *values[4:]]


@pytest.mark.parametrize(
    "text",
    [
        *("a place", "é", "50% of it", "it's", 'a"b', "back\\slash", 'all\\"\\', "ends in \\"),
        *(
            "(a),[b],{c}",
            "a=b:c",
            "1e5",
            "null",
            "${runs}",
            "\\${runs}",
            "a\\b ${x",
            "$HOME",
            "two\nlines",
        ),
    ],
)
def test_any_text_can_be_quoted(text):
    """As a value, and as one of several of a multirun, which Hydra writes anew for each job."""
    assert composed(f"runs={quoted(text)}").runs == text
    sweep = OverridesParser.create().parse_override(f"runs={quoted('other')},{quoted(text)}")
    assert composed(f"runs={[*sweep.sweep_string_iterator()][1]}").runs == text
