"""Greedy decoding of many prompts at once.

What all prompts begin with (the worked examples of a few-shot set, a system prompt) is computed
once and attended to by every sequence as one matrix product; sequences are batched by length,
their keys and values grow in place, those that are finished leave the batch and others take their
places.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from osora_bench.evaluation.batched_model import BatchedModel, need_numbers
from osora_bench.evaluation.shared_prefix import KVCache, Pair

LEAVE_AT = 0.8
"""Sequences change when at most this share is still unfinished: that copies those that stay."""


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


class Decoder(BatchedModel):
    """Greedy decoding of token lists by a causal language model in evaluation mode.

    Args:
        model, settings: as of `BatchedModel`.
        eos_ids: tokens that end an answer.
        penalty: logits of tokens that a sequence holds already are divided by it where they are
            positive, multiplied by it where they are negative (`repetition_penalty`).
    """

    def __init__(
        self,
        model: Any,
        *,
        eos_ids: Sequence[int],
        penalty: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        self.eos_ids = frozenset(eos_ids)
        self.penalty = penalty

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
            prefix, shared, _ = self._prefix(prompts)
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
            fits = count * (length * self._token_bytes() + self._logit_bytes()) <= self.memory
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
