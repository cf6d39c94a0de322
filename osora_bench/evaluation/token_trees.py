"""Texts that begin alike as trees of tokens: what they share is read once.

The answers to a question continue its text. Their tree is one row of a batch: its tokens in
depth-first order, of which each sees those above it and itself. So every token of a text sees what
it would see in the text alone, at the same position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from osora_bench.evaluation.shared_prefix import Pair


@dataclass
class Tree:
    """Texts that begin alike, without the prefix that all texts share."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)  # -1: the prefix
    paths: dict[int, list[int]] = field(default_factory=dict)  # a text's index: its tokens' places

    def __len__(self) -> int:
        """How many tokens are to be read."""
        return len(self.tokens)

    def add(self, index: int, text: Sequence[int], alike: int) -> None:
        """Have a text branch off behind the first `alike` tokens of the one added last."""
        last = next(reversed(self.paths.values()), [])
        path = last[:alike]
        for token in text[alike:]:
            self.parents.append(path[-1] if path else -1)
            self.depths.append(len(path))
            path.append(len(self.tokens))
            self.tokens.append(token)
        self.paths[index] = path

    def ancestors(self) -> Tensor:
        """(tokens, tokens) whether a token sees another: itself and those above it."""
        seen = torch.eye(len(self), dtype=torch.bool)
        rows = seen.numpy()  # the same memory; assigning to its rows is quicker
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                rows[place] |= rows[parent]
        return seen


def grow(texts: Sequence[Sequence[int]], worth: int) -> list[Tree]:
    """The trees of all texts (of at least one token each), largest first.

    A text joins those before it in dictionary order if the tokens that it need not read again are
    worth more than the pairs of tokens that its row has in addition, whether they see each other
    or not.

    Args:
        worth: pairs of tokens whose attention costs about as much as to read a token.
    """
    trees: list[Tree] = []
    last: Sequence[int] = ()
    for index in sorted(range(len(texts)), key=lambda i: list(texts[i])):
        text = texts[index]
        alike = _alike(last, text)
        if alike:
            size = len(trees[-1])
            pairs = (size + len(text) - alike) ** 2 - size**2 - len(text) ** 2
        if not alike or alike * worth < pairs:
            trees.append(Tree())
            alike = 0
        trees[-1].add(index, text, alike)
        last = text
    return sorted(trees, key=lambda tree: -len(tree))


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


class TreeRows:
    """A batch of trees behind their shared prefix, as `attend` sees it: in place of a `KVCache`,
    since everything is read at once and nothing need be kept.

    Trees are padded on the right, by tokens that see themselves only.

    Args:
        prefix: of each layer, keys and values (kv heads, prefix tokens, head size); or empty.
    """

    length = 0  # tokens read before, the prefix not counted

    def __init__(self, trees: Sequence[Tree], prefix: Sequence[Pair], device: torch.device) -> None:
        self.prefix = prefix
        self.shared = prefix[0][0].shape[1] if prefix else 0
        self.windowed: set[int] = set()  # layers that see the last tokens only
        self.layers = 0  # that have been computed
        longest = max(map(len, trees))
        depths = torch.zeros(len(trees), longest, dtype=torch.long)
        seen = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)
        for row, tree in enumerate(trees):
            depths[row, : len(tree)] = torch.tensor(tree.depths)
            seen[row, : len(tree), : len(tree)] = tree.ancestors()
        self._seen = seen.to(device)
        self.positions = (depths + self.shared).to(device)

    def append(self, layer: int, new: Pair) -> Pair:
        """All keys and values of a layer (trees, kv heads, tokens, head size): those just made."""
        del layer
        self.layers += 1
        return new

    def visible(self, new: int, reach: int | None = None) -> Tensor:
        """(trees, tokens, tokens) which tokens each one may see: all above it and itself, or the
        last `reach` of them."""
        del new
        if reach is None:
            return self._seen
        return self._seen & (self.positions[:, None] > self.positions[:, :, None] - reach)

    def prefix_visible(self, new: int, reach: int) -> Tensor:
        """(trees, tokens, prefix tokens) which of the prefix are among the last `reach` tokens of
        each one."""
        del new
        places = torch.arange(self.shared, device=self.positions.device)
        return places > self.positions[:, :, None] - reach
