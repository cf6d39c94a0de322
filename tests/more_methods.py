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

UNMERGEABLE = {
    "osf": ("OSFConfig", LAYERS),
    "lily": ("LilyConfig", LAYERS),
    "beft": ("BeftConfig", LAYERS),
    "adaption_prompt": ("AdaptionPromptConfig", "adapter_len: 4", "adapter_layers: 1"),
    "cartridge": ("CartridgeConfig", "num_virtual_tokens: 4"),
    "alora": ("LoraConfig", RANK, "alora_invocation_tokens: [5]", LAYERS),
    "lora_bias": ("LoraConfig", RANK, "lora_bias: true", LAYERS),
    "layer_replication": ("LoraConfig", RANK, "layer_replication: [[0, 2], [1, 2]]", LAYERS),
}
"""Beside those that learn a prompt: PEFT has no merge of them, or not on the toy's layers."""
MERGEABLE = {
    "adamss": ("AdamssConfig", LAYERS),
    "boft": ("BOFTConfig", "boft_block_size: 4", LAYERS),
    "c3a": ("C3AConfig", "block_size: 16", LAYERS),
    "deft": ("DeftConfig", LAYERS),
    "delora": ("DeloraConfig", LAYERS),
    "fourierft": ("FourierFTConfig", "n_frequency: 50", LAYERS),
    "frod": ("FrodConfig", LAYERS),
    "glora": ("GloraConfig", LAYERS),
    "gralora": ("GraloraConfig", LAYERS),
    "hira": ("HiraConfig", LAYERS),
    "hra": ("HRAConfig", LAYERS),
    "ln_tuning": ("LNTuningConfig", "target_modules: [input_layernorm]"),
    "loha": ("LoHaConfig", LAYERS),
    "lokr": ("LoKrConfig", LAYERS),
    "miss": ("MissConfig", LAYERS),
    "oft": ("OFTConfig", "oft_block_size: 4", LAYERS),
    "peanut": ("PeanutConfig", LAYERS),
    "psoft": ("PsoftConfig", LAYERS),
    "pvera": ("PveraConfig", LAYERS),
    "randlora": ("RandLoraConfig", LAYERS),
    "road": ("RoadConfig", LAYERS),
    "shira": ("ShiraConfig", LAYERS),
    "supertuning": ("SupertuningConfig", LAYERS),
    "tinylora": ("TinyLoraConfig", LAYERS),
    "unilora": ("UniLoraConfig", LAYERS),
    "waveft": ("WaveFTConfig", "n_frequency: 64", LAYERS),
}
"""The rest of PEFT's classes that train on rows alone."""


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
