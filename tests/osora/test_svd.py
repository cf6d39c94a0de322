"""The decomposition: the accuracy that its docstring states."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from osora_bench.osora import OsoraConfig
from osora_bench.osora import svd as svd_module
from osora_bench.osora.svd import top_triplets

SHAPES = [(120, 120), (60, 150), (150, 60)]
RESOLVABLE = 1e-9  # gap, relative to sigma_1, below which float64 cannot tell subspaces apart


def spectrum(kind: str, size: int) -> Tensor:
    i = torch.arange(1, size + 1, dtype=torch.float64)
    return {
        "slow": i**-0.5,
        "medium": i**-1.5,
        "geometric": 0.9 ** (i - 1),
        "steep": 0.5 ** (i - 1),
        "deficient": torch.where(i <= size // 3, i**-0.5, 0.0),
    }[kind]


def matrix(shape: tuple[int, int], values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """W (float64) with these singular values, and its true U and V."""
    generator = torch.Generator().manual_seed(seed)

    def basis(n: int) -> Tensor:
        random = torch.randn(n, len(values), generator=generator, dtype=torch.float64)
        return torch.linalg.qr(random)[0]

    u, v = basis(shape[0]), basis(shape[1])
    return (u * values) @ v.T, u, v


def sine(a: Tensor, b: Tensor) -> float:
    """Of the largest angle between the spans of two orthonormal bases."""
    return torch.linalg.matrix_norm(a - b @ (b.T @ a), 2).item()


def check(shape: tuple[int, int], kind: str, r: int) -> None:
    values = spectrum(kind, min(shape))
    w, u, v = matrix(shape, values)
    found = top_triplets(w, r)
    assert found.u.shape == (shape[0], r)
    assert found.vh.shape == (r, shape[1])
    error = (found.s - values[:r]).abs()
    assert (error <= 1e-5 * values[:r] + 1e-7 * values[0]).all()
    assert (found.s.diff() <= 0).all()
    eye = torch.eye(r, dtype=torch.float64)
    torch.testing.assert_close(found.u.T @ found.u, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.vh @ found.vh.T, eye, rtol=0, atol=1e-10)
    gap = values[r - 1] - (values[r] if r < len(values) else 0.0)
    if gap > RESOLVABLE * values[0]:
        assert sine(found.u, u[:, :r]) <= 1e-5
        assert sine(found.vh.T, v[:, :r]) <= 1e-5
    # the triplets are those of W, whatever the gap
    torch.testing.assert_close(w.T @ found.u, found.vh.T * found.s, rtol=0, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["slow", "medium", "geometric", "steep", "deficient"])
@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy(shape: tuple[int, int], kind: str, share: float) -> None:
    check(shape, kind, max(1, round(share * min(shape))))


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The routes whose answer was taken, small matrices allowed on the first."""
    taken: list[str] = []

    def watch(name: str) -> None:
        route = getattr(svd_module, name)

        def watched(tall: Tensor, r: int) -> Any:
            found = route(tall, r)
            if found is not None:
                taken.append(name)
            return found

        monkeypatch.setattr(svd_module, name, watched)

    for name in ("_refined", "_gram", "_direct"):
        watch(name)
    monkeypatch.setattr(svd_module, "REFINE_SIZE", 1)
    return taken


@pytest.mark.parametrize("shape", [(320, 320), (300, 340), (340, 300)])
@pytest.mark.parametrize(
    ("kind", "r", "route"),
    [
        ("slow", 1, "_refined"),
        ("slow", 40, "_refined"),
        ("slow", 200, "_gram"),
        ("medium", 5, "_refined"),
        ("medium", 60, "_gram"),
        ("geometric", 30, "_refined"),
        ("geometric", 75, "_gram"),
        ("geometric", 100, "_direct"),
        ("deficient", 60, "_refined"),
        ("deficient", 150, "_direct"),
    ],
)
def test_every_route(
    shape: tuple[int, int], kind: str, r: int, route: str, routes: list[str]
) -> None:
    check(shape, kind, r)
    assert routes == [route]


def test_a_correction_that_fails_is_noticed(
    routes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the guess from the float32 spectrum the residual still finds the loss."""
    monkeypatch.setattr(svd_module, "FLOAT32_GAP", 0.0)
    check((320, 320), "medium", 60)
    assert routes == ["_gram"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slow", "medium", "geometric"])
def test_accuracy_at_full_size(kind: str) -> None:
    check((1024, 2048), kind, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_precisions_are_decomposed_as_stored(dtype: torch.dtype) -> None:
    w = matrix((40, 30), spectrum("slow", 30))[0].to(dtype)
    found, exact = top_triplets(w, 7), top_triplets(w.double(), 7)
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


def test_signs_are_fixed() -> None:
    w = matrix((40, 30), spectrum("slow", 30))[0]
    found, negative = top_triplets(w, 9), top_triplets(-w, 9)
    rows = found.u.abs().argmax(dim=0)
    assert (found.u[rows, torch.arange(9)] > 0).all()
    torch.testing.assert_close(negative.u, found.u)
    torch.testing.assert_close(negative.vh, -found.vh)


def test_zeros_and_equal_values_are_decomposed() -> None:
    assert torch.equal(top_triplets(torch.zeros(6, 4), 3).s, torch.zeros(3, dtype=torch.float64))
    w = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))[0]
    torch.testing.assert_close(top_triplets(w, 5).s, torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("r", [0, -1, 5])
def test_bad_ranks(r: int) -> None:
    with pytest.raises(ValueError, match=rf"rank {r} is outside 1..min\(6, 4\)"):
        top_triplets(torch.ones(6, 4), r)


def test_bad_weights() -> None:
    with pytest.raises(ValueError, match="NaN or inf"):
        top_triplets(torch.full((6, 4), torch.nan), 2)


def test_full_rank_leaves_nothing_of_the_weight() -> None:
    """At full rank W0' = 0 (Qwen2-7B's v_proj at r = 512)."""
    import peft

    linear = nn.Linear(24, 8, bias=False).double()
    weight = linear.weight.data.clone()
    model = peft.get_peft_model(
        nn.ModuleDict({"a": linear}), OsoraConfig(r=8, target_modules=["a"])
    )
    layer = model.base_model.model["a"]
    with torch.no_grad():
        layer.osora_O["default"].zero_()
    assert layer(torch.randn(3, 24, dtype=torch.float64)).abs().max() < 1e-14
    layer.merge()
    assert layer.base_layer.weight.abs().max() < 1e-14
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, weight)
