"""Greedy decoding and scoring of many prompts at once, on any transformers model with rotary or
learned positions and an exchangeable attention function.

What all prompts begin with (the worked examples of a few-shot set, a system prompt) is computed
once and attended to by every row as one matrix product; rows are batched by length, their keys and
values grow in place, and rows that are finished leave the batch.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

ATTENTION = "osora_bench_shared_prefix"
GROWTH = 64
"""Tokens by which the place for keys and values grows: each growth copies all of them."""
LEAVE_AT = 0.8
"""Rows are taken out when at most this share of them is still unfinished: that copies the rest."""
SCORE_BYTES = 16 * 2**20
"""Attention scores of one layer while prompts are read: they should stay in the cache."""

Pair = tuple[Tensor, Tensor]  # keys, values


class Rows:
    """Keys and values of a batch of rows, left-padded, behind a prefix that all rows share.

    Args:
        prefix: of each layer, keys and values (kv heads, prefix tokens, head size); or empty.
        padding: (rows,) how many of each row's first tokens are padding.
    """

    def __init__(self, prefix: Sequence[Pair], padding: Tensor) -> None:
        self.prefix = prefix
        self.padding = padding
        self.window = slice(0, len(padding))  # the rows that the model is now given
        self.length = 0  # tokens a row, padding included and prefix not
        self._stored: list[list[Tensor]] = []

    @property
    def layers(self) -> int:
        """How many layers have stored something."""
        return len(self._stored)

    def append(self, layer: int, new: Pair) -> Pair:
        """Store what (window rows, kv heads, new tokens, head size) holds; return all of it."""
        if layer == len(self._stored):
            self._stored.append([self._room(t, t.shape[2] + GROWTH) for t in new])
        end = self.length + new[0].shape[2]
        both = self._stored[layer]
        for i, tensor in enumerate(new):
            if end > both[i].shape[2]:
                grown = self._room(tensor, end + GROWTH)
                grown[:, :, : self.length] = both[i][:, :, : self.length]
                both[i] = grown
            both[i][self.window, :, self.length : end] = tensor
        return both[0][self.window, :, :end], both[1][self.window, :, :end]

    def _room(self, like: Tensor, tokens: int) -> Tensor:
        _, heads, _, size = like.shape
        # zeros, since what is masked still is multiplied: by a weight of zero
        return like.new_zeros(len(self.padding), heads, tokens, size)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those of the indices `rows`."""
        self.padding = self.padding[rows]
        self.window = slice(0, len(rows))
        self._stored = [[t[rows] for t in both] for both in self._stored]

    def as_prefix(self) -> list[Pair]:
        """The first row, as the prefix of other rows."""
        return [(k[0, :, : self.length], v[0, :, : self.length]) for k, v in self._stored]

    def visible(self, new: int) -> Tensor:
        """(window rows, new tokens, length) which of a row's own tokens each new one may see."""
        end = self.length + new
        place = torch.arange(end, device=self.padding.device)
        past = place[None, :] <= place[self.length :, None]
        return past[None] & (place >= self.padding[self.window, None])[:, None]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    rows: Rows,
    mask: Tensor,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens (rows, heads, tokens, head size) to the prefix and their own row.

    One softmax over both parts. Scores and weights are of the model's type, the softmax of float32.
    """
    keys, values = rows.append(module.layer_idx, (key, value))
    n, heads, new, size = query.shape
    groups = key.shape[1]  # query heads of one kv head lie side by side
    per_group = heads // groups * new
    asked = (query * scaling).reshape(n, groups, per_group, size)
    scores = (asked @ keys.transpose(2, 3)).view(n, groups, -1, new, keys.shape[2])
    scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
    scores = scores.view(n, groups, per_group, -1)
    if not rows.prefix:
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        mixed = weights @ values
    else:
        before_keys, before_values = rows.prefix[module.layer_idx]
        together = asked.transpose(0, 1).reshape(groups, n * per_group, size)
        before = (together @ before_keys.transpose(1, 2)).view(groups, n, per_group, -1)
        both = torch.cat((before.transpose(0, 1), scores), dim=-1)
        weights = both.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        behind = before.shape[-1]
        to_before, to_own = weights[..., :behind], weights[..., behind:]
        together = to_before.transpose(0, 1).reshape(groups, n * per_group, -1)
        mixed = (together @ before_values).view(groups, n, per_group, size).transpose(0, 1)
        mixed = mixed + to_own @ values
    return mixed.reshape(n, heads, new, size).transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend)


def supports(model: Any) -> bool:
    """Whether `Decoder` computes what the model itself would: full attention, nothing added to it.

    Sliding windows, capped scores and adapters of virtual tokens need the model's own generation.
    """
    base = _base(model)
    config = base.config
    adapter = getattr(model, "active_peft_config", None)
    kinds = getattr(config, "layer_types", None)
    windows = set(kinds) - {"full_attention"} if kinds else getattr(config, "sliding_window", None)
    return (
        bool(base._can_set_attn_implementation())
        and not config.is_encoder_decoder
        and not windows
        and getattr(config, "attn_logit_softcapping", None) is None
        and not getattr(adapter, "is_prompt_learning", False)
        and "position_ids" in inspect.signature(base.forward).parameters
    )


def _base(model: Any) -> Any:
    """The transformers model inside a PEFT model: its layers carry the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(frozen=True)
class Continuation:
    """What `Decoder.generate` was asked for: the prompts' common prefix, and the rest of each."""

    prefix: Sequence[Pair]
    shared: int  # tokens of the prefix
    rest: Sequence[list[int]]
    max_new: Sequence[int]
    finished: Callable[[int, list[int]], None]
    stopped: Callable[[list[int]], bool] | None


class Decoder:
    """Greedy decoding of token lists by a causal language model in evaluation mode.

    Args:
        model: a transformers or PEFT model that `supports` is true of.
        eos_ids: tokens that end an answer.
        pad_id: what shorter rows are filled up with; it is never attended to.
        memory: bytes that a batch's keys, values and logits may take.
        most_rows: upper bound of rows of one batch.
    """

    def __init__(
        self, model: Any, *, eos_ids: Sequence[int], pad_id: int, memory: int, most_rows: int
    ) -> None:
        self.model = _base(model)
        self.config = self.model.config.get_text_config()
        self.eos_ids = frozenset(eos_ids)
        self.pad_id = pad_id
        self.memory = memory
        self.most_rows = most_rows
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
        with self._exchanged_attention():
            prefix, shared = self._prefix(prompts)
            rest = [list(p[shared:]) for p in prompts]
            task = Continuation(prefix, shared, rest, max_new, finished, stopped)
            for batch in self._batches(rest, max_new):
                self._split(batch, task)

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
            for batch in self._batches(rest, [0] * len(rest), every_logit=True):
                rows = self._rows(prefix, [rest[i] for i in batch])
                indices = iter(batch)
                for piece in self._read([rest[i] for i in batch], rows, shared, keep=0):
                    for logits, index in zip(piece, indices, strict=False):
                        first, *others = rest[index]
                        own = logits[-len(rest[index]) : -1]
                        finished(index, torch.cat((start(first), _nll(own, others))))

    def _prefix_losses(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[list[Pair], int, Callable[[int], Tensor]]:
        """The shared prefix, its length, and the losses of it and of the token that follows."""
        shared = _shared(prompts)
        if shared == 0:
            return [], 0, lambda _: torch.empty(0)
        first = list(prompts[0][:shared])
        rows = self._rows([], [first])
        (logits,) = next(self._read([first], rows, 0, keep=0))
        return rows.as_prefix(), shared, lambda token: _nll(logits, [*first[1:], token])

    def _prefix(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Pair], int]:
        shared = _shared(prompts)
        if shared == 0:
            return [], 0
        first = list(prompts[0][:shared])
        rows = self._rows([], [first])
        list(self._read([first], rows, 0))
        return rows.as_prefix(), shared

    def _rows(self, prefix: Sequence[Pair], prompts: Sequence[list[int]]) -> Rows:
        width = max(map(len, prompts))
        padding = torch.tensor([width - len(p) for p in prompts], device=self.device)
        return Rows(prefix, padding)

    def _batches(
        self, prompts: Sequence[list[int]], max_new: Sequence[int], every_logit: bool = False
    ) -> Iterator[list[int]]:
        """Indices of prompts, longest first: the first batch shows whether the memory is enough."""
        batch: list[int] = []
        for index in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            width = len(prompts[batch[0] if batch else index])
            longest = width + max(max_new[i] for i in [*batch, index])
            a_row = longest * self._token_bytes() + self._logit_bytes() * (
                width if every_logit else 1
            )
            if batch and (
                len(batch) + 1 > self.most_rows or (len(batch) + 1) * a_row > self.memory
            ):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _token_bytes(self) -> int:
        """Keys and values of one token of one row, twice where the place for them grows."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * self.model.dtype.itemsize)

    def _logit_bytes(self) -> int:
        """Logits of one token, in the model's type and as float32."""
        return int(self.config.vocab_size * (self.model.dtype.itemsize + 4))

    def _split(self, batch: list[int], task: Continuation) -> None:
        """Decode a batch; on a GPU that it does not fit, in halves."""
        try:
            self._decode(batch, task)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            self.most_rows = len(batch) // 2
            for half in (batch[: self.most_rows], batch[self.most_rows :]):
                self._split(half, task)

    def _decode(self, batch: list[int], task: Continuation) -> None:
        prompts = [task.rest[i] for i in batch]
        rows = self._rows(task.prefix, prompts)
        logits = torch.cat(list(self._read(prompts, rows, task.shared)))
        made: dict[int, list[int]] = {i: [] for i in batch}
        places = list(batch)  # the prompt of each row
        while made:
            for index, token in zip(places, logits[:, -1].argmax(dim=-1).tolist(), strict=True):
                if index not in made:
                    continue
                made[index].append(token)
                ended = token in self.eos_ids or len(made[index]) >= task.max_new[index]
                if ended or (task.stopped is not None and task.stopped(made[index])):
                    task.finished(index, made.pop(index))
            if not made:
                return
            if len(made) <= LEAVE_AT * len(places):
                left = [row for row, index in enumerate(places) if index in made]
                places = [places[row] for row in left]
                rows.keep(torch.tensor(left, device=self.device))
            last = [[made[i][-1] if i in made else self.pad_id] for i in places]
            logits = self._forward(
                torch.tensor(last, device=self.device), rows, task.shared, keep=1
            )

    def _read(
        self, prompts: Sequence[list[int]], rows: Rows, shared: int, keep: int = 1
    ) -> Iterator[Tensor]:
        """Run prompts, longest first, through the model in pieces, each padded to its own longest.

        Yields:
            Of the next few rows, logits of the last `keep` tokens (all for 0): (rows, keep,
            vocabulary).
        """
        width = len(prompts[0])
        begin = 0
        while begin < len(prompts):
            longest = len(prompts[begin])
            a_row = self.config.num_attention_heads * longest * (width + shared) * 4
            piece = prompts[begin : begin + max(1, SCORE_BYTES // a_row)]
            padded = [[self.pad_id] * (longest - len(p)) + p for p in piece]
            rows.window = slice(begin, begin + len(piece))
            rows.length = width - longest
            ids = torch.tensor(padded, device=self.device)
            yield self._forward(ids, rows, shared, keep)
            begin += len(piece)
        rows.window = slice(0, len(prompts))

    def _forward(self, ids: Tensor, rows: Rows, shared: int, keep: int) -> Tensor:
        new = ids.shape[1]
        places = torch.arange(rows.length, rows.length + new, device=self.device)
        own = (places[None] - rows.padding[rows.window, None]).clamp_min(0)
        logits: Tensor = self.model(
            input_ids=ids,
            position_ids=own + shared,
            use_cache=False,
            logits_to_keep=keep,
            rows=rows,
            mask=rows.visible(new),
        ).logits
        if rows.layers != self.config.num_hidden_layers:
            raise RuntimeError(
                f"{type(self.model).__name__} handed {rows.layers} of its "
                f"{self.config.num_hidden_layers} layers to the exchanged attention function"
            )
        rows.length += new
        return logits

    @contextlib.contextmanager
    def _exchanged_attention(self) -> Iterator[None]:
        before = self.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; at least one is left to each of them."""
    if len(prompts) < 2:
        return 0
    lists = [list(p) for p in prompts]
    first, last = min(lists), max(lists)  # in dictionary order: these two differ the earliest
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return min(same, min(map(len, prompts)) - 1)


def _nll(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    target = torch.tensor(tokens, device=logits.device, dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits.float(), target, reduction="none").cpu()
