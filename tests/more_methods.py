"""Methods of PEFT that conf/ does not have, each as the file that would add it."""

import shutil

import pytest

from osora_bench.common import paths

LAYERS = "target_modules: ${model.target_modules}"
RANK = "r: ${method.rank}"
MORE = {
    "adalora": (
        "AdaLoraConfig", "init_r: ${method.rank}", "target_r: 4", "tinit: 1", "tfinal: 1",
        "deltaT: 1", "total_step: ${trainer.max_steps}", LAYERS,
    ),
    "dropout": ("LoraConfig", RANK, "lora_dropout: 0.1", LAYERS),
    "ia3": ("IA3Config", "target_modules: [k_proj, down_proj]", "feedforward_modules: [down_proj]"),
    "modules_to_save": ("LoraConfig", RANK, "modules_to_save: [lm_head]", LAYERS),
    "prompt_tuning": ("PromptTuningConfig", "num_virtual_tokens: 4"),
    "p_tuning": ("PromptEncoderConfig", "num_virtual_tokens: 4", "encoder_hidden_size: 16"),
    "prefix_tuning": (
        "PrefixTuningConfig", "num_virtual_tokens: 4", "prefix_projection: true",
        "encoder_hidden_size: 16",
    ),
    "cpt": (
        "CPTConfig", "cpt_token_ids: [5, 6, 7, 8]", "cpt_mask: [1, 1, 1, 1]",
        "cpt_tokens_type_mask: [1, 2, 3, 4]",
    ),
    "monteclora": (
        "LoraConfig", RANK, "monteclora_config: {_target_: peft.MontecloraConfig}", LAYERS,
    ),
    "vblora": ("VBLoRAConfig", "r: 2", "num_vectors: 16", "vector_length: 16", LAYERS),
}  # fmt: skip


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
    """A copy of conf/ with these methods too."""
    monkeypatch.setattr(paths, "CONF", shutil.copytree(paths.CONF, tmp_path / "conf"))
    for name, told in MORE.items():
        add_method(name, told)
