"""What a training costs: seconds, tokens a second, memory, and the numbers that an adapter adds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from osora_bench.models.memory import Peak
from osora_bench.records.schema import TrainingCosts


class Meter(TrainerCallback, ExportableState):
    """Counts seconds, tokens and memory of a training loop. Each checkpoint keeps what it took
    until then, so that a training that was interrupted costs what all its parts cost; steps that
    are lost with a crash and done again count once.

    Args:
        memory: the most bytes that this process has had in the training, until now.

    Attributes:
        seconds: None where an earlier part's are not known, as in checkpoints of before.
        tokens: of all parts.
        memory: the most of any part that is known.
    """

    def __init__(self, memory: Callable[[], int] = lambda: 0) -> None:
        self._most = memory
        self.seconds: float | None = 0.0
        self.tokens, self.memory = 0, 0
        self._earlier: float | None = 0.0
        self._since: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.monotonic()
        self._earlier, self.memory = (None if state.global_step else 0.0), 0
        kept = state.stateful_callbacks.get(type(self).__name__)
        if kept is not None and state.global_step:
            self._earlier, self.memory = (kept["attributes"][k] for k in ("seconds", "memory"))
        # the next checkpoint looks itself up here, and a checkpoint of before has no such entry
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._look()
        self.tokens = int(state.num_input_tokens_seen)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self._look()
        return {"args": {}, "attributes": {"seconds": self.seconds, "memory": self.memory}}

    def _look(self) -> None:
        if self._since is None:  # the Trainer asks for its state before it begins
            return
        spent = time.monotonic() - self._since
        self.seconds = None if self._earlier is None else self._earlier + spent
        self.memory = max(self.memory, self._most())


class CostMeter:
    """Of one training in this process, in the order `started`, `training`, `costs`.

    Args:
        base: the model that the adapter is put on.
        device: where it is trained.
    """

    def __init__(self, base: torch.nn.Module, device: torch.device) -> None:
        self.device = device
        self.loop = Meter(self._used)
        self._base = _tensors(base)
        peak = Peak(device)
        peak.end()
        self._resident = peak.before
        self._start = 0.0
        self._frozen = 0
        self._peak: Peak | None = None

    def started(self, start: Callable[[], Any]) -> Any:
        """The model with its adapter, as `start` makes it."""
        begin = time.monotonic()
        model = start()
        self._start = time.monotonic() - begin
        added = _size(_tensors(model)) - _size(self._base)
        trained = {k: t for k, t in _tensors(model).items() if t.requires_grad}
        self._frozen = added - _size({k: t for k, t in trained.items() if k not in self._base})
        self._base = {}  # where processes share the model, the whole weights go now
        return model

    @contextmanager
    def training(self, *, sharded: bool = False) -> Iterator[None]:
        """Around the training.

        Args:
            sharded: memory counts from here on, where this process has its part of the model, and
                not from the base model on.
        """
        self._peak = Peak(self.device)
        if sharded:
            self._resident = self._peak.before
        try:
            yield
        finally:
            self.loop.memory = max(self.loop.memory, self._used())
            self._peak.end()

    def _used(self) -> int:
        return 0 if self._peak is None else max(0, self._peak.most() - self._resident)

    def costs(self) -> TrainingCosts:
        """All of them, of the training that is done."""
        seconds = self.loop.seconds
        return {
            "start_seconds": round(self._start, 3),
            "seconds": None if seconds is None else round(seconds, 3),
            "tokens_per_second": round(self.loop.tokens / seconds, 1) if seconds else None,
            "memory_bytes": self.loop.memory,
            "frozen_bytes": self._frozen,
        }


def _tensors(model: torch.nn.Module) -> dict[int, torch.Tensor]:
    """All tensors of a model, each once."""
    return {id(t): t for t in (*model.parameters(), *model.buffers())}


def _size(tensors: dict[int, torch.Tensor]) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
