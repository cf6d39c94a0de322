"""Time of the decomposition that OSoRA and PiSSA start from, beside torch.linalg.svd.

    python -m benchmarks.decomposition pairs=3

Random weights of Mistral-7B's two adapted shapes at r = 512, with a slowly decaying spectrum. The
limit is the Gram matrix, its tridiagonal form and r vectors, at the speed of a large product here.
"""

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.rows import Row, gflops, in_turns, row, run, seconds
from osora_bench.osora.svd import top_triplets

SHAPES = [(4096, 4096), (1024, 4096)]


def weight(shape: tuple[int, int], seed: int) -> Tensor:
    """A random weight (float32) whose columns fall off slowly in size."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).float() ** -0.3
    return torch.randn(*shape, generator=generator) * scale


def operations(shape: tuple[int, int], rank: int) -> float:
    """Floating-point operations that the leading triplets take at least by way of the Gram
    matrix, of which one triangle is enough."""
    small, large = sorted(shape)
    return 4 / 3 * small**3 + 4 * rank * small**2 + small**2 * large


def worst(w: Tensor, rank: int) -> float:
    """The largest sine of an angle between the subspaces found and those of the float64 SVD."""
    found = top_triplets(w, rank)
    u, _, vh = torch.linalg.svd(w.double(), full_matrices=False)
    sides = ((found.u, u[:, :rank]), (found.vh.T, vh[:rank].T))
    return max(torch.linalg.matrix_norm(a - b @ (b.T @ a), 2).item() for a, b in sides)


def rows(*, rank: int = 512, pairs: int = 1, accuracy: bool = False) -> Iterator[Row]:
    """`accuracy=True` compares the subspaces with those of the float64 SVD, too."""
    speed = gflops(torch.float32) * 1e9
    for shape in SHAPES:
        weights = [weight(shape, i) for i in range(pairs)]
        mine, theirs = iter(weights), iter(weights)
        ours, plain = in_turns(
            lambda w=mine: seconds(lambda: top_triplets(next(w), rank)),
            lambda w=theirs: seconds(lambda: torch.linalg.svd(next(w), full_matrices=False)),
            pairs,
        )
        limit = statistics.median(plain) / (operations(shape, rank) / speed)
        sine = f"; largest sine {worst(weights[0], rank):.0e}" if accuracy else ""
        yield row(
            f"decomposition, {shape[0]} x {shape[1]}, r = {rank}: torch.linalg.svd / ours",
            [a / b for a, b in zip(plain, ours, strict=True)],
            limit,
            f"{statistics.median(plain):.2f} / {statistics.median(ours):.2f} s{sine}",
            at_least=1.5,
        )


if __name__ == "__main__":
    run(rows)
