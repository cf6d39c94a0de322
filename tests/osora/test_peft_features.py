"""What PEFT users do with an adapter, over model families and variants."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from osora_bench.osora import OsoraConfig, OsoraLayer
from tests.osora.conftest import (
    FAMILIES,
    VARIANTS,
    disturb,
    logits,
    make_base,
    make_inputs,
    needs_21,
)

TASK = {"t5": "SEQ_2_SEQ_LM"}
matrix = pytest.mark.parametrize("family", FAMILIES)
variants = pytest.mark.parametrize("variant", VARIANTS)


def config(family: str = "llama", r: int = 6, **options: Any) -> OsoraConfig:
    options.setdefault("target_modules", FAMILIES[family][1])
    return OsoraConfig(r=r, task_type=TASK.get(family, "CAUSAL_LM"), **options)


def adapted(family: str, variant: str = "osora", **options: Any) -> Any:
    model = peft.get_peft_model(
        make_base(family), config(family, **{**VARIANTS[variant], **options})
    )
    return model.eval()


def same_weights(model: Any, state: dict[str, torch.Tensor]) -> bool:
    here = model.state_dict()
    return here.keys() == state.keys() and all(torch.equal(here[k], v) for k, v in state.items())


@matrix
@variants
def test_life_of_an_adapter(family: str, variant: str, tmp_path: Path) -> None:
    base = make_base(family)
    state = copy.deepcopy(base.state_dict())
    inputs = make_inputs(family)
    before = logits(base, inputs)
    model = peft.get_peft_model(base, config(family, **VARIANTS[variant])).eval()
    assert torch.equal(logits(model, inputs), before)
    assert model.get_model_status().peft_types == {"default": "OSORA"}

    loss = model(**inputs).loss if "labels" in inputs else model(**inputs).logits.square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad <= (".osora_" in name), name
    disturb(model)
    after = logits(model, inputs)
    assert (after - before).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), before)

    model.save_pretrained(tmp_path)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, inputs), after, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model, inputs), after)
    assert same_weights(model.unload(), state)

    loaded = peft.PeftModel.from_pretrained(make_base(family), tmp_path).eval()
    torch.testing.assert_close(logits(loaded, inputs), after, rtol=1e-5, atol=1e-5)
    merged = loaded.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged, inputs), after, rtol=1e-4, atol=1e-4)
    assert merged.state_dict().keys() == state.keys()


@matrix
def test_several_adapters_and_mixed_batches(family: str, tmp_path: Path) -> None:
    model = adapted(family)
    disturb(model)
    inputs = make_inputs(family)
    one = logits(model, inputs)
    model.save_pretrained(tmp_path)
    model.add_adapter("two", config(family, r=3, o_side="input"))
    model.set_adapter("two")
    disturb(model, "two", seed=5)
    two = logits(model, inputs)
    model.load_adapter(str(tmp_path), "three")
    model.set_adapter("three")
    torch.testing.assert_close(logits(model, inputs), one, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        plain = logits(model, inputs)
    mixed = logits(model, inputs, adapter_names=["two", "__base__", "default"])
    expected = torch.stack((two[0], plain[1], one[2]))
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
    model.delete_adapter("two")
    assert set(model.peft_config) == {"default", "three"}
    torch.testing.assert_close(logits(model, inputs), one, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="unknown adapter_names: two"):
        logits(model, inputs, adapter_names=["two"] * 3)


@matrix
def test_mixed_batches_in_beam_search(family: str) -> None:
    model = adapted(family)
    disturb(model)
    model.add_adapter("two", config(family, use_dora=True))
    model.set_adapter("two")
    disturb(model, "two")
    ids = make_inputs(family, rows=2)["input_ids"]
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "num_beams": 2,
        "do_sample": False,
    }  # fmt: skip
    mixed = model.generate(input_ids=ids, adapter_names=["default", "two"], **options)
    for row, name in enumerate(("default", "two")):
        model.set_adapter(name)
        alone = model.generate(input_ids=ids, **options)
        length = min(alone.shape[1], mixed.shape[1])
        assert torch.equal(alone[row, :length], mixed[row, :length])


@pytest.mark.parametrize("variant", ["osora", "osora_k", "osora_dora"])
@matrix
def test_low_cpu_memory_loading(family: str, variant: str, tmp_path: Path) -> None:
    model = adapted(family, variant)
    disturb(model)
    inputs = make_inputs(family)
    after = logits(model, inputs)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_base(family), tmp_path, low_cpu_mem_usage=True)
    assert not any(p.is_meta for p in loaded.parameters())
    torch.testing.assert_close(logits(loaded.eval(), inputs), after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_auto_classes(family: str, tmp_path: Path) -> None:
    make_base(family).save_pretrained(tmp_path / "base")
    cls = type(make_base(family))
    model = peft.get_peft_model(cls.from_pretrained(tmp_path / "base"), config(family)).eval()
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    auto = {"llama": peft.AutoPeftModelForCausalLM, "t5": peft.AutoPeftModelForSeq2SeqLM}[family]
    loaded = auto.from_pretrained(tmp_path / "adapter").eval()
    inputs = make_inputs(family)
    torch.testing.assert_close(logits(loaded, inputs), logits(model, inputs))


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = make_inputs("llama", seed=i, rows=1)["input_ids"][0]
        return {"input_ids": ids, "labels": ids}


def train(model: Any, folder: Path, resume: str | None = None, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, save_steps=2, logging_steps=1, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_trainer_trains_checkpoints_and_resumes(tmp_path: Path) -> None:
    base = make_base("llama")
    state = copy.deepcopy(base.state_dict())
    whole = peft.get_peft_model(base, config(use_dora=True))
    trainer = train(whole, tmp_path / "a")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    expected = {k: v.clone() for k, v in peft.get_peft_model_state_dict(whole).items()}
    assert same_weights(whole.unload(), state)
    again = peft.get_peft_model(make_base("llama"), config(use_dora=True))
    train(again, tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-2"))
    found = peft.get_peft_model_state_dict(again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("variant", ["osora", "osora_k", "dora_with_norm_gradient"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(variant: str, reentrant: bool) -> None:
    inputs = make_inputs("llama")
    gradients = []
    for checkpointing in (False, True):
        model = adapted("llama", variant).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        disturb(model)
        model(**inputs).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("variant", ["osora", "osora_k", "osora_dora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base(dtype: torch.dtype, variant: str, tmp_path: Path) -> None:
    base = make_base("qwen2", dtype)
    inputs = make_inputs("qwen2")
    before = logits(base, inputs)
    state = copy.deepcopy(base.state_dict())
    model = peft.get_peft_model(base, config("qwen2", **VARIANTS[variant])).eval()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {t.dtype for n, t in tensors.items() if ".osora_" in n} == {torch.float32}
    assert torch.equal(logits(model, inputs), before)
    model(**inputs).loss.backward()
    disturb(model)
    after = logits(model, inputs)
    assert after.dtype == dtype
    model.save_pretrained(tmp_path)
    model.merge_adapter()
    scale = after.float().abs().max()
    assert (logits(model, inputs).float() - after.float()).abs().max() < 0.05 * scale
    model.unmerge_adapter()
    assert same_weights(model.unload(), state)
    loaded = peft.PeftModel.from_pretrained(make_base("qwen2", dtype), tmp_path).eval()
    assert torch.equal(logits(loaded, inputs), after)


@pytest.mark.parametrize("variant", ["osora", "osora_k", "osora_dora"])
def test_autocast(variant: str) -> None:
    base = make_base("llama")
    inputs = make_inputs("llama")
    with torch.autocast("cpu", torch.bfloat16):
        before = logits(base, inputs)
    model = peft.get_peft_model(base, config(**VARIANTS[variant]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(model, inputs), before)
    disturb(model)
    exact = logits(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**inputs)
        assert (out.logits.float() - exact).abs().max() < 0.05 * exact.abs().max()
        out.loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["osora", "osora_k", "osora_dora"])
def test_compile(variant: str) -> None:
    inputs = make_inputs("llama")
    model = adapted("llama", variant)
    disturb(model)
    model(**inputs).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    plain = logits(model, inputs)
    model.zero_grad()
    compiled = torch.compile(model)
    out = compiled(**inputs)
    torch.testing.assert_close(out.logits.detach(), plain, rtol=1e-4, atol=1e-4)
    out.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4)


def test_whole_graph_is_traced() -> None:
    model = adapted("llama", "osora_dora")
    disturb(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 3, 32)
    traced = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(x), layer(x))


def test_trainable_parameters_are_those_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    # q_proj 32 -> 32 and v_proj 32 -> 16 in two layers, r = 6
    expected = {
        "osora": 2 * (2 * 6 + 32 + 16),
        "osora_star": 2 * (32 + 16),
        "osora_star_star": 2 * (2 * 6),
        "osora_g": 2 * (2 * 6 + 32 + 16),
        "osora_k": 2 * (2 * 6 + 32 + 32),
        "osora_dora": 2 * (2 * 6 + 2 * (32 + 16)),
    }
    for variant, count in expected.items():
        model = adapted("llama", variant)
        assert model.get_nb_trainable_parameters()[0] == count, variant
        model.print_trainable_parameters()
        assert f"trainable params: {count:,}" in capsys.readouterr().out


def test_targets_and_patterns() -> None:
    def names(**options: Any) -> dict[str, int]:
        options = {"target_modules": ["q_proj", "v_proj"], **options}
        model = peft.get_peft_model(make_base("llama"), config(**options))
        return {
            n.split("model.layers.")[1]: len(m.osora_S["default"])
            for n, m in model.named_modules()
            if hasattr(m, "osora_S")
        }

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    linear = names(target_modules="all-linear")
    assert {n.rpartition(".")[2] for n in linear} == set(every)
    assert len(linear) == 2 * len(every)
    assert set(names(layers_to_transform=1)) == {"1.self_attn.q_proj", "1.self_attn.v_proj"}
    assert set(names(layers_to_transform=[0], layers_pattern="layers")) == {
        "0.self_attn.q_proj", "0.self_attn.v_proj",
    }  # fmt: skip
    assert set(names(exclude_modules=["v_proj"])) == {"0.self_attn.q_proj", "1.self_attn.q_proj"}
    assert set(names(target_modules=r".*\.1\..*q_proj")) == {"1.self_attn.q_proj"}
    ranks = names(rank_pattern={"v_proj": 3, r"layers.0.self_attn.q_proj": 9})
    assert ranks == {
        "0.self_attn.q_proj": 9, "0.self_attn.v_proj": 3,
        "1.self_attn.q_proj": 6, "1.self_attn.v_proj": 3,
    }  # fmt: skip
    assert set(names(r=20, clip_rank=True).values()) == {20, 16}


@needs_21
@pytest.mark.parametrize("bias", ["none", "osora_only", "all"])
def test_bias(bias: str, tmp_path: Path) -> None:
    model = peft.get_peft_model(make_base("qwen2"), config("qwen2", bias=bias))
    trained = {n for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")}
    targets = ("q_proj", "v_proj") if bias == "osora_only" else ("q_proj", "k_proj", "v_proj")
    expected = 0 if bias == "none" else 2 * len(targets)
    assert len(trained) == expected
    inputs = make_inputs("qwen2")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.add_(0.5)
    disturb(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_base("qwen2"), tmp_path).eval()
    torch.testing.assert_close(logits(loaded, inputs), logits(model.eval(), inputs))


def test_modules_to_save(tmp_path: Path) -> None:
    model = peft.get_peft_model(make_base("llama"), config(modules_to_save=["lm_head"]))
    disturb(model)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
    inputs = make_inputs("llama")
    after = logits(model.eval(), inputs)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_base("llama"), tmp_path).eval()
    torch.testing.assert_close(logits(loaded, inputs), after)


def test_meta_device_counts() -> None:
    with torch.device("meta"):
        base = FAMILIES["llama"][0]()
    model = peft.get_peft_model(base, config(use_dora=True))
    assert model.get_nb_trainable_parameters()[0] == 2 * (2 * 6 + 2 * (32 + 16))
    assert all(t.is_meta for n, t in model.named_buffers() if ".osora_" in n)


def saved_bytes(layer: Any, tokens: int, inner: int) -> tuple[int, list[tuple[int, ...]]]:
    """Bytes and shapes of what autograd keeps for one layer, without its parameters and buffers."""
    fixed = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in fixed:
            kept[pointer] = tensor
        return tensor

    x = torch.randn(1, tokens, inner, requires_grad=True)
    fixed.add(x.untyped_storage().data_ptr())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    shapes = [tuple(t.shape) for t in kept.values()]
    return sum(t.numel() * t.element_size() for t in kept.values()), shapes


def layer_of(cfg: Any, out: int, inner: int) -> Any:
    base = torch.nn.ModuleDict({"a": torch.nn.Linear(inner, out, bias=False)})
    return peft.get_peft_model(base, cfg).base_model.model["a"]


@pytest.mark.parametrize("variant", ["osora", "osora_k", "osora_dora"])
def test_saved_activations_and_frozen_bytes(variant: str) -> None:
    out, inner, r, tokens = 64, 96, 8, 80
    layer = layer_of(OsoraConfig(r=r, target_modules=["a"], **VARIANTS[variant]), out, inner)
    kept, shapes = saved_bytes(layer, tokens, inner)
    vera = layer_of(peft.VeraConfig(r=r, target_modules=["a"], save_projection=True), out, inner)
    vera_kept, _ = saved_bytes(vera, tokens, inner)
    large = [s for s in shapes if len(s) > 1 and s[-2:] == (tokens, out)]
    assert len(large) == (variant == "osora_dora")
    if variant != "osora_dora":
        assert kept <= vera_kept
    frozen = {n: b for n, b in layer.named_buffers() if n.startswith("osora_")}
    matrices = sum(b.numel() for b in frozen.values() if b.ndim == 2)
    assert matrices == out * r + inner * r  # the frozen part of Eq. 6
    vectors = {"osora": r, "osora_k": r, "osora_dora": r + out}[variant]
    rest = sum(b.numel() for n, b in frozen.items() if b.ndim == 1 and "fingerprint" not in n)
    assert rest == vectors  # S_0, and the row norms of W0 for DoRA


def test_checkpointing_keeps_the_input_alone() -> None:
    layer = layer_of(OsoraConfig(r=8, target_modules=["a"]), 64, 96)
    kept, _ = saved_bytes(Checkpointed(layer), 80, 96)
    assert kept == 0


class Checkpointed(torch.nn.Module):
    """A layer under gradient checkpointing."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.layer, x, use_reentrant=False)


def test_a_model_that_was_cast_while_merged_is_unmerged_in_its_new_type() -> None:
    model = adapted("llama")
    disturb(model)
    weight = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    original = weight.data.clone()
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    assert torch.equal(weight, original.to(torch.bfloat16))


def test_transformers_own_loading_of_an_adapter(tmp_path: Path) -> None:
    model = peft.get_peft_model(make_base("llama"), config())
    for name, parameter in model.named_parameters():
        if "osora_S" in name:
            parameter.data += 0.5
    model.save_pretrained(tmp_path)
    ids = torch.arange(6)[None]
    expected = model.eval()(input_ids=ids).logits
    base = make_base("llama").eval()
    base.load_adapter(str(tmp_path))
    assert torch.equal(base(input_ids=ids).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
@variants
def test_the_adapters_precision_is_as_asked(
    dtype: torch.dtype, autocast: bool, variant: str, tmp_path: Path
) -> None:
    """`autocast_adapter_dtype=False` gives the base's; the start stays the base's output."""
    base, inputs = make_base("llama", dtype), make_inputs("llama")
    before = logits(base, inputs)
    options = {**VARIANTS[variant], "save_projection": True}
    model = peft.get_peft_model(base, config(**options), autocast_adapter_dtype=autocast).eval()
    kinds = {
        t.dtype
        for n, t in [*model.named_parameters(), *model.named_buffers()]
        if ".osora_" in n and "fingerprint" not in n
    }
    assert kinds == {torch.float32 if autocast else dtype}
    assert torch.equal(logits(model, inputs), before)
    model(**inputs).loss.backward()
    disturb(model)
    after = logits(model, inputs)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(
        make_base("llama", dtype), tmp_path, autocast_adapter_dtype=autocast
    )
    assert torch.equal(logits(loaded, inputs), after)


@variants
def test_projections_in_the_bases_precision(variant: str, tmp_path: Path) -> None:
    """Half of the frozen bytes, the same start, and an update within the rounding of U and V."""
    dtype, inputs = torch.bfloat16, make_inputs("llama")
    options = VARIANTS[variant]
    base = make_base("llama", dtype)
    before = logits(base, inputs)
    low = peft.get_peft_model(base, config(**options, projection_dtype="base")).eval()
    full = peft.get_peft_model(make_base("llama", dtype), config(**options)).eval()
    assert torch.equal(logits(low, inputs), before)
    low(**inputs).loss.backward()
    # the same values in both, whatever their starts drew
    full.load_state_dict(
        {k: v for k, v in low.state_dict().items() if "osora_O" in k}, strict=False
    )
    for model in (low, full):
        disturb(model)

    def frozen(model: Any) -> int:
        return sum(b.nbytes for n, b in model.named_buffers() if ".osora_U" in n or ".osora_V" in n)

    assert frozen(full) == 2 * frozen(low)
    layers = [[m for m in model.modules() if isinstance(m, OsoraLayer)] for model in (low, full)]
    for a, b in zip(*layers, strict=True):
        exact = b.get_delta_weight("default")
        error = (a.get_delta_weight("default") - exact).norm() / exact.norm()
        assert 0 < error < 2**-8
    after = logits(low, inputs)
    low.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_base("llama", dtype), tmp_path)
    assert torch.equal(logits(loaded, inputs), after)


@needs_21
def test_biases_and_whole_modules_come_back_together(tmp_path: Path) -> None:
    """PEFT writes the bias of a module to save twice, once under no name of a model's."""
    torch.manual_seed(0)

    def base() -> Any:
        torch.manual_seed(0)
        return torch.nn.ModuleDict({"a": torch.nn.Linear(6, 5), "b": torch.nn.Linear(6, 4)})

    cfg = OsoraConfig(r=2, target_modules=["a"], modules_to_save=["b"], bias="all")
    model = peft.get_peft_model(base(), cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path)
    x = torch.randn(3, 6)
    for name in ("a", "b"):
        assert torch.equal(loaded.base_model.model[name](x), model.base_model.model[name](x))


def test_a_start_at_random_is_one(tmp_path: Path) -> None:
    """`init_weights=False`, PEFT's word for an adapter that is no identity, for tests of it."""
    inputs = make_inputs("llama")
    for variant in VARIANTS.values():
        base = make_base("llama")
        before = logits(base, inputs)
        model = peft.get_peft_model(base, config(**variant, init_weights=False)).eval()
        assert (logits(model, inputs) - before).abs().max() > 1e-3
        model.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(make_base("llama"), tmp_path)
        assert torch.equal(logits(loaded, inputs), logits(model, inputs))
