"""The method of docs/own-method.md, its hooks, and what is refused of methods from outside."""

import importlib
import os
import re
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.common.interruption import Interrupted
from osora_bench.models import adapter_config, adapters
from osora_bench.models.adapter_config import imported
from osora_bench.models.base import Workspace
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.planning.config import MethodConfig
from osora_bench.records import record
from osora_bench.training import checkpoint
from osora_bench.training.checks import check_sharing
from osora_bench.training.effect import Effect, NoEffect
from osora_bench.training.hidden_state import ChangingState, mark
from tests.conftest import QUICK
from tests.more_methods import EVERY

PAGE = (paths.ROOT / "docs" / "own-method.md").read_text(encoding="utf-8")
MODULE, FILE = re.findall(r"```\w+\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Adds the page's two files, changed; gives the module's folder."""
    monkeypatch.setattr(paths, "CONF", shutil.copytree(paths.CONF, tmp_path / "conf"))
    monkeypatch.syspath_prepend(tmp_path)
    for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING):
        monkeypatch.delitem(mapping, "MINE", raising=False)

    def add(module=MODULE, file=FILE):
        sys.modules.pop("my_method", None)
        importlib.invalidate_caches()
        (tmp_path / "my_method.py").write_text(module)
        (paths.CONF / "method" / "mine.yaml").write_text(file)
        return tmp_path

    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # two texts in one second
    yield add
    sys.dont_write_bytecode = before
    sys.modules.pop("my_method", None)


def test_the_pages_method_is_run_and_comes_back_where_nobody_has_imported_it(
    own, make_cell, session, capsys
):
    assert len((MODULE + FILE).splitlines()) < 60
    own()
    cell = make_cell("method=mine", *QUICK, "trainer.learning_rate=1")
    preflight.check_cells([cell])
    assert attempt(cell) == "done", cell.error
    made = record.read_record(cell.record)
    assert made["parameters"]["trainable"] == 4 * (128 + 64)
    assert main(["params", "method=mine", "model=toy"]) == 0
    assert "768" in capsys.readouterr().out
    sys.modules.pop("my_method")
    for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING):
        del mapping["MINE"]
    saved = adapters.with_saved_adapter(
        Workspace().base(cell.config), cell.paths.adapter, cell.config
    )
    scales = torch.cat([p for n, p in saved.named_parameters() if "mine_scale" in n])
    apart = (scales - 1).abs()
    assert apart.max().item() == pytest.approx(0.01, rel=1e-4)  # steps of 1 are kept within bounds


def test_a_budget_in_the_tuner_is_called_after_each_step(own, make_cell, session):
    budget = "\n    def update_and_allocate(self, step):\n        seen.append(step)\n"
    module = MODULE.replace(
        "\n\nclass WithinBounds", f"{budget}\n\nseen = []\n\n\nclass WithinBounds"
    )
    own(module)
    cell = make_cell("method=mine", *QUICK, "trainer.max_steps=3")
    assert attempt(cell) == "done", cell.error
    assert sys.modules["my_method"].seen == [1, 2, 3]


def test_hooks_and_optimisers_are_for_whole_models(own, make_cell):
    own()
    for method in ("mine", "lora_plus"):
        cell = make_cell(f"method={method}", "trainer.processes=2", "trainer.micro_batch_size=16")
        with pytest.raises(UserError, match=f"method {method} has callbacks, an optimiser"):
            check_sharing(cell)


def test_the_optimiser_that_a_file_names_is_the_one_that_steps(make_cell, session, monkeypatch):
    made = []
    real = adapter_config.own_optimizer

    def watched(method):
        make = real(method)
        return lambda **told: made.append(make(**told)) or made[-1]

    monkeypatch.setattr("osora_bench.training.train.own_optimizer", watched)
    chosen = ["trainer.learning_rate=1e-3", "trainer.weight_decay=0.1", "trainer.max_steps=2"]
    assert attempt(make_cell("method=lora_plus", *QUICK, *chosen)) == "done"
    first, _, second, _ = made[0].param_groups
    assert len(first["params"]) == len(second["params"]) == 8
    assert (first["initial_lr"], second["initial_lr"]) == (1e-3, pytest.approx(16e-3))
    assert first["weight_decay"] == second["weight_decay"] == 0.1


def test_a_module_that_cannot_be_imported_is_told_with_its_whole_error(own, make_cell):
    own(f"{MODULE}\nSCALE = 1 / len('')\n")
    with pytest.raises(UserError) as caught:
        preflight.check_cells([make_cell("method=mine", *QUICK)])
    told = str(caught.value)
    for part in (
        "method mine: peft._target_=my_method.ScaleConfig: my_method cannot be imported:",
        "my_method.py",
        "SCALE = 1 / len('')",
        "ZeroDivisionError: division by zero",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module.Thing", "no module 'no_such_module' can be found (is its folder on PYTH"),
        ("peft.NoConfig", "x=peft.NoConfig: peft has no NoConfig"),
        ("peft.LoraConfig.nothing", "peft has no LoraConfig.nothing"),
        ("", "no module '' can be found"),
    ],
)
def test_a_name_that_stands_for_nothing_is_told(name, told):
    with pytest.raises(UserError) as caught:
        imported(name, "x")
    assert told in str(caught.value)


def test_a_missing_import_inside_a_module_is_its_own_error(own):
    own("import nothing_of_that_name\n")
    with pytest.raises(
        UserError, match="my_method cannot be imported(.|\n)*'nothing_of_that_name'"
    ):
        imported("my_method.ScaleConfig", "x")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"callbacks": ["peft.LoraConfig"]}, "callbacks=peft.LoraConfig is no class of callbacks"),
        ({"start": "peft.__version__"}, "start=peft.__version__ is no function"),
        ({"optimizer": {"lr": 1}}, "optimizer._target_=: no module '' can be found"),
        ({"peft": {"r": 1}}, "peft._target_ is missing: name a PEFT class"),
    ],
)
def test_what_is_no_hook_is_told(settings, told):
    method = MethodConfig("mine", "", None, False, **{"peft": None, **settings})
    makers = {
        "callbacks": adapter_config.hooks,
        "start": adapter_config.start,
        "optimizer": adapter_config.own_optimizer,
        "peft": adapter_config.instantiate,
    }
    with pytest.raises(UserError) as caught:
        makers[next(iter(settings))](method)
    assert f"method mine: {told}" in str(caught.value)


USED = "y * scale.to(y.dtype)"
FROZEN = "def freeze(model):\n    model.requires_grad_(False)\n"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("y", "null"), "changes nothing: the loss does not depend on what is trained"),
        ((f"y + 0 * {USED}", "null"), "changes nothing: after 2 steps every gradient is 0"),
        ((USED, "my_method.freeze"), "trains nothing: every parameter of the model is frozen"),
    ],
    ids=["no gradient", "gradients of 0", "frozen"],
)
def test_a_method_that_moves_nothing_is_refused_after_two_steps(
    own, make_cell, session, changed, told
):
    assert USED in MODULE
    instead, start = changed
    own(f"{MODULE.replace(USED, instead)}\n{FROZEN}", f"{FILE}start: {start}\n")
    cell = make_cell("method=mine", *QUICK, "trainer.max_steps=4")
    assert attempt(cell) == "failed"
    assert f"method mine {told}" in cell.error
    assert not cell.record.exists()


TAKEN_BACK = """
from transformers import TrainerCallback

class NoGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        for weight in model.parameters():
            if weight.grad is not None:
                weight.grad.zero_()

class NoB(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **_):
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.zero_()
"""
LORA = """\
name: mine
label: Mine
rank: 4
rank_bounded: true
callbacks: [my_method.CALLBACK]
peft:
  _target_: peft.LoraConfig
  task_type: CAUSAL_LM
  r: ${method.rank}
  target_modules: ${model.target_modules}
"""
WARM_UP = ("trainer.max_steps=8", "trainer.warmup_ratio=0.5")
"""Four steps at a quarter of the rate more each, the first of them at 0."""


@pytest.mark.parametrize("callback", ["NoGradients", "NoB"])
@pytest.mark.parametrize(
    "recipe",
    [
        (("trainer.max_steps=4", "trainer.warmup_ratio=0"), "after 2 steps every trained tensor"),
        (WARM_UP, "after 4 steps every trained tensor is what it was at the start"),
        # A decays, which no answer depends on while B is 0
        (("trainer.max_steps=4", "trainer.weight_decay=0.1"), "after 4 steps the model gives ev"),
    ],
    ids=["at once", "after a warm-up", "what changes does not act"],
)
def test_a_method_that_takes_its_steps_back_is_refused(own, make_cell, session, callback, recipe):
    own(TAKEN_BACK, LORA.replace("CALLBACK", callback))
    settings, told = recipe
    cell = make_cell("method=mine", *QUICK, *settings)
    assert attempt(cell) == "failed"
    assert f"method mine changes nothing: {told}" in cell.error
    assert not cell.record.exists()


@pytest.mark.parametrize("method", ["lora", "ia3", "full"])
@pytest.mark.parametrize(
    "recipe",
    [
        (*WARM_UP, "trainer.learning_rate=1e-6"),
        ("trainer.max_steps=1", "trainer.warmup_ratio=0.5"),
        (
            *WARM_UP,
            "model.dtype=bfloat16",
            "trainer.precision=bfloat16",
            "trainer.learning_rate=1e-5",
        ),
    ],
    ids=["a small rate", "one step at a rate of 0", "bfloat16"],
)
def test_what_a_recipe_makes_small_is_no_fault_of_the_method(make_cell, session, method, recipe):
    cell = make_cell(f"method={method}", *QUICK, *recipe)
    assert attempt(cell) == "done", cell.error


def test_a_training_that_goes_on_is_held_against_its_start(own, make_cell, session, monkeypatch):
    """It is interrupted after its first step; the check comes after the second of the others."""
    own(TAKEN_BACK, LORA.replace("CALLBACK", "NoB"))
    cell = make_cell("method=mine", *QUICK, "trainer.max_steps=4", "trainer.warmup_ratio=0")
    step = Effect.on_step_end

    def interrupted(self, args, state, control, **others):
        step(self, args, state, control, **others)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Effect, "on_step_end", interrupted)
        with pytest.raises(Interrupted):
            attempt(cell)
    assert checkpoint.newest(cell.paths.trainer).name == "checkpoint-1"
    assert attempt(cell) == "failed"
    assert "changes nothing: after 3 steps every trained tensor" in cell.error


@pytest.mark.parametrize("method", EVERY)
def test_the_look_at_a_models_answers_changes_nothing_in_it(method, make_cell, session):
    cell = make_cell(f"method={method}")
    base = session.workspace.base(cell.config)
    rows = session.tokenised(cell, base.tokenizer).rows
    model = session._started(cell, base)
    before, drawn = ChangingState(model), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    effect = Effect(model, rows[:2])
    effect.rates = 1.0  # as after a training that has left all as it was
    with pytest.raises(NoEffect, match="gives every token of 5 texts"):
        effect.check_answers(model, SimpleNamespace(learning_rate=1e-2))
    with torch.no_grad():  # as after one that has not
        trained = [p for p in model.parameters() if p.requires_grad]
        moved = [p + 0.1 for p in trained]
    start = [p.data for p in trained]
    for parameter, value in zip(trained, moved, strict=True):
        parameter.data = value
    effect.check_answers(model, SimpleNamespace(learning_rate=1e-2))
    assert all(map(torch.equal, trained, moved))
    for parameter, value in zip(trained, start, strict=True):
        parameter.data = value
    # of the last forward pass, each begins with its own; what the first one has checked
    kept = ("_seed_shadow_state", "_verified")
    changed = {p for p, v in before.take().items() if before.start.get(p) != mark(v)}
    assert [place for place in changed if place[-1] not in kept] == []
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [module.training for module in model.modules()] == modes
    session.workspace.release(model)
