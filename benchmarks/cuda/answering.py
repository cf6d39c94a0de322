"""Answers and perplexities on a GPU at 7B shapes, beside OpenCompass's own wrapper.

Two layers, the toy's tokenizer, made-up questions with five worked examples as MMLU has them. What
random weights in bfloat16 answer says nothing, so answers are not compared here: the cells are
(cells.py), and on a CPU every answer (benchmarks/generation.py).
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks.beside_opencompass import LETTERS, Sides, Task, made_up
from benchmarks.cuda import shapes
from benchmarks.rows import Row, run
from osora_bench.common import paths

TOY = "pkg://osora_bench.toy/model"


def rows(*, device: str = "cuda", tiny: bool = False, repeats: int = 2) -> Iterator[Row]:
    """`tiny=True device=cpu`: the same code on a CPU, for a test."""
    count, most, sizes = (2, 4, (2,)) if tiny else (32, 64, (8, 16))
    for name in shapes.MODELS:
        with tempfile.TemporaryDirectory() as folder:
            model = shapes.base_model(name, "cpu", tiny=tiny)
            tokenizer = AutoTokenizer.from_pretrained(paths.data_file(TOY))
            model.generation_config.eos_token_id = [tokenizer.eos_token_id]
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            del model
            sides = Sides(Path(folder), device, torch.bfloat16)
            texts = made_up(count)
            asked = [text.removesuffix(f" {LETTERS[0]}") for text in texts[:count]]
            for task in (
                Task(f"{name}, 2 layers, {most} tokens", "generate", asked, most, count),
                Task(f"{name}, 2 layers", "ppl", texts, 0, count),
            ):
                yield sides.compare(task, sizes, 128, repeats, 1)


if __name__ == "__main__":
    run(rows)
