"""`params` of PEFT's other methods: what a real adapter has, or by name why that is not known."""

import pytest

from osora_bench.cli.main import main
from osora_bench.models.adapters import with_fresh_adapter
from osora_bench.reporting import parameters
from tests.more_methods import (  # noqa: F401
    EVERY,
    LAYERS,
    PAPER,
    SETTINGS,
    add_method,
    more_methods,
)

BESIDE = {
    "vblora_topk": (
        "VBLoRAConfig", "r: 2", "num_vectors: 16", "vector_length: 16",
        "save_only_topk_weights: true", LAYERS,
    ),
    "vblora_wide": (
        "VBLoRAConfig", "r: 3", "num_vectors: 300", "vector_length: 8",
        "save_only_topk_weights: true", LAYERS,
    ),
    "multitask": ("MultitaskPromptTuningConfig", "num_virtual_tokens: 4", "num_tasks: 1"),
    "prefix_plain": ("PrefixTuningConfig", "num_virtual_tokens: 7"),
    "supertuning_both": ("SupertuningConfig", "target_modules: [q_proj, down_proj]"),
    "tokens": (
        "TrainableTokensConfig", "token_indices: [5, 6]", "target_modules: [embed_tokens]",
    ),
    "prefix_mlp": (
        "PrefixTuningConfig", "num_virtual_tokens: 4", "prefix_projection: true",
        "encoder_hidden_size: 16",
    ),
}  # fmt: skip
OTHERS = [*(m for m in EVERY if m not in PAPER), *SETTINGS, *BESIDE]
UNCOUNTED = ("cpt", "monteclora", "unilora", "frod", "shira", "boft", "adamss")
"""PEFT makes these, or what it saves of them, of numbers."""


def real(cell, session, folder):
    """Trained numbers, bytes of the saved file, bytes of what is added and frozen."""
    session.workspace.clear()
    base = session.workspace.base(cell.config)
    own = {id(t) for t in (*base.model.parameters(), *base.model.buffers())}
    model = with_fresh_adapter(base.model, cell)
    tensors = (*model.parameters(), *model.buffers())
    frozen = [t for t in tensors if id(t) not in own and not t.requires_grad]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.save_pretrained(folder)
    session.workspace.clear()
    size = (folder / "adapter_model.safetensors").stat().st_size
    return trained, size, sum(t.numel() * t.element_size() for t in frozen)


@pytest.mark.usefixtures("more_methods")
@pytest.mark.parametrize("method", OTHERS)
def test_counts_are_those_of_a_real_adapter(method, make_cell, session, tmp_path, capsys):
    if method in BESIDE:
        add_method(method, BESIDE[method])
    line = parameters.count_table(["toy"], [method], [8])[0]
    if method in UNCOUNTED:
        assert line.count is None
        assert f"method {method}: cannot be" in line.problem
        assert "without weights: " in line.problem
        assert main(["params", "model=toy", f"method={method}", "rank=8"]) == 2
        assert line.problem.split(":")[1].strip()[:20] in capsys.readouterr().err
        return
    counted = (line.count.trainable, line.count.adapter_bytes, line.count.frozen_bytes)
    chosen = ["method.rank=8"] if line.rank is not None else []
    cell = make_cell(f"method={method}", *chosen, "trainer.max_steps=8")
    assert counted == real(cell, session, tmp_path / "adapter")
