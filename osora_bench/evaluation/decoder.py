"""Greedy decoding and scoring of many prompts at once, on any transformers model with rotary or
learned positions and an exchangeable attention function.

What all prompts begin with (the worked examples of a few-shot set, a system prompt) is computed
once and attended to by every row as one matrix product; rows are batched by length, their keys and
values grow in place, rows that are finished leave the batch and others take their places.
"""

import contextlib
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from osora_bench.common.errors import UserError
from osora_bench.evaluation.shared_prefix import ATTENTION, Pair, Rows
from osora_bench.models.base import inside


class NoNumbers(UserError):
    """A model computes NaN or infinite numbers: whatever is picked by them is no answer."""


LEAVE_AT = 0.8
"""Rows change when at most this share of them is still unfinished: that copies those that stay."""
SCORE_BYTES = {"cpu": 2**24, "cuda": 2**29}
"""Attention scores of one layer while prompts are read: on a CPU they should stay in the cache."""
PIECE = {"cpu": 256, "cuda": 4096}
"""Tokens from which on a piece of prompts is large enough that padding costs more than one more."""
FILLED = 0.9
"""Share of a large enough piece's longest prompt that its shortest has at least."""

KINDS = {"full_attention", "sliding_attention"}
TRIAL = [[5, 3, 9, 2, 7, 4, 8, 6, 1, 5, 4, 9], [5, 3, 9, 2, 4, 8, 1]]
"""Made-up texts (a shared prefix, rows of two lengths), in tenths of the vocabulary, whose
first tokens are marks: their activations can be so large that bfloat16 rounds the rest away."""


def supports(model: Any) -> bool:
    """Whether `Decoder` computes what the model, in evaluation mode, itself would.

    What the configuration tells is asked first: a layer that reaches over its tokens in another
    way, positions whose frequencies depend on how long the longest row is, or an adapter of virtual
    tokens or one that looks for a token (aLoRA). Else both ways are tried on two short texts.
    """
    base = inside(model)
    config = base.config.get_text_config()
    adapter = getattr(model, "active_peft_config", None)
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = {str(r.get("rope_type")) for r in (rope, *rope.values()) if isinstance(r, dict)}
    return (
        bool(base._can_set_attn_implementation())
        and not config.is_encoder_decoder
        and set(getattr(config, "layer_types", None) or ()) <= KINDS
        and not ropes & {"dynamic", "longrope"}
        and not getattr(adapter, "is_prompt_learning", False)
        and not getattr(adapter, "alora_invocation_tokens", None)
        and "position_ids" in inspect.signature(base.forward).parameters
        and _agrees(model)
    )


@torch.inference_mode()
def _agrees(model: Any) -> bool:
    """Whether the losses of two short texts are those of the model's own forward pass."""
    decoder = Decoder(model, eos_ids=(), pad_id=0, memory=1 << 40, most_rows=len(TRIAL))
    texts = _trial(model)
    found: dict[int, Tensor] = {}
    try:
        decoder.losses(texts, found.__setitem__)
        expected = trial_losses(model)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model's code makes of arguments that it does not expect
        return False
    return alike(torch.cat([found[i] for i in range(len(texts))]), expected, model)


def _trial(model: Any) -> list[list[int]]:
    size = inside(model).config.get_text_config().vocab_size
    return [[tenths * size // 10 for tenths in text] for text in TRIAL]


def trial_losses(model: Any) -> Tensor:
    """The losses of two made-up texts by the model's own forward pass."""
    return torch.cat([plain_losses(model, text) for text in _trial(model)])


def alike(ours: Tensor, own: Tensor, model: Any) -> bool:
    """Whether losses are the same but for round-off in the model's type."""
    round_off = 1e-3 if torch.finfo(inside(model).dtype).bits >= 32 else 3e-2
    return bool((ours - own).abs().mean() < round_off * own.abs().mean())


@torch.inference_mode()
def plain_losses(model: Any, tokens: Sequence[int]) -> Tensor:
    """As `Decoder.losses` of one text, by the model's own forward pass: (tokens - 1,)."""
    ids = torch.tensor([list(tokens)], device=next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return _nll(logits[-len(tokens) : -1], tokens[1:])  # virtual tokens come first


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
    """Rows while they are continued: the prompt of each, and what was made for the unfinished."""

    rows: Rows
    places: list[int] = field(default_factory=list)
    made: dict[int, list[int]] = field(default_factory=dict)
    met: Tensor | None = None  # (rows, vocabulary) which tokens a row holds, if that counts

    def change(self, entering: Sequence[int], task: Continuation) -> None:
        """Finished rows out, new ones in, behind those that stay."""
        stay = [row for row, index in enumerate(self.places) if index in self.made]
        self.rows.change(stay, [len(task.rest[i]) for i in entering])
        self.places = [self.places[row] for row in stay] + list(entering)
        self.made |= {index: [] for index in entering}
        if self.met is not None:
            new = self.met.new_zeros(len(entering), self.met.shape[1])
            for row, index in enumerate(entering):
                new[row, list(task.prompts[index])] = True
            self.met = torch.cat((self.met[stay], new))


class Decoder:
    """Greedy decoding of token lists by a causal language model in evaluation mode.

    Args:
        model: a transformers or PEFT model that `supports` is true of.
        eos_ids: tokens that end an answer.
        pad_id: what shorter rows are filled up with; it is never attended to.
        memory: bytes that a batch's keys, values and logits may take.
        most_rows: upper bound of rows of one batch.
        penalty: logits of tokens that a row holds already are divided by it where they are
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
        left = dict.fromkeys(self._longest_first(prompts))

        def finish(index: int, tokens: list[int]) -> None:
            del left[index]
            finished(index, tokens)

        with self._exchanged_attention():
            prefix, shared = self._prefix(prompts)
            rest = [list(p[shared:]) for p in prompts]
            task = Continuation(prompts, prefix, rest, max_new, finish, stopped)
            while left:
                batch = Batch(Rows(prefix, self.device))
                try:
                    self._decode(deque(left), batch, task)
                except torch.OutOfMemoryError:  # on a GPU that so many rows do not fit
                    if len(batch.places) <= 1:
                        raise
                    self.most_rows = len(batch.places) // 2
                del batch
                if left:  # only now, without the exception, is its memory free
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
            waiting = deque(self._longest_first(rest))
            while waiting:
                batch = self._entering(waiting, [], lambda i: len(rest[i]), every_logit=True)
                rows = Rows(prefix, self.device)
                rows.change([], [len(rest[i]) for i in batch])
                indices = iter(batch)
                for piece in self._read([rest[i] for i in batch], rows, keep=0):
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
        rows = Rows([], self.device)
        rows.change([], [shared])
        (logits,) = next(self._read([first], rows, keep=0))
        return rows.as_prefix(), shared, lambda token: _nll(logits, [*first[1:], token])

    def _prefix(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Pair], int]:
        shared = _shared(prompts)
        if shared == 0:
            return [], 0
        rows = Rows([], self.device)
        rows.change([], [shared])
        list(self._read([list(prompts[0][:shared])], rows))
        return rows.as_prefix(), shared

    @staticmethod
    def _longest_first(prompts: Sequence[Sequence[int]]) -> list[int]:
        """Indices: the first batch shows whether the memory is enough, and rows that enter later
        find place behind the padding of those before them."""
        return sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))

    def _entering(
        self,
        waiting: deque[int],
        present: Sequence[int],
        longest: Callable[[int], int],
        every_logit: bool = False,
    ) -> list[int]:
        """Take out of `waiting` what may join the rows that are `present`; at least one if none is.

        Args:
            longest: tokens that a prompt's row may come to hold.
        """
        most = max(map(longest, present), default=0)
        entering: list[int] = []
        while waiting:
            count = len(present) + len(entering) + 1
            most = max(most, longest(waiting[0]))
            logits = self._logit_bytes() * (most if every_logit else 1)
            fits = count * (most * self._token_bytes() + logits) <= self.memory
            if count > 1 and (count > self.most_rows or not fits):
                break
            entering.append(waiting.popleft())
        return entering

    def _token_bytes(self) -> int:
        """Keys and values of one token of one row."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * self.model.dtype.itemsize)

    def _logit_bytes(self) -> int:
        """Logits of one token, in the model's type and as float32."""
        return int(self.config.vocab_size * (self.model.dtype.itemsize + 4))

    def _decode(self, waiting: deque[int], batch: Batch, task: Continuation) -> None:
        """Continue what is waiting, as much at a time as there is place for."""
        if self.penalty != 1:
            batch.met = torch.zeros(0, self.config.vocab_size, dtype=torch.bool, device=self.device)
        while waiting or batch.made:
            if len(batch.made) <= LEAVE_AT * len(batch.places):
                entering = self._entering(waiting, list(batch.made), task.longest)
                batch.change(entering, task)
                first = len(batch.places) - len(entering)
                if entering:
                    read = self._read([task.rest[i] for i in entering], batch.rows, first)
                    self._take(torch.cat(list(read)), first, batch, task)
            if batch.made:
                last = [[(batch.made.get(i) or [self.pad_id])[-1]] for i in batch.places]
                batch.rows.window = slice(0, len(last))
                batch.rows.begin = 0
                ids = torch.tensor(last, device=self.device)
                self._take(self._forward(ids, batch.rows, keep=1), 0, batch, task)

    def _take(self, logits: Tensor, first: int, batch: Batch, task: Continuation) -> None:
        """Give each row from the `first` on its next token, and tell of those that are finished."""
        scores = logits[:, -1]
        if batch.met is not None:
            met, scores = batch.met[first:], scores.float()
            scores = torch.where(met & (scores > 0), scores / self.penalty, scores)
            scores = torch.where(met & (scores < 0), scores * self.penalty, scores)
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
        self, prompts: Sequence[list[int]], rows: Rows, first: int = 0, keep: int = 1
    ) -> Iterator[Tensor]:
        """Run the rows from the `first` on, longest first, through the model, in pieces that are
        each padded to their own longest.

        Yields:
            Of the next few rows, logits of the last `keep` tokens (all for 0): (rows, keep,
            vocabulary).
        """
        end = rows.length
        for piece in self._pieces(prompts, rows.shared):
            longest = len(piece[0])
            padded = [[self.pad_id] * (longest - len(p)) + p for p in piece]
            rows.window = slice(first, first + len(piece))
            rows.begin = rows.length = end - longest
            yield self._forward(torch.tensor(padded, device=self.device), rows, keep)
            first += len(piece)

    def _pieces(self, prompts: Sequence[list[int]], shared: int) -> Iterator[list[list[int]]]:
        """Neighbours of like length, few enough for their attention scores."""
        device, piece = self.device.type, list[list[int]]()
        for prompt in prompts:
            longest = len(piece[0]) if piece else len(prompt)
            a_row = self.config.num_attention_heads * longest * (longest + shared) * 4
            large = len(piece) * longest >= PIECE[device] and len(prompt) < FILLED * longest
            if piece and (large or (len(piece) + 1) * a_row > SCORE_BYTES[device]):
                yield piece
                piece = []
            piece.append(prompt)
        if piece:
            yield piece

    def _forward(self, ids: Tensor, rows: Rows, keep: int) -> Tensor:
        new = ids.shape[1]
        places = torch.arange(rows.length, rows.length + new, device=self.device)
        own = (places[None] - rows.padding[rows.window, None]).clamp_min(0)
        logits: Tensor = self.model(
            input_ids=ids,
            position_ids=own + rows.shared,
            use_cache=False,
            logits_to_keep=keep,
            rows=rows,
            mask=rows.visible(new),
        ).logits
        if (rows.layers, len(rows.windowed)) != (self.layers, self.windowed):
            raise RuntimeError(
                f"{type(self.model).__name__} handed {rows.layers} of its {self.layers} layers to "
                f"the exchanged attention function, {len(rows.windowed)} with a window of "
                f"{self.windowed}"
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
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return min(same, min(map(len, prompts)) - 1)


def need_numbers(values: Tensor) -> None:
    """Raises NoNumbers if the likeliest tokens' logits, or losses, are no finite numbers."""
    if not bool(values.isfinite().all()):
        raise NoNumbers("the model computes NaN or infinite numbers; it cannot be scored")


def _nll(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    target = torch.tensor(tokens, device=logits.device, dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits.float(), target, reduction="none").cpu()
