"""What a training costs: seconds, tokens a second, memory, and the numbers that an adapter adds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from osora_bench.models.memory import Peak
from osora_bench.records.schema import TrainingCosts


class Meter(TrainerCallback):
    """Counts seconds and tokens of a training loop since it was started last."""

    def __init__(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self._since, self._seen = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since, self._seen = time.monotonic(), int(state.num_input_tokens_seen)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.monotonic() - self._since
        self.tokens = int(state.num_input_tokens_seen) - self._seen


class CostMeter:
    """Of one cell's training in this process, in the order `start`, `training`.

    Args:
        base: the model that the adapter is put on.
        device: where it is trained.
    """

    def __init__(self, base: torch.nn.Module, device: torch.device) -> None:
        self.device = device
        self.loop = Meter()
        self._base_bytes = _bytes(base)
        peak = Peak(device)
        peak.end()
        self._resident = peak.before
        self._start = 0.0
        self._memory = 0

    @contextmanager
    def start(self) -> Iterator[None]:
        """Around the start of the adapter."""
        begin = time.monotonic()
        yield
        self._start = time.monotonic() - begin

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around the training."""
        peak = Peak(self.device)
        try:
            yield
        finally:
            self._memory = max(0, peak.end() - self._resident)

    def costs(self, model: torch.nn.Module) -> TrainingCosts:
        """All of them, of the trained model."""
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        added = _bytes(model) - self._base_bytes
        speed = self.loop.tokens / self.loop.seconds if self.loop.seconds else 0.0
        return {
            "start_seconds": round(self._start, 3),
            "seconds": round(self.loop.seconds, 3),
            "tokens_per_second": round(speed, 1),
            "memory_mb": round(self._memory / 2**20, 1),
            "frozen_bytes": max(0, added - trained),
        }


def _bytes(model: torch.nn.Module) -> int:
    """Of all tensors of a model, each once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
