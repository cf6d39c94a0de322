"""Checkpoints: what is in them, and what is refused on loading."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as tf
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from osora_bench.osora import OsoraConfig, OsoraLayer, to_lora
from osora_bench.osora.checkpoint import difference, fingerprint, shortened
from tests.osora.conftest import LLAMA, VARIANTS, disturb, logits, make_base, make_inputs, needs_21
from tests.osora.test_peft_features import config, same_weights

FILE = "adapter_model.safetensors"
Tensors = dict[str, torch.Tensor]


def saved(folder: Path, family: str = "llama", **options: Any) -> torch.Tensor:
    """Save a disturbed adapter; return its logits."""
    model = peft.get_peft_model(make_base(family), config(family, **options)).eval()
    disturb(model)
    model.save_pretrained(folder)
    return logits(model, make_inputs(family))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("projection", [False, True])
def test_content(variant: str, projection: bool, tmp_path: Path) -> None:
    options = {**VARIANTS[variant], "save_projection": projection}
    saved(tmp_path, **options)
    kinds = {name.rsplit(".", 1)[1] for name in load_file(tmp_path / FILE)}
    expected = {"osora_S", "osora_O", "osora_fingerprint"}
    expected |= {"osora_magnitude"} if options.get("use_dora") else set()
    expected |= {"osora_O0"} if options.get("o_init") == "gaussian" else set()
    expected |= {"osora_U", "osora_V", "osora_S0"} if projection else set()
    assert kinds == expected


def test_size_for_mistral_7b_is_below_one_megabyte(tmp_path: Path) -> None:
    """The shapes of Mistral-7B, on the meta device; then written as zeros of the same sizes."""
    with torch.device("meta"):
        attention = {"q_proj": nn.Linear(4096, 4096), "v_proj": nn.Linear(4096, 1024)}
        layers = [nn.ModuleDict({"self_attn": nn.ModuleDict(attention)}) for _ in range(32)]
        layers = [copy.deepcopy(layer) for layer in layers]
        base = nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList(layers)})})
    model = peft.get_peft_model(base, OsoraConfig(r=512, target_modules=["q_proj", "v_proj"]))
    assert model.get_nb_trainable_parameters()[0] == 196_608  # Table 5
    state = peft.get_peft_model_state_dict(model)
    save_file({k: torch.zeros(t.shape, dtype=t.dtype) for k, t in state.items()}, tmp_path / FILE)
    assert (tmp_path / FILE).stat().st_size < 1_000_000


def test_a_fingerprint_is_what_its_docstring_says() -> None:
    """By numpy, sums written out: a checkpoint of another version would be refused otherwise."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 40, generator=generator)
    u = torch.randn(70, 5, generator=generator, dtype=torch.float64)
    vh = torch.randn(5, 40, generator=generator, dtype=torch.float64)

    def probe(size: int, prime: int) -> Any:
        return np.cos(np.pi * np.sqrt(prime) * np.arange(1, size + 1, dtype=float) ** 2)

    w = weight.double().numpy()
    norm = np.sqrt((w**2).sum())
    expected = [norm, *(probe(70, k) @ w @ probe(40, k) / norm for k in (2, 3))]
    for prime in (5, 7, 11, 13):
        left, right = probe(70, prime) @ u.numpy(), vh.numpy() @ probe(40, prime)
        expected.append((np.sign(probe(5, prime)) * left * right).sum() / np.sqrt(5))
    found = fingerprint(weight, u, vh)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)
    assert torch.isfinite(fingerprint(torch.zeros(3, 2), u[:3], vh[:, :2])).all()


@pytest.mark.parametrize(
    ("change", "projection", "told"),
    [
        ([0.0] * 7, False, None),
        ([9e-5 * 3, 9e-5, 0.0, 0.0, 0.0, 0.0, 9e-5], False, None),
        ([1.1e-4 * 3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], False, "norm is 3.00033 there and 3 here"),
        ([0.0, 1.1e-4, 0.0, 0.0, 0.0, 0.0, 0.0], False, "norm agrees but its entries do not"),
        ([0.0, 0.0, 1.1e-4, 0.0, 0.0, 0.0, 0.0], False, "norm agrees but its entries do not"),
        ([0.0, 0.0, 0.0, 1.1e-4, 0.0, 0.0, 0.0], False, "subspace could not be reproduced"),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.1e-4], False, "subspace could not be reproduced"),
        ([0.0, 0.0, 0.0, 9.0, 9.0, 9.0, 9.0], True, None),
        ([0.14, 0.049, 0.0, 0.0, 0.0, 0.0, 0.0], True, None),
        ([0.16, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], True, "norm is 3.16 there"),
        ([0.0, 0.051, 0.0, 0.0, 0.0, 0.0, 0.0], True, "norm agrees but its entries do not"),
        ([float("nan"), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], False, "norm is nan there"),
    ],
)
def test_fingerprints_agree_to_round_off(
    change: list[float], projection: bool, told: str | None
) -> None:
    here = torch.tensor([3.0, 0.5, -0.5, 1.0, 0.1, 0.0, -1.0], dtype=torch.float64)
    found = difference(here + torch.tensor(change, dtype=torch.float64), here, projection)
    assert (found is None) if told is None else (told in (found or ""))
    assert difference(here[:5], here, projection) == (
        "the fingerprint has (5,) entries, (7,) expected"
    )


def test_projection_is_taken_from_the_file_on_a_base_of_other_precision(tmp_path: Path) -> None:
    after = saved(tmp_path / "a", save_projection=True)
    saved(tmp_path / "b")
    base = make_base("llama", torch.bfloat16)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a").eval()
    here = logits(loaded, make_inputs("llama")).float()
    assert (here - after).abs().max() < 0.05 * after.abs().max()
    stored = load_file(tmp_path / "a" / FILE)
    for name, buffer in loaded.named_buffers():
        if name.endswith(".osora_U.default"):
            assert torch.equal(buffer, stored[name.removesuffix(".default")])
    with pytest.raises(ValueError, match="trained on other base weights.*entries do not"):
        PeftModel.from_pretrained(base, tmp_path / "b")


def refuse(folder: Path, match: str, base: Any | None = None) -> None:
    """Loading `folder` fails on a fresh base and on an adapted one, and changes neither."""
    base = make_base("llama", seed=0) if base is None else base
    state = copy.deepcopy(base.state_dict())
    inputs = make_inputs("llama")
    before = logits(base, inputs)
    flags = [p.requires_grad for p in base.parameters()]
    kinds = [type(m) for m in base.modules()]
    with pytest.raises(ValueError, match=match):
        PeftModel.from_pretrained(base, folder)
    assert same_weights(base, state)
    assert [type(m) for m in base.modules()] == kinds
    assert [p.requires_grad for p in base.parameters()] == flags
    assert torch.equal(logits(base, inputs), before)

    model = peft.get_peft_model(base, config(r=3, target_modules=["q_proj", "k_proj"]), "first")
    disturb(model, "first")
    before = logits(model.eval(), inputs)
    kinds = [type(m) for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=match):
        model.load_adapter(str(folder), "second")
    assert list(model.peft_config) == ["first"]
    assert model.active_adapters == ["first"]
    assert [type(m) for m in model.modules()] == kinds
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(logits(model, inputs), before)


def first(tensors: Tensors, kind: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(kind))


def drop(tensors: Tensors) -> None:
    del tensors[first(tensors, "osora_S")]


def add(tensors: Tensors) -> None:
    tensors["base_model.model.model.layers.7.self_attn.q_proj.osora_S"] = torch.ones(6)


def reshape(tensors: Tensors) -> None:
    tensors[first(tensors, "osora_O")] = torch.ones(5)


def spoil(tensors: Tensors) -> None:
    tensors[first(tensors, "osora_O")][0] = float("nan")


def round_off(tensors: Tensors) -> None:
    name = first(tensors, "osora_S")
    tensors[name] = tensors[name].long()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (drop, r"missing .*layers\.0.*q_proj\.osora_S"),
        (add, r"not part of this model: .*layers\.7"),
        (reshape, r"osora_O.* has shape \(5,\), the model needs \(32,\)"),
        (spoil, "osora_O.* holds NaN or inf"),
        (round_off, "osora_S.* is of torch.int64, not a floating-point type"),
    ],
)
def test_wrong_tensors_are_refused(
    change: Callable[[Tensors], None], match: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / FILE)
    change(tensors)
    save_file(tensors, tmp_path / FILE)
    refuse(tmp_path, match)


def test_other_base_weights_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    refuse(tmp_path, "other base weights: .*q_proj.*Frobenius", make_base("llama", seed=9))
    permuted = make_base("llama")
    weight = permuted.model.layers[1].self_attn.v_proj.weight
    weight.data = weight.data.flip(0)
    refuse(tmp_path, r"other base weights: .*layers\.1.*v_proj.*norm agrees", permuted)
    small = make_base("llama")
    small.model.layers[0].self_attn.q_proj.weight.data[3, 4] += 0.05
    refuse(tmp_path, r"other base weights: .*layers\.0.*q_proj", small)


def test_an_adapter_is_refused_that_cannot_be_reproduced(tmp_path: Path) -> None:
    """Equal singular values leave the subspace open: any rotation of it is a valid answer."""
    saved(tmp_path)
    tensors = load_file(tmp_path / FILE)
    tensors[first(tensors, "osora_fingerprint")][-1] += 0.5
    save_file(tensors, tmp_path / FILE)
    refuse(tmp_path, "could not be reproduced.*save_projection=True")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    refuse(tmp_path, "is damaged")


def test_modules_to_save_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, modules_to_save=["lm_head"])
    tensors = load_file(tmp_path / FILE)
    name = "base_model.model.lm_head.weight"
    save_file({**tensors, name: torch.ones(3, 32)}, tmp_path / FILE)
    refuse(tmp_path, r"lm_head.weight has shape \(3, 32\), the model needs \(64, 32\)")
    del tensors[name]
    save_file(tensors, tmp_path / FILE)
    refuse(tmp_path, "missing lm_head.weight")


@needs_21
def test_biases_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "qwen2", bias="osora_only")
    tensors = load_file(tmp_path / FILE)
    name = next(name for name in sorted(tensors) if name.endswith("v_proj.base_layer.bias"))
    save_file({**tensors, name: torch.ones(5)}, tmp_path / FILE)
    refuse(tmp_path, r"v_proj.*bias has shape \(5,\), the model needs \(16,\)", make_base("qwen2"))
    del tensors[name]
    save_file(tensors, tmp_path / FILE)
    refuse(tmp_path, "missing .*v_proj.*bias", make_base("qwen2"))


def test_an_adapter_whose_weights_are_gone_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / FILE).unlink()
    refuse(tmp_path, "holds a configuration and no weights")
    base = make_base("llama")
    with pytest.raises(ValueError, match="holds a configuration and no weights"):
        PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    assert not any("osora" in name for name, _ in base.named_modules())
    # the way out that the message names
    start = dataclasses.replace(PeftConfig.from_pretrained(str(tmp_path)), inference_mode=False)
    assert peft.get_peft_model(base, start).get_nb_trainable_parameters()[0] > 0


def test_a_configuration_alone_starts_a_new_adapter(tmp_path: Path) -> None:
    config().save_pretrained(str(tmp_path))
    model = peft.get_peft_model(make_base("llama"), PeftConfig.from_pretrained(str(tmp_path)))
    assert model.get_nb_trainable_parameters()[0] > 0


CLASSIFIERS = {
    "SEQ_CLS": (tf.LlamaForSequenceClassification, "score"),
    "TOKEN_CLS": (tf.LlamaForTokenClassification, "score"),
    "QUESTION_ANS": (tf.LlamaForQuestionAnswering, "qa_outputs"),
}


@pytest.mark.parametrize("task", CLASSIFIERS)
def test_a_classifier_keeps_its_head(task: str, tmp_path: Path) -> None:
    """PEFT saves the head of such a model, under each of the names that it may have, and writes
    them into the configuration that it was given."""
    kind, head = CLASSIFIERS[task]
    shared = OsoraConfig(r=6, target_modules=["q_proj", "v_proj"], task_type=task)

    def make() -> Any:
        torch.manual_seed(3)
        return kind(tf.LlamaConfig(**LLAMA, num_labels=3)).eval()

    def first_output(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=make_inputs("llama")["input_ids"])[0]

    for number in range(2):  # and once more, with a configuration that serves an adapter already
        model = peft.get_peft_model(make(), shared).eval()
        disturb(model)
        with torch.no_grad():
            getattr(model.base_model.model, head).modules_to_save["default"].weight.mul_(1.5)
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(make(), folder).eval()
        torch.testing.assert_close(first_output(loaded), first_output(model))
        assert not torch.allclose(first_output(loaded), first_output(make()))


def test_a_newer_configuration_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    newer = {**values, "format_version": 3, "later_option": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(newer))
    with pytest.warns(UserWarning, match="later_option"):
        refuse(tmp_path, "format 3, written by a newer version")


@needs_21
def test_a_bad_state_keeps_a_trained_adapter(tmp_path: Path) -> None:
    """Only an adapter that was made for the file is taken out again."""
    model = peft.get_peft_model(make_base("llama"), config()).eval()
    disturb(model)
    before = logits(model, make_inputs("llama"))
    with pytest.raises(ValueError, match="missing"):
        peft.set_peft_model_state_dict(model, {})
    assert torch.equal(logits(model, make_inputs("llama")), before)
    assert set(model.peft_config) == {"default"}


def test_other_base_weights_are_refused_by_transformers_own_loading(tmp_path: Path) -> None:
    """It asks the adapter for nothing, so the adapter asks itself: when it is first used."""
    saved(tmp_path)
    base = make_base("llama", seed=9)
    layer_uses: list[Callable[[Any], object]] = [
        lambda layer: layer(torch.ones(1, 32)),
        lambda layer: layer.merge(),
        lambda layer: layer.get_delta_weight("default"),
        lambda layer: layer.eval(),
        lambda layer: layer.train(),
    ]

    def load_and_use() -> None:
        base.load_adapter(str(tmp_path))
        logits(base, make_inputs("llama"))

    with pytest.raises(ValueError, match="trained on other base weights: .*load the base model"):
        load_and_use()
    for use in layer_uses:
        layer = base.model.layers[0].self_attn.q_proj
        with pytest.raises(ValueError, match="trained on other base weights: the weight's Frob"):
            use(layer)


def test_other_base_weights_are_refused_for_an_adapter_that_is_there(tmp_path: Path) -> None:
    saved(tmp_path)
    model = peft.get_peft_model(make_base("llama", seed=9), config()).eval()
    disturb(model, seed=3)
    before = logits(model, make_inputs("llama"))
    state = load_file(tmp_path / FILE)
    with pytest.raises(ValueError, match="trained on other base weights: .*q_proj.*Frobenius"):
        model.load_adapter(str(tmp_path), "default")
    with pytest.raises(ValueError, match="trained on other base weights: .*q_proj.*Frobenius"):
        peft.set_peft_model_state_dict(model, state)
    assert torch.equal(logits(model, make_inputs("llama")), before)
    # another that is there, and the base that it was trained on
    right = peft.get_peft_model(make_base("llama"), config(r=3, target_modules=["k_proj"]), "first")
    right.add_adapter("default", config())
    right.load_adapter(str(tmp_path), "default")
    assert "first" in right.peft_config


def test_a_state_of_another_base_is_refused_when_it_is_used(tmp_path: Path) -> None:
    """Not through PEFT at all: torch's own loading, all of the model's tensors or the adapter's."""
    donor = peft.get_peft_model(make_base("llama"), config()).state_dict()
    model = peft.get_peft_model(make_base("llama", seed=9), config()).eval()
    logits(model, make_inputs("llama"))  # and verified before that

    def load_and_use() -> None:
        model.load_state_dict({k: v for k, v in donor.items() if ".osora_" in k}, strict=False)
        logits(model, make_inputs("llama"))

    with pytest.raises(ValueError, match="trained on other base weights"):
        load_and_use()


def test_a_meta_base_cannot_be_checked(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match="meta device"):
        PeftModel.from_pretrained(make_base("llama").to("meta"), tmp_path)


def test_configuration_round_trip(tmp_path: Path) -> None:
    original = config(
        use_dora=True, dora_detach_norm=False, o_side="input", rank_pattern={"q_proj": 3},
        exclude_modules=["k_proj"],
    )  # fmt: skip
    original.save_pretrained(str(tmp_path))
    assert PeftConfig.from_pretrained(str(tmp_path)) == original
    assert OsoraConfig.from_pretrained(str(tmp_path)) == original


def test_a_list_of_problems_is_cut_where_it_is_long() -> None:
    assert shortened(["a", "b"]) == "a; b"
    assert shortened(list("abcde")) == "a; b; c; d; e"
    assert shortened(list("abcdefg")) == "a; b; c; d; e; and 2 more"


LOW = (torch.bfloat16, torch.float16)


def update(model: Any) -> torch.Tensor:
    """All that an adapter does to the weights, from its numbers as they are, in float32."""
    _, tensors = to_lora(model)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    names = [name for name in tensors if name.endswith("lora_A.weight")]
    return torch.cat(
        [(tensors[n.replace("lora_A", "lora_B")] @ tensors[n]).flatten() for n in names]
    )


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("route", ["peft", "low_cpu_mem_usage", "transformers"])
def test_a_start_in_16_bits_comes_back_in_any_precision(
    dtype: torch.dtype, variant: str, route: str, tmp_path: Path
) -> None:
    """S and its rounded S_0 belong together: beside an S_0 that is not rounded, an adapter that was
    never trained is an update, the rounding of S."""

    def load(folder: Path, autocast: bool) -> Any:
        base = make_base("llama", dtype)
        if route == "transformers":
            base.load_adapter(str(folder))
            return base
        options = {"low_cpu_mem_usage": True} if route == "low_cpu_mem_usage" else {}
        return PeftModel.from_pretrained(
            base, folder, autocast_adapter_dtype=autocast, **options
        ).eval()

    inputs = make_inputs("llama")
    before = logits(make_base("llama", dtype), inputs)
    with pytest.warns(UserWarning, match=f"S and O are kept in {str(dtype)[6:]}: training loses"):
        model = peft.get_peft_model(
            make_base("llama", dtype), config(**VARIANTS[variant]), autocast_adapter_dtype=False
        )
    model.save_pretrained(tmp_path / "low")
    for autocast in (True, False):
        assert torch.equal(logits(load(tmp_path / "low", autocast), inputs), before)
    high = load(tmp_path / "low", True)
    found = {p.dtype for n, p in high.named_parameters() if ".osora_" in n}
    assert found == {torch.float32}
    if route == "transformers":
        return
    high.save_pretrained(tmp_path / "high")
    for autocast in (True, False):
        assert torch.equal(logits(load(tmp_path / "high", autocast), inputs), before)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("variant", ["osora", "osora_g", "osora_k"])
def test_an_update_in_16_bits_comes_back_in_any_precision(
    dtype: torch.dtype, variant: str, tmp_path: Path
) -> None:
    def load(folder: Path, autocast: bool) -> Any:
        base = make_base("llama", dtype)
        return PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=autocast).eval()

    options = config(**VARIANTS[variant])
    model = peft.get_peft_model(make_base("llama", dtype), options, autocast_adapter_dtype=False)
    disturb(model, size=0.01)
    model.save_pretrained(tmp_path / "low")
    high = load(tmp_path / "low", True)
    high.save_pretrained(tmp_path / "high")
    low = load(tmp_path / "high", False)
    for name, tensor in peft.get_peft_model_state_dict(model).items():
        for other in (high, low):
            assert torch.equal(peft.get_peft_model_state_dict(other)[name].to(tensor.dtype), tensor)
    assert torch.equal(update(low), update(model))
    # U and V are those of the weight in float32 there, and rounded here
    rounding = torch.finfo(dtype).eps / 2
    exact = update(high)
    assert (update(model) - exact).norm() < rounding * exact.norm()
    layers = [[m for m in x.modules() if isinstance(m, OsoraLayer)] for x in (model, high)]
    for mine, theirs in zip(*layers, strict=True):
        mine.osora_U["default"], mine.osora_V["default"] = (
            theirs.osora_U["default"], theirs.osora_V["default"],
        )  # fmt: skip
    assert (update(model) - exact).norm() < 1e-3 * exact.norm()


def test_a_model_that_is_cast_with_its_adapter_keeps_what_it_can(tmp_path: Path) -> None:
    dtype, inputs = torch.bfloat16, make_inputs("llama")
    model = peft.get_peft_model(make_base("llama", dtype), config(use_dora=True)).eval()
    before = logits(model, inputs)
    with pytest.warns(UserWarning, match="S and O are kept in bfloat16: training loses"):
        model.to(dtype)
    kinds = {n.split(".")[-2]: t.dtype for n, t in model.state_dict().items() if ".osora_" in n}
    assert kinds.pop("osora_fingerprint") == torch.float32
    assert kinds == dict.fromkeys(
        ["osora_S", "osora_O", "osora_magnitude", "osora_S0", "osora_norm0"], dtype
    )
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base("llama", dtype), tmp_path).eval()
    assert torch.equal(logits(loaded, inputs), before)


def test_an_adapter_in_float32_is_loaded_over_one_in_16_bits(tmp_path: Path) -> None:
    """A file without S_0 means the weight's own, whatever an earlier file brought."""
    dtype = torch.bfloat16
    for name, autocast in (("low", False), ("high", True)):
        model = peft.get_peft_model(
            make_base("llama", dtype), config(use_dora=True), autocast_adapter_dtype=autocast
        )
        disturb(model)
        model.save_pretrained(tmp_path / name)
    assert "osora_S0" not in " ".join(load_file(tmp_path / "high" / FILE))
    wanted = update(model)
    loaded = PeftModel.from_pretrained(make_base("llama", dtype), tmp_path / "low")
    assert not torch.allclose(update(loaded), wanted)
    loaded.load_adapter(str(tmp_path / "high"), "default")
    assert torch.equal(update(loaded), wanted)
