"""The losses of many texts at once, where what several begin with is read once.

What all texts begin with is attended to as one matrix product. What the texts of one question
begin with has a row of a batch to itself, with their different ends behind it (token_trees.py).
Logits are made of the tokens alone that others follow, and of each once.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from osora_bench.evaluation.batched_model import BatchedModel
from osora_bench.evaluation.shared_prefix import Pair
from osora_bench.evaluation.token_trees import Tree, TreeRows, grow

LOGIT_BYTES = {"cpu": 2**27, "cuda": 2**30}
"""Logits, in the model's type and as float32, of the texts that are read at once."""
SOFTMAX_BYTES = {"cpu": 2**21, "cuda": 2**28}
"""Logits in float32 that a softmax goes over at once: what a core's own cache holds."""


class Scorer(BatchedModel):
    """-log p of the tokens of texts, by a causal language model in evaluation mode."""

    @torch.inference_mode()
    def losses(
        self, texts: Sequence[Sequence[int]], finished: Callable[[int, Tensor], None]
    ) -> None:
        """-log p of each token of each text but its first, given those before it.

        Args:
            finished: called with a text's index and its losses (tokens - 1,) in float32 on the CPU,
                as soon as they are known.
        """
        with self._exchanged_attention():
            prefix, shared, logits = self._prefix(texts, keep=0)
            start = _no_losses if logits is None else _first_losses(texts[0][:shared], logits)
            # a token's products are in the square of the model's width, a pair's attention in it
            trees = grow([text[shared:] for text in texts], worth=self.config.hidden_size)
            for batch in self._pieces(trees, shared, self._most):
                of_tokens = self._tree_losses(batch, prefix)
                for losses, tree in zip(of_tokens, batch, strict=True):
                    for index, path in tree.paths.items():
                        first = start(tree.tokens[path[0]])
                        finished(index, torch.cat((first, losses[path[1:]])))

    def _most(self, length: int) -> float:
        """Rows of that many tokens each whose logits there is room for."""
        room = min(LOGIT_BYTES[self.device.type], self.memory)
        return min(self.most_rows, room // (length * self._logit_bytes()))

    def _tree_losses(self, trees: Sequence[Tree], prefix: Sequence[Pair]) -> Tensor:
        """-log p of each token of each tree given those above it: (trees, tokens). Zero for a
        tree's first tokens."""
        rows = TreeRows(trees, prefix, self.device)
        ids = torch.full(rows.positions.shape, self.pad_id)
        longest = ids.shape[1]
        children, parents = list[int](), list[int]()  # places among the tokens of all rows
        for row, tree in enumerate(trees):
            ids[row, : len(tree)] = torch.tensor(tree.tokens)
            for place, parent in enumerate(tree.parents):
                if parent >= 0:
                    children.append(row * longest + place)
                    parents.append(row * longest + parent)
        losses = torch.zeros(ids.shape)
        if children:
            asked, which = torch.unique(torch.tensor(parents), return_inverse=True)
            with self._logits_only_of(asked.to(self.device)):
                logits = self._run(ids.to(self.device), rows.positions, rows, rows.visible(longest))
            if logits.shape[:2] != (1, len(asked)):
                raise RuntimeError(f"{type(self.model).__name__} makes other logits than asked for")
            losses.view(-1)[children] = _losses_at(logits[0], which, ids.view(-1)[children])
        return losses

    @contextlib.contextmanager
    def _logits_only_of(self, places: Tensor) -> Iterator[None]:
        """Have the output layer see the hidden states of these tokens only, counted through all
        rows: logits are (1, places, vocabulary), and one product."""

        def chosen(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, *others = inputs
            return hidden.flatten(0, 1)[places][None], *others

        hook = self.model.get_output_embeddings().register_forward_pre_hook(chosen)
        try:
            yield
        finally:
            hook.remove()


def _no_losses(_: int) -> Tensor:
    """Without a prefix, a first token has no loss."""
    return torch.empty(0)


def _first_losses(prefix: Sequence[int], logits: Tensor) -> Callable[[int], Tensor]:
    """The losses of a prefix but its first token, with that of a token that follows it."""
    rows = torch.arange(len(prefix) - 1)
    within = _losses_at(logits, rows, torch.tensor(prefix[1:], dtype=torch.long))
    following = -logits[-1].float().log_softmax(-1).cpu()
    return lambda token: torch.cat((within, following[[token]]))


def _losses_at(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """-log softmax of rows of `logits` (tokens, vocabulary), each at one token: (rows,), in float32
    on the CPU."""
    size = max(1, SOFTMAX_BYTES[logits.device.type] // (4 * logits.shape[1]))
    sums = torch.cat([part.float().logsumexp(-1) for part in torch.split(logits, size)])
    rows, tokens = rows.to(logits.device), tokens.to(logits.device)
    return (sums[rows] - logits[rows, tokens].float()).cpu()
