"""Keys and values of a batch of rows behind a prefix that all of them share, and the attention that
a transformers model pays to both in place of its own."""

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


class Rows:
    """Keys and values of a batch of rows behind a prefix that all rows share.

    Rows are padded on the left: they end at the same place, whenever they began.

    Args:
        prefix: of each layer, keys and values (kv heads, prefix tokens, head size); or empty.
    """

    def __init__(self, prefix: Sequence[Pair], device: torch.device) -> None:
        self.prefix = prefix
        self.shared = prefix[0][0].shape[1] if prefix else 0
        self.padding = torch.empty(0, dtype=torch.long, device=device)
        self.window = slice(0, 0)  # the rows that the model is now given ...
        self.begin = 0  # ... and the place before which all of them have padding
        self.length = 0  # places that are filled
        self.windowed: set[int] = set()  # layers that see the last tokens only
        self._stored: list[list[Tensor]] = []

    @property
    def layers(self) -> int:
        """How many layers have stored something."""
        return len(self._stored)

    def change(self, stay: Sequence[int], lengths: Sequence[int]) -> None:
        """Drop all rows but those of the indices `stay`; add rows of so many tokens to come.

        What is added must be no longer than what stays. Places that only padding is left in go.
        """
        if not stay:
            self.length = max(lengths)
            self._stored = []  # made anew by `append`
        padding = self.padding.new_tensor([self.length - n for n in lengths])
        padding = torch.cat((self.padding[list(stay)], padding))
        drop = int(padding.min())
        for both in self._stored:
            for i, tensor in enumerate(both):
                kept = tensor[list(stay), :, drop : self.length]
                both[i] = self._room(len(padding), kept, self.length - drop + GROWTH)
        self.padding = padding - drop
        self.length -= drop

    def append(self, layer: int, new: Pair) -> Pair:
        """Store what (window rows, kv heads, new tokens, head size) holds; return all of it."""
        end = self.length + new[0].shape[2]
        if layer == len(self._stored):
            empty = [t[:0, :, :0] for t in new]
            self._stored.append([self._room(len(self.padding), t, end + GROWTH) for t in empty])
        both = self._stored[layer]
        for i, tensor in enumerate(new):
            if end > both[i].shape[2]:
                both[i] = self._room(len(self.padding), both[i], end + GROWTH)
            both[i][self.window, :, self.length : end] = tensor
        keys, values = (t[self.window, :, self.begin : end] for t in both)
        return keys, values

    @staticmethod
    def _room(rows: int, old: Tensor, tokens: int) -> Tensor:
        """Place for `tokens` of each of `rows`, those of `old` first."""
        _, heads, _, size = old.shape
        # zeros, since what is masked still is multiplied: by a weight of zero
        made = old.new_zeros(rows, heads, tokens, size)
        made[: old.shape[0], :, : old.shape[2]] = old
        return made

    def as_prefix(self) -> list[Pair]:
        """The first row, as the prefix of other rows."""
        return [(k[0, :, : self.length], v[0, :, : self.length]) for k, v in self._stored]

    def visible(self, new: int, reach: int | None = None) -> Tensor:
        """(window rows, new tokens, places) which of a row's own tokens each new one may see: all
        until itself, or the last `reach` of them."""
        place = torch.arange(self.begin, self.length + new, device=self.padding.device)
        at = place[-new:, None]
        seen = place <= at if reach is None else (place <= at) & (place > at - reach)
        return seen[None] & (place >= self.padding[self.window, None])[:, None]

    def prefix_visible(self, new: int, reach: int) -> Tensor:
        """(window rows, new tokens, prefix tokens) which of the prefix are among the last `reach`
        tokens of each new one."""
        device = self.padding.device
        place = torch.arange(self.length, self.length + new, device=device)
        own = place - self.padding[self.window, None] + self.shared
        return torch.arange(self.shared, device=device) > own[:, :, None] - reach


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
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens (rows, heads, tokens, head size) to the prefix and their own row.

    One softmax over both parts. Scores and weights are of the model's type, the softmax of float32.
    What else a model may want of its attention, `supports` finds out by trying.
    """
    n, heads, new, size = query.shape
    reach = None
    if sliding_window is not None:
        rows.windowed.add(module.layer_idx)
        if rows.shared + rows.length + new > sliding_window:
            reach, mask = sliding_window, rows.visible(new, sliding_window)
    keys, values = rows.append(module.layer_idx, (key, value))
    groups = key.shape[1]  # query heads of one kv head lie side by side
    asked = (query * scaling).reshape(n, groups, -1, size)
    scores = _hidden(_capped(asked @ keys.transpose(2, 3), softcap), mask)
    if not rows.prefix:
        mixed = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ values
    else:
        before_keys, before_values = rows.prefix[module.layer_idx]
        before = _capped(_for_all_rows(asked, before_keys.transpose(1, 2)), softcap)
        if reach is not None:
            before = _hidden(before, rows.prefix_visible(new, reach))
        weights = torch.cat((before, scores), dim=-1)
        weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        mixed = _for_all_rows(weights[..., : rows.shared], before_values)
        mixed = mixed + weights[..., rows.shared :] @ values
    return mixed.reshape(n, heads, new, size).transpose(1, 2), None


def _for_all_rows(left: Tensor, right: Tensor) -> Tensor:
    """(rows, groups, m, a) times the (groups, a, b) that all rows share: one product a group."""
    n, groups, m, size = left.shape
    together = left.transpose(0, 1).reshape(groups, n * m, size)
    return (together @ right).view(groups, n, m, -1).transpose(0, 1)


def _hidden(scores: Tensor, seen: Tensor) -> Tensor:
    """Scores (rows, groups, heads x new tokens, places) of what is not `seen` (rows, new tokens,
    places) as low as can be."""
    n, new, places = seen.shape
    by_token = scores.reshape(n, scores.shape[1], -1, new, places)
    by_token = by_token.masked_fill(~seen[:, None, None], torch.finfo(scores.dtype).min)
    return by_token.view(scores.shape)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


AttentionInterface.register(ATTENTION, attend)
