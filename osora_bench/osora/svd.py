"""Exact top-r singular triplets of a weight matrix (Eq. 3), by the cheapest accurate route."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor

# Below this relative gap of the squared singular values at the rank's cut, round-off in the Gram
# matrix could turn the subspace by more than about 1e-6.
GRAM_GAP = 1e-8
# From this size on, computing only the wanted eigenvectors pays (measured, docs/osora.md).
PARTIAL_SIZE = 1024


class Triplets(NamedTuple):
    """Singular triplets: u (d_out, r), s (r,) in descending order, vh (r, d_in)."""

    u: Tensor
    s: Tensor
    vh: Tensor


def top_triplets(weight: Tensor, r: int) -> Triplets:
    """The r largest singular triplets of `weight` (d_out, d_in), in float64 on its device.

    |computed - true| <= 1e-5 sigma + 1e-7 sigma_1 for each singular value; the sine of the largest
    angle between the computed and the true subspaces is at most 1e-5 where the spectrum has a gap
    after the r-th value. Each pair (u, v) has its sign fixed: the largest entry of u is positive.

    The eigenvectors of the smaller Gram matrix in float64 give the subspace; a Rayleigh-Ritz step
    on the weight itself then gives the triplets, so that squaring costs no accuracy in them. Where
    the gap after the r-th value is too small for the Gram matrix, the float64 SVD is taken.

    Raises:
        ValueError: r outside 1 to min(d_out, d_in), or NaN or inf in the weight.
    """
    if weight.ndim != 2 or not 1 <= r <= min(weight.shape):
        raise ValueError(f"rank {r} is outside 1..min{tuple(weight.shape)}")
    w = weight.detach().to(torch.float64)
    if not torch.isfinite(w).all():
        raise ValueError("the weight holds NaN or inf")
    wide = w.shape[0] < w.shape[1]
    tall = w.T if wide else w
    short = _top_right_vectors(tall, r)
    if short is None:
        left, s, right_h = torch.linalg.svd(tall, full_matrices=False)
        left, s, right = left[:, :r], s[:r], right_h[:r].T
    else:
        q, rest = torch.linalg.qr(tall @ short)
        a, s, bh = torch.linalg.svd(rest)
        left, right = q @ a, short @ bh.T
    u, v = (right, left) if wide else (left, right)
    rows = u.abs().argmax(dim=0, keepdim=True)
    sign = 1 - 2 * (u.gather(0, rows) < 0).to(u.dtype)
    return Triplets((u * sign).contiguous(), s.contiguous(), (v * sign).T.contiguous())


def _top_right_vectors(tall: Tensor, r: int) -> Tensor | None:
    """The r leading right singular vectors (d, r) of `tall` (n >= d), None if the gap is too small.

    At full rank every orthonormal basis will do, there is no cut to be wrong about.
    """
    size = tall.shape[1]
    if r == size:
        return torch.eye(size, dtype=tall.dtype, device=tall.device)
    values, vectors = _top_eigh(tall.T @ tall, r + 1)
    if not values[1] - values[0] > GRAM_GAP * values[-1]:
        return None
    return vectors[:, 1:].flip(1)


def _top_eigh(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues (ascending) of `gram` and their eigenvectors.

    LAPACK's subset driver, which torch does not offer, leaves out the vectors that nobody asked
    for; it comes with SciPy and runs on the CPU only.
    """
    size = gram.shape[0]
    partial = gram.device.type == "cpu" and size >= PARTIAL_SIZE and 2 * count <= size
    if partial and importlib.util.find_spec("scipy") is not None:
        from scipy.linalg import eigh  # type: ignore[import-untyped]

        found = eigh(
            gram.numpy(), subset_by_index=[size - count, size - 1], driver="evr",
            overwrite_a=True, check_finite=False,
        )  # fmt: skip
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    values, vectors = torch.linalg.eigh(gram)
    return values[-count:], vectors[:, -count:]
