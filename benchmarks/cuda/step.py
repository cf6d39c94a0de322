"""A training step of each method beside LoRA's, on a GPU at 7B shapes.

One row of 512 tokens a step, as the paper trains, in bfloat16 with float32 adapters. The memory is
that of both models together.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import peft
import torch

from benchmarks.cuda import shapes
from benchmarks.rows import Row, in_turns, row, run, seconds
from osora_bench.osora import OsoraConfig, start_pissa

TARGETS = {"target_modules": ["q_proj", "v_proj"]}
LORA = {"r": 16, "lora_alpha": 16, **TARGETS}


def methods(rank: int) -> dict[str, tuple[Any, float | None]]:
    """PEFT configurations beside LoRA's, and at most how many times its step each may take."""
    return {
        "DoRA": (peft.LoraConfig(**LORA, use_dora=True), None),
        "PiSSA": (peft.LoraConfig(**LORA), None),
        "VeRA": (peft.VeraConfig(r=rank // 2, **TARGETS), None),
        "OSoRA": (OsoraConfig(r=rank, **TARGETS), 1.02),
    }


class Steps:
    """A model under one method, and its steps."""

    def __init__(self, name: str, method: str, config: Any, device: str, *, tiny: bool) -> None:
        self.device = device
        self.model = peft.get_peft_model(shapes.base_model(name, device, tiny=tiny), config).train()
        if method == "PiSSA":
            start_pissa(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.ids = torch.randint(1, 900, (1, 16 if tiny else 512), device=device)

    def several(self, count: int) -> Callable[[], float]:
        """A measurement of the mean seconds of `count` steps."""

        def steps() -> None:
            for _ in range(count):
                with torch.autocast(self.device, torch.bfloat16):
                    loss = self.model(input_ids=self.ids, labels=self.ids).loss
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()

        return lambda: seconds(steps, self.device) / count


def rows(*, device: str = "cuda", tiny: bool = False, pairs: int = 10) -> Iterator[Row]:
    """`tiny=True device=cpu`: the same code on a CPU, for a test."""
    count = 1 if tiny else 20
    for name in shapes.MODELS:
        shapes.forget_peak(device)
        lora = Steps(name, "LoRA", peft.LoraConfig(**LORA), device, tiny=tiny)
        rank = shapes.rank_of(lora.model)
        work = lora.ids.numel() * shapes.operations(lora.model)
        for method, (config, most) in methods(rank).items():
            other = Steps(name, method, config, device, tiny=tiny)
            lora.several(count)(), other.several(count)()
            ours, theirs = in_turns(other.several(count), lora.several(count), pairs)
            step = statistics.median(ours)
            yield row(
                f"step, {name}, 2 layers, {method} / LoRA: time",
                [a / b for a, b in zip(ours, theirs, strict=True)], None,
                f"{1000 * step:.2f} / {1000 * statistics.median(theirs):.2f} ms; "
                f"{lora.ids.numel() / step:,.0f} tokens/s; "
                f"{shapes.share_of_peak(work / step, device)}{shapes.memory(device)}",
                at_most=most,
            )  # fmt: skip
            del other


if __name__ == "__main__":
    run(rows)
