"""A cell trained by two cards that share the model (docs/fsdp.md), beside the same on one."""

from collections.abc import Iterator
from tempfile import TemporaryDirectory

import torch

from benchmarks.cuda.cells import compared, record_of
from benchmarks.rows import LeftOut, Row, run


def rows(*, device: str = "cuda") -> Iterator[Row]:
    """Two processes and one."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        raise LeftOut("trainer=fsdp needs more than one card")
    shared = ["trainer.processes=2", "trainer.micro_batch_size=16"]
    with TemporaryDirectory() as a, TemporaryDirectory() as b:
        alone = record_of("toy", "osora", device, a)
        together = record_of("toy", "osora", device, b, *shared)
    yield compared("toy, osora r=16: one card's time / that of two", together, alone)


if __name__ == "__main__":
    run(rows)
