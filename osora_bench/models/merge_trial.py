"""Whether a merged adapter is the one that was trained, tried with made-up numbers beforehand."""

from typing import Any

import torch

from osora_bench.common.errors import UserError
from osora_bench.models import merging
from osora_bench.models.trial import trial_losses

STEPS = (0.05, 0.2, 0.8)
"""Standard deviations of what is added to each trained number, until the losses move by MOVED."""
MOVED = 0.05
APART = 0.25
"""Of the losses' move, how much merged ones may differ: bfloat16 rounds the merged weights. An
adapter that is merged into the wrong weights, or not at all, is off by about the whole move."""


def check_equal(adapted: Any, method: str) -> None:
    """Move a fresh adapter off its start, merge it, and hold the losses of made-up texts against
    those beside the weights. The model is of no use afterwards.

    Raises:
        UserError: PEFT cannot merge it and take it out again, or merged it is another model.
    """
    adapted.eval()
    who = f"method {method}: {merging.ASKED}"
    start = trial_losses(adapted)
    started = [(p, p.detach().clone()) for p in adapted.parameters() if p.requires_grad]
    for step in STEPS:
        _move(started, step)
        moved = trial_losses(adapted)
        move = (moved - start).abs().mean()
        if move >= MOVED * start.abs().mean():
            break
    merging.merge(adapted, who)
    apart = (trial_losses(adapted) - moved).abs().mean()
    round_off = start.abs().mean() * torch.finfo(start.dtype).eps ** 0.5
    if not apart <= APART * move + round_off:
        raise UserError(
            f"{who}: PEFT merges it into another model than was trained (losses of made-up texts "
            f"move by {move:.3f} with the adapter, and by {apart:.3f} more with the merge); "
            f"{merging.INSTEAD}"
        )


@torch.no_grad()
def _move(started: list[tuple[torch.nn.Parameter, torch.Tensor]], step: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter, start in started:
        noise = torch.randn(start.shape, generator=generator).to(start)
        parameter.copy_(start + step * noise)
