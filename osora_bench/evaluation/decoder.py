"""Greedy decoding and scoring of many prompts at once, on any transformers model with rotary or
learned positions and an exchangeable attention function.

What all prompts begin with (the worked examples of a few-shot set, a system prompt) is computed
once and attended to by every sequence as one matrix product; sequences are batched by length,
their keys and values grow in place, those that are finished leave the batch and others take their
places.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from osora_bench.common.errors import UserError
from osora_bench.evaluation.shared_prefix import ATTENTION, KVCache, Pair
from osora_bench.models.base import inside
from osora_bench.models.trial import nll


class NoNumbers(UserError):
    """A model computes NaN or infinite numbers: whatever is picked by them is no answer."""


LEAVE_AT = 0.8
"""Sequences change when at most this share is still unfinished: that copies those that stay."""
SCORE_BYTES = {"cpu": 2**24, "cuda": 2**29}
"""Attention scores of one layer while prompts are read: on a CPU they should stay in its cache."""
PIECE = {"cpu": 256, "cuda": 4096}
"""Tokens from which on a piece of prompts is large enough that padding costs more than one more."""
FILLED = 0.9
"""Share of a large enough piece's longest prompt that its shortest has at least."""


@dataclass(frozen=True)
class Continuation:
    """What `Decoder.generate` was asked for."""

    prompts: Sequence[Sequence[int]]
    prefix: Sequence[Pair]
    rest: Sequence[list[int]]  # of each prompt, behind the prefix
    max_new: Sequence[int]
    finished: Callable[[int, list[int]], None]
    stopped: Callable[[list[int]], bool] | None

    def longest(self, index: int) -> int:
        """Tokens of a prompt and its answer, the prefix not counted."""
        return len(self.rest[index]) + self.max_new[index]


@dataclass
class Batch:
    """Sequences while they are continued: their prompts, and what was made for the unfinished."""

    cache: KVCache
    places: list[int] = field(default_factory=list)
    made: dict[int, list[int]] = field(default_factory=dict)
    met: Tensor | None = None  # (sequences, vocabulary) which tokens each holds, if that counts

    def change(self, newcomers: Sequence[int], task: Continuation) -> None:
        """Finished sequences out, new ones in, behind those that stay."""
        kept = [position for position, index in enumerate(self.places) if index in self.made]
        self.cache.change(kept, [len(task.rest[i]) for i in newcomers])
        self.places = [self.places[position] for position in kept] + list(newcomers)
        self.made |= {index: [] for index in newcomers}
        if self.met is not None:
            tokens = self.met.new_zeros(len(newcomers), self.met.shape[1])
            for position, index in enumerate(newcomers):
                tokens[position, list(task.prompts[index])] = True
            self.met = torch.cat((self.met[kept], tokens))


class Decoder:
    """Greedy decoding of token lists by a causal language model in evaluation mode.

    Args:
        model: a transformers or PEFT model that `supports` is true of.
        eos_ids: tokens that end an answer.
        pad_id: what shorter sequences are filled up with; it is never attended to.
        memory: bytes that a batch's keys, values and logits may take.
        most_rows: upper bound of sequences of one batch.
        penalty: logits of tokens that a sequence holds already are divided by it where they are
            positive, multiplied by it where they are negative (`repetition_penalty`).
    """

    def __init__(
        self,
        model: Any,
        *,
        eos_ids: Sequence[int],
        pad_id: int,
        memory: int,
        most_rows: int,
        penalty: float = 1.0,
    ) -> None:
        self.model = inside(model)
        self.config = self.model.config.get_text_config()
        self.layers = int(self.config.num_hidden_layers)
        self.windowed = _windowed(self.config)
        self.eos_ids = frozenset(eos_ids)
        self.pad_id = pad_id
        self.memory = memory
        self.most_rows = most_rows
        self.penalty = penalty
        self.device = next(self.model.parameters()).device

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new: Sequence[int],
        finished: Callable[[int, list[int]], None],
        stopped: Callable[[list[int]], bool] | None = None,
    ) -> None:
        """Continue every prompt until an end token, `stopped`, or its own `max_new` tokens.

        Args:
            finished: called with a prompt's index and its new tokens (an end token included) as
                soon as they are complete.
            stopped: whether the new tokens so far end an answer.
        """
        unfinished = dict.fromkeys(self._longest_first(prompts))

        def finish(index: int, tokens: list[int]) -> None:
            del unfinished[index]
            finished(index, tokens)

        with self._exchanged_attention():
            prefix, shared = self._prefix(prompts)
            rest = [list(p[shared:]) for p in prompts]
            task = Continuation(prompts, prefix, rest, max_new, finish, stopped)
            while unfinished:
                batch = Batch(KVCache(prefix, self.device))
                try:
                    self._decode(deque(unfinished), batch, task)
                except torch.OutOfMemoryError:  # on a GPU that so many sequences do not fit
                    if len(batch.places) <= 1:
                        raise
                    self.most_rows = len(batch.places) // 2
                del batch
                if unfinished:  # only now, without the exception, is its memory free
                    torch.cuda.empty_cache()

    @torch.inference_mode()
    def losses(
        self, prompts: Sequence[Sequence[int]], finished: Callable[[int, Tensor], None]
    ) -> None:
        """-log p of each token of each prompt but its first, given those before it.

        Args:
            finished: called with a prompt's index and its losses (tokens - 1,) as soon as they are
                known.
        """
        with self._exchanged_attention():
            prefix, shared, start = self._prefix_losses(prompts)
            rest = [list(p[shared:]) for p in prompts]
            queue = deque(self._longest_first(rest))
            while queue:
                batch = self._entering(queue, [], lambda i: len(rest[i]), every_logit=True)
                cache = KVCache(prefix, self.device)
                cache.change([], [len(rest[i]) for i in batch])
                indices = iter(batch)
                for piece in self._read([rest[i] for i in batch], cache, keep=0):
                    for logits, index in zip(piece, indices, strict=False):
                        first, *others = rest[index]
                        own_logits = logits[-len(rest[index]) : -1]
                        finished(index, torch.cat((start(first), nll(own_logits, others))))

    def _prefix_losses(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[list[Pair], int, Callable[[int], Tensor]]:
        """The shared prefix, its length, and the losses of it and of the token that follows."""
        shared = _shared(prompts)
        if shared == 0:
            return [], 0, lambda _: torch.empty(0)
        first = list(prompts[0][:shared])
        cache = KVCache([], self.device)
        cache.change([], [shared])
        (logits,) = next(self._read([first], cache, keep=0))
        return cache.as_prefix(), shared, lambda token: nll(logits, [*first[1:], token])

    def _prefix(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Pair], int]:
        shared = _shared(prompts)
        if shared == 0:
            return [], 0
        cache = KVCache([], self.device)
        cache.change([], [shared])
        list(self._read([list(prompts[0][:shared])], cache))
        return cache.as_prefix(), shared

    @staticmethod
    def _longest_first(prompts: Sequence[Sequence[int]]) -> list[int]:
        """Indices: the first batch shows whether the memory is enough, and sequences that enter
        later find place behind the padding of those before them."""
        return sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))

    def _entering(
        self,
        queue: deque[int],
        members: Sequence[int],
        longest: Callable[[int], int],
        every_logit: bool = False,
    ) -> list[int]:
        """Take out of `queue` what may join the sequences in `members`; at least one if none is.

        Args:
            longest: tokens that a prompt's sequence may come to hold.
        """
        length = max(map(longest, members), default=0)
        newcomers: list[int] = []
        while queue:
            count = len(members) + len(newcomers) + 1
            length = max(length, longest(queue[0]))
            logits = self._logit_bytes() * (length if every_logit else 1)
            fits = count * (length * self._token_bytes() + logits) <= self.memory
            if count > 1 and (count > self.most_rows or not fits):
                break
            newcomers.append(queue.popleft())
        return newcomers

    def _token_bytes(self) -> int:
        """Keys and values of one token of one sequence."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * self.model.dtype.itemsize)

    def _logit_bytes(self) -> int:
        """Logits of one token, in the model's type and as float32."""
        return int(self.config.vocab_size * (self.model.dtype.itemsize + 4))

    def _decode(self, queue: deque[int], batch: Batch, task: Continuation) -> None:
        """Continue what is waiting, as much at a time as there is place for."""
        if self.penalty != 1:
            batch.met = torch.zeros(0, self.config.vocab_size, dtype=torch.bool, device=self.device)
        while queue or batch.made:
            if len(batch.made) <= LEAVE_AT * len(batch.places):
                newcomers = self._entering(queue, list(batch.made), task.longest)
                batch.change(newcomers, task)
                first = len(batch.places) - len(newcomers)
                if newcomers:
                    pieces = self._read([task.rest[i] for i in newcomers], batch.cache, first)
                    self._take(torch.cat(list(pieces)), first, batch, task)
            if batch.made:
                last_tokens = [[(batch.made.get(i) or [self.pad_id])[-1]] for i in batch.places]
                batch.cache.window = slice(0, len(last_tokens))
                batch.cache.begin = 0
                ids = torch.tensor(last_tokens, device=self.device)
                self._take(self._forward(ids, batch.cache, keep=1), 0, batch, task)

    def _take(self, logits: Tensor, first: int, batch: Batch, task: Continuation) -> None:
        """Give each sequence from the `first` on its next token, and tell of those now finished."""
        scores = logits[:, -1]
        if batch.met is not None:
            held, scores = batch.met[first:], scores.float()
            scores = torch.where(held & (scores > 0), scores / self.penalty, scores)
            scores = torch.where(held & (scores < 0), scores * self.penalty, scores)
        best = scores.argmax(dim=-1)
        need_numbers(scores.gather(1, best[:, None]))  # NaN is larger than any number
        if batch.met is not None:
            batch.met[first:].scatter_(1, best[:, None], True)
        for index, token in zip(batch.places[first:], best.tolist(), strict=True):
            if index not in batch.made:
                continue
            batch.made[index].append(token)
            ended = token in self.eos_ids or len(batch.made[index]) >= task.max_new[index]
            if ended or (task.stopped is not None and task.stopped(batch.made[index])):
                task.finished(index, batch.made.pop(index))

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

    def _pieces(self, prompts: Sequence[list[int]], shared: int) -> Iterator[list[list[int]]]:
        """Neighbours of like length, few enough for their attention scores."""
        device, piece = self.device.type, list[list[int]]()
        for prompt in prompts:
            longest = len(piece[0]) if piece else len(prompt)
            sequence_bytes = self.config.num_attention_heads * longest * (longest + shared) * 4
            large = len(piece) * longest >= PIECE[device] and len(prompt) < FILLED * longest
            if piece and (large or (len(piece) + 1) * sequence_bytes > SCORE_BYTES[device]):
                yield piece
                piece = []
            piece.append(prompt)
        if piece:
            yield piece

    def _forward(self, ids: Tensor, cache: KVCache, keep: int) -> Tensor:
        length = ids.shape[1]
        places = torch.arange(cache.length, cache.length + length, device=self.device)
        positions = (places[None] - cache.padding[cache.window, None]).clamp_min(0)
        logits: Tensor = self.model(
            input_ids=ids,
            position_ids=positions + cache.shared,
            use_cache=False,
            logits_to_keep=keep,
            kv_cache=cache,
            mask=cache.visible(length),
        ).logits
        if (cache.layers, len(cache.windowed)) != (self.layers, self.windowed):
            raise RuntimeError(
                f"{type(self.model).__name__} handed {cache.layers} of its {self.layers} layers to "
                f"the exchanged attention function, {len(cache.windowed)} with a window of "
                f"{self.windowed}"
            )
        cache.length += length
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
