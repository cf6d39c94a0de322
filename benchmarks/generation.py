"""Answers that a model writes, beside OpenCompass's wrapper.

make smollm2
OSORA_DATA=... python -m benchmarks.generation suite=gsm8k "sets=['gsm8k']" "stock=[4,8]" most=512
"""

from collections.abc import Iterator, Sequence

from benchmarks.beside_opencompass import Sides
from benchmarks.rows import ROOT, Row, need_data, need_smollm2, run


def rows(
    *,
    model: str = "models/smollm2-135m",
    suite: str = "commonsense-0shot",
    sets: Sequence[str] = ("ARC-c",),
    limit: int = 24,
    most: int = 128,
    stock: Sequence[int] = (16,),
    own: int = 64,
    repeats: int = 1,
) -> Iterator[Row]:
    """`limit` questions, `most` new tokens, the wrapper at the best of the batch sizes `stock`,
    ours with `own` rows."""
    need_smollm2()
    need_data("ARC")
    sides = Sides(ROOT / model)
    for task in sides.asked(suite, sets, limit, most):
        yield sides.compare(task, stock, own, repeats, 2)


if __name__ == "__main__":
    run(rows)
