"""A model that is given batches of many rows behind a prefix that all of them share: on any
transformers model with rotary or learned positions and an exchangeable attention function."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, TypeVar

import torch
from torch import Tensor

from osora_bench.common.errors import UserError
from osora_bench.evaluation.shared_prefix import ATTENTION, KVCache, Pair
from osora_bench.evaluation.token_trees import TreeRows
from osora_bench.models.base import inside

SCORE_BYTES = {"cpu": 2**24, "cuda": 2**29}
"""Attention scores of one layer while prompts are read: on a CPU they should stay in its cache."""
PIECE = {"cpu": 256, "cuda": 4096}
"""Tokens from which on a piece of prompts is large enough that padding costs more than one more."""
FILLED = 0.9
"""Share of a large enough piece's longest prompt that its shortest has at least."""
Row = TypeVar("Row", bound=Sized)


class NoNumbers(UserError):
    """A model computes NaN or infinite numbers: whatever is picked by them is no answer."""


class BatchedModel:
    """What decoding and scoring share: the model with its attention exchanged, and its batches.

    Args:
        model: a transformers or PEFT model in evaluation mode that `supports` is true of.
        pad_id: what shorter sequences are filled up with; it is never attended to.
        memory: bytes that a batch's keys, values and logits may take.
        most_rows: upper bound of rows of one batch.
    """

    def __init__(self, model: Any, *, pad_id: int, memory: int, most_rows: int) -> None:
        self.model = inside(model)
        self.config = self.model.config.get_text_config()
        self.layers = int(self.config.num_hidden_layers)
        self.windowed = _windowed(self.config)
        self.pad_id = pad_id
        self.memory = memory
        self.most_rows = most_rows
        self.device = next(self.model.parameters()).device

    def _prefix(
        self, prompts: Sequence[Sequence[int]], keep: int = 1
    ) -> tuple[list[Pair], int, Tensor | None]:
        """What all prompts begin with, its length, and the logits of its last `keep` tokens (all
        for 0): (keep, vocabulary); None if there is nothing."""
        shared = _shared(prompts)
        if shared == 0:
            return [], 0, None
        cache = KVCache([], self.device)
        cache.change([], [shared])
        (logits,) = self._read([list(prompts[0][:shared])], cache, keep=keep)
        return cache.as_prefix(), shared, logits[0]

    def _logit_bytes(self) -> int:
        """Logits of one token, in the model's type and as float32."""
        return int(self.config.vocab_size * (self.model.dtype.itemsize + 4))

    def _read(
        self, prompts: Sequence[list[int]], cache: KVCache, first: int = 0, keep: int = 1
    ) -> Iterator[Tensor]:
        """Run the sequences from the `first` on, longest first, through the model, in pieces that
        are each padded to their own longest.

        Yields:
            Of the next few sequences, logits of the last `keep` tokens (all for 0): (sequences,
            keep, vocabulary).
        """
        end = cache.length
        for piece in self._pieces(prompts, cache.shared):
            longest = len(piece[0])
            padded = [[self.pad_id] * (longest - len(p)) + p for p in piece]
            cache.window = slice(first, first + len(piece))
            cache.begin = cache.length = end - longest
            yield self._forward(torch.tensor(padded, device=self.device), cache, keep)
            first += len(piece)

    def _pieces(
        self, rows: Sequence[Row], shared: int, most: Callable[[int], float] = lambda _: math.inf
    ) -> Iterator[list[Row]]:
        """Neighbours of like length, few enough for their attention scores.

        Args:
            rows: longest first.
            most: rows of a length that may be in one piece.
        """
        device, piece = self.device.type, list[Row]()
        for row in rows:
            longest = len(piece[0]) if piece else len(row)
            row_bytes = self.config.num_attention_heads * longest * (longest + shared) * 4
            large = len(piece) * longest >= PIECE[device] and len(row) < FILLED * longest
            full = len(piece) >= min(SCORE_BYTES[device] // row_bytes, most(longest))
            if piece and (large or full):
                yield piece
                piece = []
            piece.append(row)
        if piece:
            yield piece

    def _forward(self, ids: Tensor, cache: KVCache, keep: int) -> Tensor:
        length = ids.shape[1]
        places = torch.arange(cache.length, cache.length + length, device=self.device)
        positions = (places[None] - cache.padding[cache.window, None]).clamp_min(0)
        logits = self._run(ids, positions + cache.shared, cache, cache.visible(length), keep)
        cache.length += length
        return logits

    def _run(
        self, ids: Tensor, positions: Tensor, cache: KVCache | TreeRows, mask: Tensor, keep: int = 0
    ) -> Tensor:
        """Logits of the last `keep` (0: all) of the tokens `ids` (rows, tokens)."""
        logits: Tensor = self.model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=keep,
            kv_cache=cache,
            mask=mask,
        ).logits
        if (cache.layers, len(cache.windowed)) != (self.layers, self.windowed):
            raise RuntimeError(
                f"{type(self.model).__name__} handed {cache.layers} of its {self.layers} layers to "
                f"the exchanged attention function, {len(cache.windowed)} with a window of "
                f"{self.windowed}"
            )
        return logits

    @contextlib.contextmanager
    def _exchanged_attention(self) -> Iterator[None]:
        previous = self.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            self.model.set_attn_implementation(previous)


def _windowed(config: Any) -> int:
    """How many layers see the last tokens only."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return int(kinds.count("sliding_attention"))
    return int(config.num_hidden_layers) if getattr(config, "sliding_window", None) else 0


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; at least one is left to each of them."""
    if len(prompts) < 2:
        return 0
    lists = [list(p) for p in prompts]
    first, last = min(lists), max(lists)  # in dictionary order: these two differ the earliest
    count = 0
    while count < min(len(first), len(last)) and first[count] == last[count]:
        count += 1
    return min(count, min(map(len, prompts)) - 1)


def need_numbers(values: Tensor) -> None:
    """Raises NoNumbers if the likeliest tokens' logits, or losses, are no finite numbers."""
    if not bool(values.isfinite().all()):
        raise NoNumbers("the model computes NaN or infinite numbers; it cannot be scored")
