"""Losses of the answers to multiple-choice questions beside OpenCompass's wrapper.

    make smollm2
    OSORA_DATA=... python -m benchmarks.perplexity "sets=['siqa']" limit=24 "stock=[1,4,8]"

The last row's questions are made up in MMLU's form: five worked examples before each.
"""

from collections.abc import Iterator, Sequence

from benchmarks.beside_opencompass import Sides, Task, made_up
from benchmarks.rows import ROOT, Row, need_data, need_smollm2, run


def rows(
    *,
    model: str = "models/smollm2-135m",
    sets: Sequence[str] = ("siqa", "ARC-c", "hellaswag"),
    limit: int = 24,
    stock: Sequence[int] = (4,),
    like_mmlu: int = 1,
    repeats: int = 1,
) -> Iterator[Row]:
    """`limit` questions of each set, the wrapper at the best of the batch sizes `stock`."""
    need_smollm2()
    need_data("siqa", "ARC", "hellaswag")
    sides = Sides(ROOT / model)
    asked = sides.asked("commonsense-ppl", sets, limit, None)
    if like_mmlu:
        asked.append(Task("made up like MMLU", "ppl", made_up(like_mmlu), 0, like_mmlu))
    for task in asked:
        yield sides.compare(task, stock, 128, repeats, 2)


if __name__ == "__main__":
    run(rows)
