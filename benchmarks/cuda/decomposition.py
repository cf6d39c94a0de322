"""Decompositions on a GPU beside torch.linalg.svd there, and an adapter's start from the store."""

import statistics
import tempfile
from collections.abc import Iterator

import peft
import torch

from benchmarks.cuda import shapes
from benchmarks.decomposition import weight
from benchmarks.rows import Row, in_turns, row, run, seconds
from osora_bench.osora import OsoraConfig
from osora_bench.osora.store import SvdStore, use_store
from osora_bench.osora.svd import top_triplets

SIZES = [(4096, 4096), (1024, 4096), (3584, 3584), (512, 3584)]
"""q_proj and v_proj of Mistral-7B and of Qwen2-7B."""


def rows(*, device: str = "cuda", tiny: bool = False, pairs: int = 2) -> Iterator[Row]:
    """`tiny=True device=cpu`: the same code on a CPU, for a test."""
    for size in [(64, 64)] if tiny else SIZES:
        w, rank = weight(size, 0).to(device), min(*size, 512) // (4 if tiny else 1)
        top_triplets(w, rank)  # what the libraries do once only
        plain, ours = in_turns(
            lambda w=w: seconds(lambda: torch.linalg.svd(w, full_matrices=False), device),
            lambda w=w, r=rank: seconds(lambda: top_triplets(w, r), device),
            pairs,
        )
        yield row(
            f"decomposition, {size[0]} x {size[1]}, r = {rank}: torch.linalg.svd / ours",
            [a / b for a, b in zip(plain, ours, strict=True)], None,
            f"{statistics.median(plain):.2f} / {statistics.median(ours):.2f} s", at_least=1.0,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, use_store(SvdStore(folder)):
        for name in shapes.MODELS:
            yield start(name, device, tiny=tiny)


def start(name: str, device: str, *, tiny: bool) -> Row:
    """OSoRA on two layers: decomposed, and once more from the store."""
    times = []
    for _ in range(2):
        model = shapes.base_model(name, device, tiny=tiny)
        config = OsoraConfig(r=shapes.rank_of(model), target_modules=["q_proj", "v_proj"])
        times.append(seconds(lambda m=model, c=config: peft.get_peft_model(m, c), device))
    return row(
        f"start, OSoRA on 2 layers of {name}: decomposed / from the store",
        [times[0] / times[1]], None, f"{times[0]:.2f} / {times[1]:.2f} s",
    )  # fmt: skip


if __name__ == "__main__":
    run(rows)
