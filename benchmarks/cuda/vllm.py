"""A cell answered for by vLLM beside the same cell answered for by transformers, where vLLM is."""

import importlib.util
from collections.abc import Iterator
from tempfile import TemporaryDirectory

from benchmarks.cuda.cells import compared, record_of
from benchmarks.rows import LeftOut, Row, run


def rows(*, device: str = "cuda") -> Iterator[Row]:
    """LoRA on the toy."""
    if importlib.util.find_spec("vllm") is None:
        raise LeftOut("eval.backend=vllm needs vLLM, which is not installed")
    with TemporaryDirectory() as a, TemporaryDirectory() as b:
        plain = record_of("toy", "lora", device, a)
        answered = record_of("toy", "lora", device, b, "eval.backend=vllm")
    yield compared("toy, lora r=16: transformers' time / vLLM's", answered, plain)


if __name__ == "__main__":
    run(rows)
