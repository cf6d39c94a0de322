"""4-bit and 8-bit layers of bitsandbytes as a base, on a CPU, beside the same maths on their
weight as numbers. `make test-quantised` brings bitsandbytes and runs this."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from osora_bench.osora import (
    OsoraConfig,
    OsoraLayer,
    SvdStore,
    save_lora,
    save_merged,
    use_store,
)
from osora_bench.osora.commands import export_main, svd_main
from osora_bench.osora.svd import top_triplets
from tests.osora.conftest import LLAMA, VARIANTS, disturb, logits, make_inputs

bnb = pytest.importorskip("bitsandbytes")

KINDS = ("nf4", "fp4", "int8")
TARGETS = ("q_proj", "v_proj")
kinds = pytest.mark.parametrize("kind", KINDS)
variants = pytest.mark.parametrize("variant", VARIANTS)


def quantised(linear: nn.Linear, kind: str) -> nn.Module:
    """A layer of bitsandbytes with the weights of `linear`, on the CPU."""
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(*sizes, quant_type=kind, compute_dtype=torch.float32)
        layer.support_avx512bf16_for_cpu = False  # another layout, with rounded scales: below
    layer.to(linear.weight.dtype).load_state_dict(linear.state_dict())
    return layer.to("cpu")


def made(seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {**LLAMA, "hidden_size": 64, "intermediate_size": 64}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return model


def make(kind: str | None, seed: int = 0) -> Any:
    """Llama, with its adapted layers quantised; bitsandbytes wants rows of whole blocks of 64."""
    base = made(seed)
    for block in base.model.layers if kind else ():
        for name in TARGETS:
            setattr(block.self_attn, name, quantised(getattr(block.self_attn, name), kind))
    return base.requires_grad_(False).eval()


def config(**options: Any) -> OsoraConfig:
    return OsoraConfig(r=6, target_modules=list(TARGETS), task_type="CAUSAL_LM", **options)


def layers_of(model: nn.Module) -> list[OsoraLayer]:
    return [m for m in model.modules() if isinstance(m, OsoraLayer)]


def bytes_of(model: Any) -> list[torch.Tensor]:
    return [layer.get_base_layer().weight.data.clone() for layer in layers_of(model)]


@kinds
@variants
def test_life_of_an_adapter(kind: str, variant: str, tmp_path: Path) -> None:
    base, inputs = make(kind), make_inputs("llama")
    before = logits(base, inputs)
    model = peft.get_peft_model(base, config(**VARIANTS[variant])).eval()
    assert torch.equal(logits(model, inputs), before)
    stored = bytes_of(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(**inputs).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    after = logits(model, inputs)
    assert all(map(torch.equal, stored, bytes_of(model)))  # the quantised weight is never touched
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), before)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(kind), tmp_path).eval()
    assert loaded.peft_config["default"].base_quantization == kind
    assert torch.equal(logits(loaded, inputs), after)


@kinds
@variants
def test_a_layer_is_the_maths_on_its_weight_as_numbers(kind: str, variant: str) -> None:
    """The update, by the equations and torch's own SVD, of the weight that the layer stands for."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    model = nn.ModuleDict({"a": quantised(linear, kind)})
    x = torch.randn(5, 64)
    before = model["a"](x)
    cfg = OsoraConfig(r=8, target_modules=["a"], **VARIANTS[variant])
    layer = peft.get_peft_model(model, cfg).base_model.model["a"]
    disturb(layer)
    w = layer.original_weight().double()
    assert (w - linear.weight).norm() / linear.weight.norm() < (0.02 if kind == "int8" else 0.15)
    u, s0, vh = torch.linalg.svd(w, full_matrices=False)
    u, s0, vh = u[:, :8], s0[:8], vh[:8]
    signs = (u * layer.osora_U["default"]).sum(0).sign()
    u, vh = u * signs, vh * signs[:, None]
    s, o = layer.osora_S["default"].double(), layer.osora_O["default"].double()
    o0 = layer.osora_O0["default"].double() if cfg.o_init == "gaussian" else torch.ones_like(o)
    if cfg.o_side == "output":
        delta = o[:, None] * (u * s) @ vh - o0[:, None] * (u * s0) @ vh
    else:
        delta = (u * s) @ (vh * o) - (u * s0) @ (vh * o0)
    expected = before.double() + x.double() @ delta.T
    if cfg.use_dora:
        norm = (w + delta).norm(dim=1)
        scale = layer.osora_magnitude["default"].double() / norm
        bias = linear.bias.double()
        expected = (expected - bias) * scale + bias
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


@kinds
def test_merging_rounds_and_unmerging_restores_every_byte(kind: str) -> None:
    base, inputs = make(kind), make_inputs("llama")
    model = peft.get_peft_model(base, config(use_dora=True)).eval()
    disturb(model)
    stored, after = bytes_of(model), logits(model, inputs)
    with pytest.warns(
        UserWarning, match=f"merging an adapter into a bnb {'8' if kind == 'int8' else '4'}bit"
    ):
        model.merge_adapter()
    for layer, old in zip(layers_of(model), stored, strict=True):
        wanted = layer.original_weight() + layer.get_delta_weight("default")
        merged = layer._stored_weight()
        assert not torch.equal(layer.get_base_layer().weight.data, old)
        assert (merged - wanted).norm() / wanted.norm() < (0.02 if kind == "int8" else 0.15)
    model.unmerge_adapter()
    assert all(map(torch.equal, stored, bytes_of(model)))
    assert torch.equal(logits(model, inputs), after)
    with pytest.warns(UserWarning, match="merging an adapter into"):
        merged = model.merge_and_unload()
    assert isinstance(merged.model.layers[0].self_attn.q_proj, nn.Linear)
    assert not layers_of(merged)


@kinds
@variants
def test_as_lora_it_is_the_same(kind: str, variant: str, tmp_path: Path) -> None:
    inputs = make_inputs("llama")
    model = peft.get_peft_model(make(kind), config(**VARIANTS[variant])).eval()
    disturb(model)
    save_lora(model, tmp_path)
    as_lora = peft.PeftModel.from_pretrained(make(kind), tmp_path).eval()
    torch.testing.assert_close(logits(as_lora, inputs), logits(model, inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["osora", "dora_k"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_layout_of_processors_with_bfloat16(kind: str, variant: str, tmp_path: Path) -> None:
    """There bitsandbytes lays a weight out anew when it is first used, and rounds its scales: the
    layer's own weight is what the adapter works on, and an adapter of before is told."""
    model = peft.get_peft_model(make(kind), config(**VARIANTS[variant])).eval()
    before = [layer.original_weight() for layer in layers_of(model)]
    model.save_pretrained(tmp_path)
    base = make(kind)
    for block in base.model.layers:
        for layer in (block.self_attn.q_proj, block.self_attn.v_proj):
            layer.weight.data, layer.weight.quant_state = (
                bnb.functional._convert_weight_packed_for_cpu(
                    layer.weight.data, layer.weight.quant_state
                )
            )
    with pytest.raises(ValueError, match="was trained on other base weights"):
        peft.PeftModel.from_pretrained(base, tmp_path)
    packed = peft.get_peft_model(base, config(**VARIANTS[variant]))
    for layer, old in zip(layers_of(packed), before, strict=True):
        assert 0 < (layer.original_weight() - old).norm() / old.norm() < 2**-8


def test_the_decomposition_is_of_the_quantised_weight() -> None:
    model = peft.get_peft_model(make("nf4"), config())
    layer = layers_of(model)[0]
    found = top_triplets(layer.original_weight(), 6)
    torch.testing.assert_close(layer.osora_S["default"].data, found.s.float())


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        ("nf4", None, "quantised to nf4, these are not quantised"),
        (None, "int8", "that were not quantised, these are quantised to int8"),
        ("int8", None, "quantised to int8, these are not quantised"),
        ("nf4", "fp4", "quantised to nf4, these are quantised to fp4"),
        ("nf4", "int8", "quantised to nf4, these are quantised to int8"),
    ],
)
@pytest.mark.parametrize("projection", [False, True])
def test_another_quantisation_is_refused_or_works_as_the_error_says(
    there: str | None, here: str | None, told: str, projection: bool, tmp_path: Path
) -> None:
    inputs = make_inputs("llama")
    model = peft.get_peft_model(make(there), config(save_projection=projection)).eval()
    disturb(model)
    model.save_pretrained(tmp_path / "osora")
    update = logits(model, inputs) - logits(make(there), inputs)
    base, plain = make(here), logits(make(here), inputs)
    kinds = [type(m) for m in base.modules()]
    four_bits = "4" in f"{there} {here}"
    if projection and not four_bits:
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "osora").eval()
    else:
        way = "save_lora" if four_bits else "save_projection=True"
        with pytest.raises(ValueError, match=rf"was trained on base weights {told}.*{way}"):
            peft.PeftModel.from_pretrained(base, tmp_path / "osora")
        assert [type(m) for m in base.modules()] == kinds
        if not four_bits:
            return
        save_lora(model, tmp_path / "lora")
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    moved = logits(loaded, inputs) - plain
    assert (moved - update).norm() < (0.5 if four_bits else 0.1) * update.norm()


def test_one_configuration_for_two_bases(tmp_path: Path) -> None:
    shared = config()
    models = {kind: peft.get_peft_model(make(kind), shared) for kind in ("nf4", None)}
    for kind, model in models.items():
        model.save_pretrained(tmp_path / str(kind))
        peft.PeftModel.from_pretrained(make(kind), tmp_path / str(kind))


KEPT: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize("kind", KEPT)
def test_commands_on_a_folder_that_is_quantised(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, kept, inputs = tmp_path / "base", tmp_path / "kept", make_inputs("llama")
    made(0).save_pretrained(base)
    read(base, kind).save_pretrained(kept)

    def load() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(kept, device_map={"": "cpu"})

    store = ["--store", str(tmp_path / "store")]
    assert svd_main(["build", *store, "--model", str(kept), "--rank", "4"]) == 0
    stored = SvdStore(tmp_path / "store")
    assert len(stored.entries()) == 4
    with use_store(stored):
        model = peft.get_peft_model(load(), config()).eval()
    assert len(stored.entries()) == 4  # those of the command are what a layer looks for
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    argv = ["--adapter", str(tmp_path / "adapter"), "--output", str(tmp_path / "lora")]
    assert export_main([*argv, "--model", str(base)]) == 2
    told = capsys.readouterr().err
    assert f"quantised to {kind}, these are not quantised: load the base as it was" in told
    assert not (tmp_path / "lora").exists()
    assert export_main([*argv, "--model", str(kept)]) == 0
    as_lora = peft.PeftModel.from_pretrained(load(), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(as_lora, inputs), logits(model, inputs), rtol=1e-2, atol=1e-2)


@kinds
def test_other_weights_of_the_same_quantisation_are_refused(kind: str, tmp_path: Path) -> None:
    peft.get_peft_model(make(kind), config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was trained on other base weights: .*q_proj"):
        peft.PeftModel.from_pretrained(make(kind, seed=1), tmp_path)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
def test_four_bits_may_be_stored_as_any_numbers(storage: torch.dtype, tmp_path: Path) -> None:
    """`bnb_4bit_quant_storage`, as FSDP wants it: the weight looks like floats and is packed."""
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 48), torch.randn(5, 64)

    def base(kind: torch.dtype = storage) -> nn.ModuleDict:
        layer = bnb.nn.Linear4bit(
            64, 48, quant_type="nf4", compute_dtype=torch.float32, quant_storage=kind
        )
        layer.support_avx512bf16_for_cpu = False
        layer.load_state_dict(linear.state_dict())
        return nn.ModuleDict({"a": layer.to("cpu")})

    assert base()["a"].weight.dtype == storage
    before, cfg = base()["a"](x), OsoraConfig(r=8, target_modules=["a"])
    model = peft.get_peft_model(base(), cfg)
    layer = model.base_model.model["a"]
    assert torch.equal(layer(x), before)
    disturb(layer)

    def packed() -> torch.Tensor:  # bytes: as numbers some are NaN
        return layer.get_base_layer().weight.data.view(torch.uint8)

    after, stored = layer(x), packed().clone()
    # stored as bytes it is the same weight, and so the same adapter
    model.save_pretrained(tmp_path)
    for kind in (storage, torch.uint8):
        loaded = peft.PeftModel.from_pretrained(base(kind), tmp_path).base_model.model["a"]
        torch.testing.assert_close(loaded(x), after)
    wanted = layer.original_weight() + layer.get_delta_weight("default")
    layer.merge()
    assert layer.get_base_layer().weight.dtype == storage
    assert (layer._stored_weight() - wanted).norm() < 0.15 * wanted.norm()
    layer.unmerge()
    assert torch.equal(packed(), stored)
    assert torch.equal(layer(x), after)


def test_eight_bits_are_known_by_their_scales() -> None:
    kept = nn.ModuleDict({"a": bnb.nn.Linear8bitLt(16, 16, has_fp16_weights=True)}).to("cpu")
    with pytest.raises(ValueError, match=r"a .* in 16 bits \(has_fp16_weights=True\)"):
        peft.get_peft_model(kept, OsoraConfig(r=2, target_modules=["a"]))
    used = nn.ModuleDict({"a": quantised(nn.Linear(16, 16), "int8")})
    with torch.no_grad():
        used["a"](torch.randn(2, 16))  # its scales lie in its state from now on
    peft.get_peft_model(used, OsoraConfig(r=2, target_modules=["a"]))


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_loading_by_way_of_the_meta_device(kind: str | None, tmp_path: Path) -> None:
    inputs = make_inputs("llama")
    model = peft.get_peft_model(make(kind), config()).eval()
    disturb(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(kind), tmp_path, low_cpu_mem_usage=True).eval()
    assert not any(p.is_meta for p in loaded.parameters())
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projections_are_of_the_models_precision(kind: str, dtype: torch.dtype) -> None:
    """An 8-bit layer does not say what it was made of."""

    def base() -> Any:
        model = made(0).to(dtype)
        for block in model.model.layers:
            for name in TARGETS:
                linear = getattr(block.self_attn, name)
                setattr(block.self_attn, name, quantised(linear, kind))
        return model.requires_grad_(False).eval()

    inputs = make_inputs("llama")
    before = logits(base(), inputs)
    low = peft.get_peft_model(base(), config(projection_dtype="base"))
    same = peft.get_peft_model(base(), config(), autocast_adapter_dtype=False)
    for model in (low, same):
        tensors = [*model.named_buffers(), *model.named_parameters()]
        assert {t.dtype for n, t in tensors if ".osora_U" in n or ".osora_V" in n} == {dtype}
        vectors = {t.dtype for n, t in tensors if ".osora_S." in n or ".osora_O." in n}
        assert vectors == {dtype if model is same else torch.float32}
        assert torch.equal(logits(model, inputs), before)


@kinds
def test_a_layer_shows_what_it_is_on(kind: str) -> None:
    layer = layers_of(peft.get_peft_model(make(kind), config()))[0]
    assert f"quantization_backend='bnb {'8' if kind == 'int8' else '4'}bit'" in repr(layer)
    layer = layers_of(peft.get_peft_model(make(None), config()))[0]
    assert "quantization_backend" not in repr(layer)


def test_a_layer_that_is_not_quantised_yet_is_told() -> None:
    model = nn.ModuleDict({"a": bnb.nn.Linear8bitLt(8, 8, has_fp16_weights=False)})
    with pytest.raises(ValueError, match="a .*Linear8bitLt.* is not quantised yet: move the model"):
        peft.get_peft_model(model, OsoraConfig(r=2, target_modules=["a"]))


def test_a_rank_above_the_layers_size_is_told_by_its_real_size() -> None:
    with pytest.raises(ValueError, match=r"rank 33 .*v_proj of shape \(32, 64\): at most 32"):
        peft.get_peft_model(make("nf4"), OsoraConfig(r=33, target_modules=["v_proj"]))


@kinds
def test_a_merged_model_folder_is_refused(kind: str, tmp_path: Path) -> None:
    inputs = make_inputs("llama")
    model = peft.get_peft_model(make(kind), config()).eval()
    disturb(model)
    after, stored = logits(model, inputs), bytes_of(model)
    with pytest.raises(ValueError, match="the base is quantised, .*: export the adapter as LoRA"):
        save_merged(model, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert all(map(torch.equal, stored, bytes_of(model)))
    assert torch.equal(logits(model, inputs), after)


@kinds
def test_a_copy_of_a_model_has_an_adapter_of_its_own(kind: str) -> None:
    inputs = make_inputs("llama")
    model = peft.get_peft_model(make(kind), config()).eval()
    disturb(model)
    after, twin = logits(model, inputs), copy.deepcopy(model)
    disturb(model, seed=3)
    assert torch.equal(logits(twin, inputs), after)
    assert not torch.equal(logits(model, inputs), after)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made(0).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def read(folder: Path, kind: str = "nf4") -> Any:
    options = transformers.BitsAndBytesConfig(**KEPT[kind])
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=options, device_map={"": "cpu"}
    ).eval()


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("variant", ["osora", "osora_k", "osora_dora", "dora_k"])
def test_the_decomposition_may_be_of_the_weights_before_quantisation(
    kind: str, variant: str, folder: Path, tmp_path: Path
) -> None:
    inputs, options = make_inputs("llama"), {**VARIANTS[variant], "decomposition": "original"}
    argv = ["build", "--store", str(tmp_path / "store"), "--model", str(folder), "--rank", "6"]
    assert svd_main(argv) == 0
    store = SvdStore(tmp_path / "store")
    before = logits(read(folder, kind), inputs)
    with use_store(store):
        model = peft.get_peft_model(read(folder, kind), config(**options)).eval()
    assert len(store.entries()) == 4  # those of the folder's weights, which the command made
    assert torch.equal(logits(model, inputs), before)
    layer, linear = layers_of(model)[0], made(0).model.layers[0].self_attn.q_proj
    expected = torch.linalg.svdvals(linear.weight.detach())[:6]
    torch.testing.assert_close(layer.osora_S["default"].data, expected)
    disturb(model)
    w, a_b = layer.original_weight().double(), layer.lora_factors("default", torch.float64)
    changed = w + a_b[1] @ a_b[0]
    if layer.osora_config["default"].use_dora:
        scale = layer.osora_magnitude["default"].double() / changed.norm(dim=1)
        changed *= scale[:, None]
    delta = layer.get_delta_weight("default").double()
    torch.testing.assert_close(w + delta, changed, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(read(folder, kind), tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_weights_before_quantisation_that_are_not_there_are_told(
    folder: Path, tmp_path: Path
) -> None:
    cfg = config(decomposition="original")
    with pytest.raises(ValueError, match="has no effect: the base is not quantised"):
        peft.get_peft_model(make(None), cfg)
    with pytest.raises(ValueError, match="needs the folder that the model was read from"):
        peft.get_peft_model(make("nf4"), cfg)
    for projection in (False, True):
        model = peft.get_peft_model(
            read(folder), config(decomposition="original", save_projection=projection)
        )
        disturb(model)
        model.save_pretrained(tmp_path / f"adapter-{projection}")
    base, other = read(folder), read(folder)
    made(1).save_pretrained(folder)
    kinds = [type(m) for m in other.modules()]
    with pytest.raises(ValueError, match=r"q_proj.weight in .*base is not what the layer was quan"):
        peft.get_peft_model(other, cfg)
    assert [type(m) for m in other.modules()] == kinds
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="saved with save_projection=True does without"):
        peft.PeftModel.from_pretrained(base, tmp_path / "adapter-False")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter-True").eval()
    assert torch.equal(
        logits(loaded, make_inputs("llama")), logits(model.eval(), make_inputs("llama"))
    )
