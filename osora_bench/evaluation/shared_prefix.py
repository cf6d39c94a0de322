"""Keys and values of a batch of sequences behind a prefix that all of them share, and the attention
that a transformers model pays to both in place of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

ATTENTION = "osora_bench_shared_prefix"
"""The name of `attend` among transformers' attention functions."""
GROWTH = 64
"""Tokens by which the place for keys and values grows: each growth copies all of them."""

Pair = tuple[Tensor, Tensor]  # keys, values


class KVCache:
    """Keys and values of a batch of sequences behind a prefix that all of them share.

    Sequences are padded on the left: they end at the same place, whenever they began.

    Args:
        prefix: of each layer, keys and values (kv heads, prefix tokens, head size); or empty.
    """

    def __init__(self, prefix: Sequence[Pair], device: torch.device) -> None:
        self.prefix = prefix
        self.shared = prefix[0][0].shape[1] if prefix else 0
        self.padding = torch.empty(0, dtype=torch.long, device=device)
        self.window = slice(0, 0)  # the sequences that the model is now given ...
        self.begin = 0  # ... and the place before which all of them have padding
        self.length = 0  # places that are filled
        self.windowed: set[int] = set()  # layers that see the last tokens only
        self._pairs: list[list[Tensor]] = []

    @property
    def layers(self) -> int:
        """How many layers have stored something."""
        return len(self._pairs)

    def change(self, stay: Sequence[int], lengths: Sequence[int]) -> None:
        """Drop all sequences but those of the indices `stay`; add some of so many tokens to come.

        What is added must be no longer than what stays. Places that only padding is left in go.
        """
        if not stay:
            self.length = max(lengths)
            self._pairs = []  # made anew by `append`
        padding = self.padding.new_tensor([self.length - n for n in lengths])
        padding = torch.cat((self.padding[list(stay)], padding))
        drop = int(padding.min())
        for pair in self._pairs:
            for i, tensor in enumerate(pair):
                kept = tensor[list(stay), :, drop : self.length]
                pair[i] = self._room(len(padding), kept, self.length - drop + GROWTH)
        self.padding = padding - drop
        self.length -= drop

    def append(self, layer: int, new: Pair) -> Pair:
        """Store (window sequences, kv heads, new tokens, head size); return all that is stored."""
        end = self.length + new[0].shape[2]
        if layer == len(self._pairs):
            empty = [t[:0, :, :0] for t in new]
            self._pairs.append([self._room(len(self.padding), t, end + GROWTH) for t in empty])
        pair = self._pairs[layer]
        for i, tensor in enumerate(new):
            if end > pair[i].shape[2]:
                pair[i] = self._room(len(self.padding), pair[i], end + GROWTH)
            pair[i][self.window, :, self.length : end] = tensor
        keys, values = (t[self.window, :, self.begin : end] for t in pair)
        return keys, values

    @staticmethod
    def _room(count: int, old: Tensor, tokens: int) -> Tensor:
        """Place for `tokens` of each of `count` sequences, those of `old` first."""
        _, heads, _, size = old.shape
        # zeros, since what is masked still is multiplied: by a weight of zero
        room = old.new_zeros(count, heads, tokens, size)
        room[: old.shape[0], :, : old.shape[2]] = old
        return room

    def as_prefix(self) -> list[Pair]:
        """The first sequence, as the prefix of other sequences."""
        return [(k[0, :, : self.length], v[0, :, : self.length]) for k, v in self._pairs]

    def visible(self, new: int, reach: int | None = None) -> Tensor:
        """(window sequences, new tokens, places) which of a sequence's own tokens each new one may
        see: all until itself, or the last `reach` of them."""
        places = torch.arange(self.begin, self.length + new, device=self.padding.device)
        last = places[-new:, None]
        mask = places <= last if reach is None else (places <= last) & (places > last - reach)
        return mask[None] & (places >= self.padding[self.window, None])[:, None]

    def prefix_visible(self, new: int, reach: int) -> Tensor:
        """(window sequences, new tokens, prefix tokens) which of the prefix are among the last
        `reach` tokens of each new one."""
        device = self.padding.device
        places = torch.arange(self.length, self.length + new, device=device)
        positions = places - self.padding[self.window, None] + self.shared
        return torch.arange(self.shared, device=device) > positions[:, :, None] - reach


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    kv_cache: KVCache,
    mask: Tensor,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens (sequences, heads, tokens, head size) to the prefix and their own.

    One softmax over both parts. Scores and weights are of the model's type, the softmax of float32.
    What else a model may want of its attention, `supports` finds out by trying.
    """
    n, heads, new, size = query.shape
    reach = None
    if sliding_window is not None:
        kv_cache.windowed.add(module.layer_idx)
        if kv_cache.shared + kv_cache.length + new > sliding_window:
            reach, mask = sliding_window, kv_cache.visible(new, sliding_window)
    keys, values = kv_cache.append(module.layer_idx, (key, value))
    groups = key.shape[1]  # query heads of one kv head lie side by side
    scaled_query = (query * scaling).reshape(n, groups, -1, size)
    scores = _hidden(_capped(scaled_query @ keys.transpose(2, 3), softcap), mask)
    if not kv_cache.prefix:
        output = _softmax(scores, query.dtype) @ values
    else:
        prefix_keys, prefix_values = kv_cache.prefix[module.layer_idx]
        prefix_scores = _capped(_times_shared(scaled_query, prefix_keys.transpose(1, 2)), softcap)
        if reach is not None:
            prefix_scores = _hidden(prefix_scores, kv_cache.prefix_visible(new, reach))
        output = _mixed(prefix_scores, scores, prefix_values, values, query.dtype)
    return output.reshape(n, heads, new, size).transpose(1, 2), None


def _softmax(scores: Tensor, dtype: torch.dtype) -> Tensor:
    return scores.softmax(dim=-1, dtype=torch.float32).to(dtype)


def _mixed(
    prefix_scores: Tensor, scores: Tensor, prefix_values: Tensor, values: Tensor, dtype: torch.dtype
) -> Tensor:
    """The values of both parts, weighted by one softmax over the scores of both."""
    weights = _softmax(torch.cat((prefix_scores, scores), dim=-1), dtype)
    count = prefix_scores.shape[-1]
    return _times_shared(weights[..., :count], prefix_values) + weights[..., count:] @ values


def _times_shared(left: Tensor, right: Tensor) -> Tensor:
    """(sequences, groups, m, a) times the (groups, a, b) that all share: one product a group."""
    n, groups, m, size = left.shape
    flat = left.transpose(0, 1).reshape(groups, n * m, size)
    return (flat @ right).view(groups, n, m, -1).transpose(0, 1)


def _hidden(scores: Tensor, visible: Tensor) -> Tensor:
    """Scores (sequences, groups, heads x new tokens, places) of what is not `visible`
    (sequences, new tokens, places) as low as can be."""
    n, new, places = visible.shape
    by_token = scores.reshape(n, scores.shape[1], -1, new, places)
    by_token = by_token.masked_fill(~visible[:, None, None], torch.finfo(scores.dtype).min)
    return by_token.view(scores.shape)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


AttentionInterface.register(ATTENTION, attend)
