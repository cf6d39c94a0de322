"""Exact top-r singular triplets of a weight matrix (Eq. 3), by the cheapest accurate route."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# From this size on, float32 eigenvectors with one float64 correction are cheaper than float64
# eigenvectors, if at most a quarter of them is wanted (measured, docs/osora.md).
REFINE_SIZE = 1024
REFINE_SHARE = 4
# Bound on the sine of the subspace's angle error above which the next route is taken.
ANGLE = 1e-6
# Gaps of the squared singular values, relative to the largest, that float32 and float64 resolve.
FLOAT32_GAP = 1e-4
FLOAT64_GAP = 1e-8


class Triplets(NamedTuple):
    """Singular triplets: u (d_out, r), s (r,) in descending order, vh (r, d_in)."""

    u: Tensor
    s: Tensor
    vh: Tensor


def top_triplets(weight: Tensor, r: int) -> Triplets:
    """The r largest singular triplets of `weight` (d_out, d_in), in float64 on its device.

    |computed - true| <= 1e-5 sigma + 1e-7 sigma_1 for each singular value; the sine of the largest
    angle between the computed and the true subspaces is at most 1e-5 where the spectrum has a gap
    after the r-th value that float64 resolves (1e-9 of the largest). Each pair (u, v) has its sign
    fixed: the largest entry of u is positive.

    Three routes to the subspace of the shorter side, each left for the next where the spectrum is
    beyond its accuracy: float32 eigenvectors of the Gram matrix with a float64 correction; float64
    eigenvectors of the Gram matrix; the float64 SVD. After the first two a Rayleigh-Ritz step on
    the weight itself gives the triplets, so that squaring costs them no accuracy.

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
    left, s, right = _refined(tall, r) or _gram(tall, r) or _direct(tall, r)
    u, v = (right, left) if wide else (left, right)
    rows = u.abs().argmax(dim=0, keepdim=True)
    sign = 1 - 2 * (u.gather(0, rows) < 0).to(u.dtype)
    return Triplets((u * sign).contiguous(), s.contiguous(), (v * sign).T.contiguous())


Found = tuple[Tensor, Tensor, Tensor]  # left (n, r), s (r,), right (d, r) of a tall (n, d) matrix


def _refined(tall: Tensor, r: int) -> Found | None:
    """By float32 eigenvectors of the Gram matrix, corrected once in float64.

    The r leading vectors get their first-order correction along all vectors beyond a buffer that
    follows them; the Rayleigh-Ritz step over leading vectors and buffer does the rest. So the
    error is the square of float32's over the gap to the end of the buffer, not over the gap after
    the r-th value, which is small in real weights. It is then bounded by the residual.
    """
    size = tall.shape[1]
    if size < REFINE_SIZE or REFINE_SHARE * r > size:
        return None
    kept = r + max(64, r // 4)  # below `size`, with these constants
    low = tall.to(torch.float32)
    values, vectors = torch.linalg.eigh(low.T @ low)
    if not values[-r] - values[-kept - 1] > FLOAT32_GAP * values[-1]:
        return None
    top, rest = vectors[:, -r:].to(torch.float64), vectors[:, :-kept]
    image = tall.T @ (tall @ top)
    centre = (top * image).sum(dim=0)
    # the residual is small: float32 gives enough of its digits
    missing = rest.T @ (image - top * centre).to(torch.float32)
    missing /= centre.to(torch.float32) - values[:-kept, None]
    basis = torch.cat((vectors[:, -kept:-r].to(torch.float64), top + rest @ missing), dim=1)
    left, s, right = _rayleigh_ritz(tall, torch.linalg.qr(basis)[0], r)
    gap = s[-1] - values[-kept - 1].clamp_min(0).sqrt()
    if not (tall.T @ left - right * s).norm() < ANGLE * gap:
        return None
    return left, s, right


def _gram(tall: Tensor, r: int) -> Found | None:
    """By float64 eigenvectors of the Gram matrix; at full rank any basis will do."""
    size = tall.shape[1]
    if r == size:
        return _rayleigh_ritz(tall, torch.eye(size, dtype=tall.dtype, device=tall.device), r)
    values, vectors = torch.linalg.eigh(tall.T @ tall)
    if not values[-r] - values[-r - 1] > FLOAT64_GAP * values[-1]:
        return None
    return _rayleigh_ritz(tall, vectors[:, -r:], r)


def _direct(tall: Tensor, r: int) -> Found:
    left, s, right_h = torch.linalg.svd(tall, full_matrices=False)
    return left[:, :r], s[:r], right_h[:r].T


def _rayleigh_ritz(tall: Tensor, basis: Tensor, r: int) -> Found:
    """The r leading triplets of `tall` (n, d) within the span of an orthonormal basis (d, p)."""
    q, rest = torch.linalg.qr(tall @ basis)
    a, s, bh = torch.linalg.svd(rest)
    return q @ a[:, :r], s[:r], basis @ bh[:r].T
