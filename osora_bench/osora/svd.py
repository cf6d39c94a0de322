"""Top-r singular triplets of a weight matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Triplets(NamedTuple):
    """Singular triplets: u (d_out, r), s (r,) in descending order, vh (r, d_in)."""

    u: Tensor
    s: Tensor
    vh: Tensor


def top_triplets(weight: Tensor, r: int) -> Triplets:
    """The r largest singular triplets of `weight` (d_out, d_in), in float64 (Eq. 3)."""
    w = weight.detach().to(torch.float64)
    wide = w.shape[0] <= w.shape[1]
    tall = w.T if wide else w
    _, vectors = torch.linalg.eigh(tall.T @ tall)
    short = vectors[:, -r:].flip(1)
    q, rest = torch.linalg.qr(tall @ short)
    a, s, bh = torch.linalg.svd(rest)
    long, short = q @ a, short @ bh.T
    u, v = (short, long) if wide else (long, short)
    return Triplets(*_canonical_sign(u, s, v.T))


def _canonical_sign(u: Tensor, s: Tensor, vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fix the free sign of each triplet: the entry of u that is largest in size is positive."""
    rows = u.abs().argmax(dim=0, keepdim=True)
    sign = torch.where(u.gather(0, rows) < 0, -1.0, 1.0).to(u.dtype)
    return (u * sign).contiguous(), s, (vh * sign.T).contiguous()
