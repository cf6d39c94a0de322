"""The methods of conf/method by what tests do with them, and settings of LoRA that have no file."""

import shutil

import pytest

from osora_bench.common import paths
from osora_bench.planning.compose import group_choices
from osora_bench.planning.experiments import readable_experiments
from osora_bench.reporting.parameters import usual_methods

EVERY = [m for m in group_choices("method") if m not in ("none", "full")]
"""All that put an adapter on a model."""
PAPER = [m for m in usual_methods(readable_experiments()) if m not in ("none", "full")]
"""Those that the experiments run, on which the tests of numbers go into detail."""
PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "cartridge")

LAYERS = "target_modules: ${model.target_modules}"
RANK = "r: ${method.rank}"
SETTINGS = {
    "dropout": ("LoraConfig", RANK, "lora_dropout: 0.1", LAYERS),
    "modules_to_save": ("LoraConfig", RANK, "modules_to_save: [lm_head]", LAYERS),
    "alora": ("LoraConfig", RANK, "alora_invocation_tokens: [5]", LAYERS),
    "lora_bias": ("LoraConfig", RANK, "lora_bias: true", LAYERS),
    "layer_replication": ("LoraConfig", RANK, "layer_replication: [[0, 2], [1, 2]]", LAYERS),
}
"""Of PEFT's LoRA, each as the file that would add it."""
MORE = (
    "adalora", "dropout", "ia3", "lora_plus", "modules_to_save", "prompt_tuning", "p_tuning",
    "prefix_tuning", "cpt", "monteclora", "vblora",
)  # fmt: skip
"""One of each kind: prompts, budgets, state beside the tensors, an optimiser of its own."""
UNMERGEABLE = (
    *PROMPTS, "osf", "lily", "beft", "adaption_prompt", "shadow", "trainable_tokens", "alora",
    "lora_bias", "layer_replication",
)  # fmt: skip
"""PEFT has no merge of them, or not on the toy's layers."""


def started(how: str) -> tuple[str, ...]:
    """LoRA with a start of PEFT's own."""
    return ("LoraConfig", RANK, f"init_lora_weights: {how}", LAYERS)


def add_method(name: str, told: tuple[str, ...]) -> None:
    """Write the file of a method into the configurations in use."""
    kind, *lines = told
    ranked = any("${method.rank}" in line for line in lines)
    head = [f"name: {name}", f"label: {name}", f"rank: {8 if ranked else 'null'}"]
    peft = [f"_target_: peft.{kind}", "task_type: CAUSAL_LM", *lines]
    body = [*head, "rank_bounded: false", "peft:", *(f"  {line}" for line in peft)]
    (paths.CONF / "method" / f"{name}.yaml").write_text("\n".join(body) + "\n")


@pytest.fixture
def more_methods(tmp_path, monkeypatch):
    """A copy of conf/ with files for `SETTINGS` too."""
    monkeypatch.setattr(paths, "CONF", shutil.copytree(paths.CONF, tmp_path / "conf"))
    for name, told in SETTINGS.items():
        add_method(name, told)
