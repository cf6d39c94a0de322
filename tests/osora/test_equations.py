"""The layer against the paper's equations, written out naively in float64."""

import math
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from osora_bench.osora import OsoraConfig
from tests.osora.conftest import VARIANTS, disturb

SHAPES = [(12, 20, 5), (20, 12, 12), (9, 9, 1)]


class Naive:
    """Eq. 3 to 7 and 11, DoRA on top, with the residual weight written out."""

    def __init__(self, w0: Tensor, config: OsoraConfig, r: int, o0: Tensor) -> None:
        u, s, vh = torch.linalg.svd(w0, full_matrices=False)
        self.u, self.s0, self.vh, self.o0 = u[:, :r], s[:r], vh[:r], o0
        self.w0, self.config = w0, config
        self.residual = w0 - self.product(self.s0, o0)

    def product(self, s: Tensor, o: Tensor) -> Tensor:
        plain = self.u @ torch.diag(s) @ self.vh
        return plain @ torch.diag(o) if self.config.o_side == "input" else torch.diag(o) @ plain

    def weight(self, s: Tensor, o: Tensor, m: Tensor | None) -> Tensor:
        w = self.residual + self.product(s, o)
        if m is None:
            return w
        norm = w.norm(dim=1, keepdim=True)
        return m[:, None] * w / (norm.detach() if self.config.dora_detach_norm else norm)


def build(
    variant: str, shape: tuple[int, int, int], layer: str, bias: bool
) -> tuple[Any, Any, Naive, OsoraConfig]:
    out, inner, r = shape
    torch.manual_seed(3)
    linear = nn.Linear(inner, out, bias=bias) if layer == "Linear" else Conv1D(out, inner)
    linear = linear.double()
    if layer == "Conv1D":
        linear.bias.data.normal_()
    config = OsoraConfig(r=r, target_modules=["linear"], **VARIANTS[variant])
    model = peft.get_peft_model(nn.ModuleDict({"linear": linear}), config)
    osora = model.base_model.model["linear"]
    o0 = osora.osora_O["default"].detach().clone()
    return model, osora, Naive(osora.original_weight().clone(), config, r, o0), config


@pytest.mark.parametrize(("layer", "bias"), [("Linear", False), ("Linear", True), ("Conv1D", True)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_merged(
    variant: str, shape: tuple[int, int, int], layer: str, bias: bool
) -> None:
    model, osora, naive, config = build(variant, shape, layer, bias)
    x = torch.randn(2, 3, shape[1], dtype=torch.float64)
    before = osora.base_layer(x)
    assert torch.equal(osora(x), before)
    disturb(model)
    m = osora.osora_magnitude["default"] if config.use_dora else None
    weight = naive.weight(osora.osora_S["default"], osora.osora_O["default"], m)
    expected = nn.functional.linear(x, weight, osora.base_layer.bias)
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(osora(x), expected, rtol=1e-10, atol=1e-12)
    stored = osora.base_layer.weight.data.clone()
    osora.merge(safe_merge=True)
    torch.testing.assert_close(osora(x), expected, rtol=1e-10, atol=1e-12)
    merged = osora.base_layer.weight
    torch.testing.assert_close(
        merged.T if layer == "Conv1D" else merged.data, weight, rtol=1e-10, atol=1e-12
    )
    osora.unmerge()
    assert torch.equal(osora.base_layer.weight, stored)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_those_of_the_naive_form(variant: str, shape: tuple[int, int, int]) -> None:
    model, osora, naive, config = build(variant, shape, "Linear", True)
    disturb(model)
    x = torch.randn(7, shape[1], dtype=torch.float64, requires_grad=True)
    goal = torch.randn(7, shape[0], dtype=torch.float64)
    (osora(x) * goal).sum().backward()
    names = ["osora_S", "osora_O"] + ["osora_magnitude"] * config.use_dora
    found = [getattr(osora, name)["default"] for name in names]
    copies = [p.detach().clone().requires_grad_(True) for p in found]
    z = x.detach().clone().requires_grad_(True)
    weight = naive.weight(*copies, *[None] * (3 - len(copies)))
    (nn.functional.linear(z, weight, osora.base_layer.bias) * goal).sum().backward()
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-9, atol=1e-11)
    for name, parameter, copy in zip(names, found, copies, strict=True):
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, copy.grad, rtol=1e-9, atol=1e-11, msg=lambda t, n=name: f"{n}: {t}"
            )
        else:
            assert parameter.grad is None
    trained = {n for n, p in zip(names, found, strict=True) if p.requires_grad}
    expected = {"osora_S": config.train_s, "osora_O": config.train_o, "osora_magnitude": True}
    assert trained == {name for name in names if expected[name]}


def test_equations_9_and_10() -> None:
    model, osora, naive, _ = build("osora", (12, 20, 5), "Linear", False)
    disturb(model)
    x = torch.randn(7, 20, dtype=torch.float64)
    g = torch.randn(7, 12, dtype=torch.float64)
    (osora(x) * g).sum().backward()
    s, o = osora.osora_S["default"].detach(), osora.osora_O["default"].detach()
    d_weight = g.T @ x  # dL / d Delta W
    d_s = torch.diag(naive.u.T @ torch.diag(o) @ d_weight @ naive.vh.T)
    d_o = torch.diag(d_weight @ naive.vh.T @ torch.diag(s) @ naive.u.T)
    torch.testing.assert_close(osora.osora_S["default"].grad, d_s, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(osora.osora_O["default"].grad, d_o, rtol=1e-10, atol=1e-12)


def test_gaussian_start_has_the_standard_deviation_asked_for() -> None:
    for std, expected in ((None, 1 / 8), (0.7, 0.7)):
        torch.manual_seed(0)
        config = OsoraConfig(r=8, target_modules=["a"], o_init="gaussian", o_init_std=std)
        model = peft.get_peft_model(nn.ModuleDict({"a": nn.Linear(8, 4000)}), config)
        o = model.base_model.model["a"].osora_O["default"]
        assert o.std().item() == pytest.approx(expected, rel=0.05)
        assert abs(o.mean().item()) < 4 * expected / math.sqrt(4000)


def test_two_active_adapters_add_up_and_unmerge_exactly() -> None:
    torch.manual_seed(0)
    base = nn.ModuleDict({"a": nn.Linear(10, 6).double()})
    model = peft.get_peft_model(base, OsoraConfig(r=3, target_modules=["a"]), "one")
    model.add_adapter("two", OsoraConfig(r=5, target_modules=["a"], use_dora=True))
    model.set_adapter("two")
    disturb(model, "two")
    model.set_adapter("one")
    disturb(model, "one")
    layer = model.base_model.model["a"]
    x = torch.randn(4, 10, dtype=torch.float64)
    plain = layer.base_layer(x)
    one = layer(x) - plain
    model.set_adapter("two")
    two = layer(x) - plain
    model.base_model.set_adapter(["one", "two"])
    both = plain + one + two
    torch.testing.assert_close(layer(x), both)
    weight = layer.base_layer.weight.data.clone()
    layer.merge()
    assert layer.merged_adapters == ["one", "two"]
    torch.testing.assert_close(layer(x), both)
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, weight)


def test_a_row_of_zeros_under_dora_stays_zero() -> None:
    linear = nn.Linear(6, 4)
    linear.weight.data[2] = 0
    config = OsoraConfig(r=4, target_modules=["a"], use_dora=True, dora_detach_norm=False)
    model = peft.get_peft_model(nn.ModuleDict({"a": linear}), config)
    disturb(model)
    layer = model.base_model.model["a"]
    y = layer(torch.randn(5, 6))
    assert torch.equal(y[:, 2], linear.bias[2].expand(5))
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)


def test_what_else_a_layer_is_called_with_reaches_the_base_layer() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, plus: float, *, times: float = 1.0) -> Tensor:
            return times * (super().forward(x) + plus)

    torch.manual_seed(0)
    base = Scaled(6, 4).double()
    config = OsoraConfig(r=2, target_modules=["a"])
    layer: Any = peft.get_peft_model(nn.ModuleDict({"a": base}), config).base_model.model["a"]
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(layer(x, 2.0, times=3.0), base(x, 2.0, times=3.0))
