"""Cost of OSoRA's start: the decomposition, and the store, beside torch.linalg.svd.

    python benchmarks/osora_svd.py --pairs 3

Random weights of Mistral-7B's two shapes at r = 512, with a slowly decaying spectrum; each pair
runs both in turn. Printed are medians of the ratios of wall-clock and of CPU time, the floor of the
decomposition in floating-point operations, and for the store the time of reading the file beside
the time of the whole look-up (hashing the weight included).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from osora_bench.osora.store import SvdStore, content_key
from osora_bench.osora.svd import top_triplets

SHAPES = [(4096, 4096), (1024, 4096)]


def clock(action: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def weight(shape: tuple[int, int], seed: int) -> Tensor:
    """A random weight (float32) whose columns fall off slowly in size."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).float() ** -0.3
    return torch.randn(*shape, generator=generator) * scale


def accuracy(w: Tensor, r: int) -> str:
    """Worst errors against the float64 SVD."""
    found = top_triplets(w, r)
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    bound = 1e-5 * s[:r] + 1e-7 * s[0]
    sines = [
        torch.linalg.matrix_norm(a - b @ (b.T @ a), 2).item()
        for a, b in ((found.u, u[:, :r]), (found.vh.T, vh[:r].T))
    ]
    share = ((found.s - s[:r]).abs() / bound).max().item()
    return f"error of the values {share:.1e} of what is allowed, largest sine {max(sines):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rank", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--accuracy", action="store_true", help="compare with the float64 SVD")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"rank {args.rank}, {args.threads} thread(s), torch {torch.__version__}")
    sums: list[list[tuple[float, float]]] = [[], []]
    for shape in SHAPES:
        ours, theirs = [], []
        for i in range(args.pairs):
            w = weight(shape, i)
            ours.append(clock(lambda w=w: top_triplets(w, args.rank)))
            theirs.append(clock(lambda w=w: torch.linalg.svd(w, full_matrices=False)))
        sums[0].append(tuple(statistics.median(t[k] for t in ours) for k in (0, 1)))
        sums[1].append(tuple(statistics.median(t[k] for t in theirs) for k in (0, 1)))
        ratios = [
            statistics.median(b[k] / a[k] for a, b in zip(ours, theirs, strict=True))
            for k in (0, 1)
        ]
        small, large = sorted(shape)
        floor = 4 / 3 * small**3 + 4 * args.rank * small**2 + small**2 * large
        print(f"{shape[0]}x{shape[1]}: ours {sums[0][-1][0]:.2f} s, torch.linalg.svd "
              f"{sums[1][-1][0]:.2f} s; svd / ours: wall {ratios[0]:.2f}, CPU {ratios[1]:.2f}; "
              f"floor (Gram, tridiagonal form, r vectors) {floor / 1e9:.0f} Gflop",
              flush=True)  # fmt: skip
        if args.accuracy:
            print("   " + accuracy(weight(shape, 0), args.rank), flush=True)
    total = [sum(t[k] for t in sums[1]) / sum(t[k] for t in sums[0]) for k in (0, 1)]
    print(f"both shapes together: svd / ours: wall {total[0]:.2f}, CPU {total[1]:.2f} (asked 1.5)")
    with tempfile.TemporaryDirectory() as folder:
        store = SvdStore(folder)
        for shape in SHAPES:
            w = weight(shape, 0)
            store.get(w, args.rank)
            path = store.path(w, args.rank)
            runs = [
                [clock(action)[0] for _ in range(9)]
                for action in (
                    path.read_bytes, lambda w=w: content_key(w),
                    lambda w=w: store.get(w, args.rank),
                )
            ]  # fmt: skip
            read, key, get = (statistics.median(r) * 1e3 for r in runs)
            print(f"store {shape[0]}x{shape[1]}: look-up {get:.0f} ms, of which hash of the weight "
                  f"{key:.0f} ms; plain read of the {path.stat().st_size / 1e6:.0f} MB file "
                  f"{read:.0f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
