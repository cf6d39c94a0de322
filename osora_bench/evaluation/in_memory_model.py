"""The model object that OpenCompass's tasks are handed: a transformers model in memory.

OpenCompass's own Hugging Face wrappers call a tokenizer method that transformers 5 no longer has.
This class keeps their behaviour (chat template, greedy decoding, where an answer ends, how a
perplexity is normed) and differs in how the work is done: see decoder.py.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from opencompass.models.base import BaseModel, LMTemplateParser
from opencompass.models.base_api import APITemplateParser
from transformers import LogitsProcessor, LogitsProcessorList

from osora_bench.common import progress
from osora_bench.evaluation.batched_model import need_numbers
from osora_bench.evaluation.decoder import Decoder
from osora_bench.evaluation.decoder_support import supports
from osora_bench.evaluation.journal import Journal
from osora_bench.evaluation.scorer import Scorer
from osora_bench.models import memory
from osora_bench.models.context import UNBOUNDED, context_of
from osora_bench.models.dialogue import prompt_ids, turn_end
from osora_bench.models.trial import plain_losses

CHAT_ROUND = {
    "round": [
        {"role": "HUMAN", "api_role": "HUMAN"},
        {"role": "SYSTEM", "api_role": "HUMAN"},
        {"role": "BOT", "api_role": "BOT", "generate": True},
    ]
}
"""How OpenCompass renders a prompt for a chat model: a list of turns."""
ROLES = {"HUMAN": "user", "SYSTEM": "system", "BOT": "assistant"}
NEUTRAL = {
    "num_beams": 1, "guidance_scale": 1, "min_length": 0, "min_new_tokens": 0,
    "no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None, "bad_words_ids": None,
    "sequence_bias": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "watermarking_config": None,
}  # fmt: skip
"""What a model's generation_config.json may hold that changes greedy answers, beside
`repetition_penalty`, with the value at which it does not."""
Finished = Callable[[int, list[int]], None]
Asked = tuple[str, int]  # a text, and how many of its first tokens do not count


class InMemoryModel(BaseModel):
    """A causal language model with its tokenizer, as OpenCompass sees a model.

    Args:
        model: a transformers or PEFT model, in evaluation mode.
        chat: whether prompts are dialogues for the tokenizer's chat template, or plain text.
        label: names the cell in the progress bar.
        journal: where answers are kept as they come; None keeps none.
        batch_size: most rows of a batch; None: as many as the memory holds.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        chat: bool,
        label: str,
        journal: Journal | None = None,
        batch_size: int | None = None,
    ) -> None:
        adapter = getattr(model, "active_peft_config", None)
        virtual = getattr(adapter, "num_virtual_tokens", None) or 0
        whole = context_of(model.config, label)
        context = whole if whole == UNBOUNDED else whole - virtual
        super().__init__(path=label, max_seq_len=context)
        self.model = model
        self.tokenizer = tokenizer
        self.label = label
        self.journal = journal
        self.batch_size = batch_size
        self.dialogues = chat
        self.asking = ""  # names the set in the progress bar
        self.too_long: set[int] = set()  # places of the set's questions that do not fit
        self.cut: set[int] = set()  # and of those with an answer that ended at its length limit
        self.ahead: dict[Asked, float] = {}  # perplexities known before they are asked for
        self._asked: list[Asked] | None = None  # those that a dry run asks for
        self.eos_ids = _eos_ids(model, tokenizer, chat)
        self.end_texts = [text for text in map(tokenizer.decode, self.eos_ids) if text]
        self.penalty = float(model.generation_config.repetition_penalty or 1)

    @cached_property
    def batched(self) -> bool:
        """Whether decoder.py answers; what it does not support is answered by the model's own
        generation, one prompt at a time."""
        return not self.altered and supports(self.model)

    @property
    def altered(self) -> list[str]:
        """Settings of the model's own generation by which its greedy answers are others."""
        settings = self.model.generation_config
        return [
            k for k, neutral in NEUTRAL.items() if getattr(settings, k, None) not in (None, neutral)
        ]

    @property
    def dialogues(self) -> bool:
        """Whether prompts are turns of a dialogue, or plain text."""
        return self._dialogues

    @dialogues.setter
    def dialogues(self, value: bool) -> None:
        self._dialogues = value
        self.template_parser = APITemplateParser(CHAT_ROUND) if value else LMTemplateParser()

    def generate(
        self,
        inputs: list[Any],
        max_out_len: int,
        min_out_len: int | None = None,
        stopping_criteria: Sequence[str] = (),
    ) -> list[str]:
        """Greedy continuations of the prompts, in their order, at most `max_out_len` tokens each.

        A prompt that leaves no room in the model's context gets an empty answer and is counted in
        `too_long`; none is ever cut. Where the room is less than `max_out_len`, the answer ends
        with it. Answers that ended so, and not by themselves, are counted in `cut`.

        Raises:
            NotImplementedError: a dataset that forbids short answers (`min_out_len`).
        """
        if min_out_len is not None:
            raise NotImplementedError("min_out_len: answers of a least length are not supported")
        encoded = [self._encode(prompt) for prompt in inputs]
        room = [min(max_out_len, self.max_seq_len - len(ids)) for ids in encoded]
        self.too_long |= {i for i, space in enumerate(room) if space < 1}
        indices = [i for i, space in enumerate(room) if space >= 1]
        questions = [["generate", encoded[i], room[i], list(stopping_criteria)] for i in indices]
        stopped = self._stopped(stopping_criteria) if stopping_criteria else None

        def answer(missing: list[int], keep: Callable[[int, Any], None]) -> None:
            self._continue(
                [encoded[indices[m]] for m in missing],
                [room[indices[m]] for m in missing],
                lambda index, tokens: keep(
                    missing[index],
                    self._answer(tokens, stopping_criteria, room[indices[missing[index]]]),
                ),
                stopped,
            )

        outputs = [""] * len(inputs)
        for index, entry in zip(indices, self._through_journal(questions, answer), strict=True):
            outputs[index], cut = entry
            if cut:
                self.cut.add(index)
        return outputs

    def look_ahead(self, dry_run: Callable[[], None]) -> None:
        """Find out which perplexities a run will ask for, and compute all of them together.

        OpenCompass asks for one answer's texts after the other's. Texts of one question begin
        alike, and what they share is read once if all are known.

        Args:
            dry_run: asks `get_ppl` for all, and gets zeros.
        """
        self._asked = []
        try:
            dry_run()
        finally:
            asked, self._asked = self._asked, None
        distinct = list(dict.fromkeys(asked))
        self.ahead = dict(zip(distinct, self._perplexities(distinct), strict=True))

    def get_ppl(self, inputs: list[Any], mask_length: list[int] | None = None) -> Any:
        """Mean loss of each text as OpenCompass norms it: summed over tokens, over their number.

        A text longer than the model's context is not asked: its loss is infinite, and its place is
        kept in `too_long`.

        Args:
            mask_length: first tokens of each text whose loss does not count.
        """
        masks = [0] * len(inputs) if mask_length is None else mask_length
        asked = list(zip(map(_plain, inputs), masks, strict=True))
        if self._asked is not None:
            self._asked += asked
            return np.zeros(len(asked))
        known = all(one in self.ahead for one in asked)
        losses = [self.ahead[one] for one in asked] if known else self._perplexities(asked)
        self.too_long |= {i for i, loss in enumerate(losses) if math.isinf(loss)}
        return np.array(losses)

    def _perplexities(self, asked: Sequence[Asked]) -> list[float]:
        """The mean losses of texts, but for each one's first tokens; infinite if it is too long."""
        all_ids = [self._encode(text, followed=False) for text, _ in asked]
        indices = [i for i, ids in enumerate(all_ids) if len(ids) <= self.max_seq_len]
        encoded = [all_ids[i] for i in indices]
        masked = [asked[i][1] for i in indices]
        questions = [["ppl", ids, mask] for ids, mask in zip(encoded, masked, strict=True)]

        def answer(missing: list[int], keep: Callable[[int, Any], None]) -> None:
            def finished(index: int, losses: torch.Tensor) -> None:
                ids, mask = encoded[missing[index]], masked[missing[index]]
                counts = torch.tensor([token != self.tokenizer.pad_token_id for token in ids])
                losses = losses * counts[1:]
                need_numbers(losses)  # OpenCompass would take the first label
                total = losses[max(mask - 1, 0) :].sum().item()
                keep(missing[index], total / (int(counts.sum()) - mask))

            if self.batched:
                Scorer(self.model, **self._batches()).losses(
                    [encoded[m] for m in missing], finished
                )
                return
            for index, m in enumerate(missing):
                finished(index, plain_losses(self.model, encoded[m]))

        losses = [math.inf] * len(asked)
        found = self._through_journal(questions, answer, unit="texts")
        for index, loss in zip(indices, found, strict=True):
            losses[index] = loss
        return losses

    def get_loglikelihood(self, inputs: list[Any], conts: list[str]) -> Any:
        """As OpenCompass's wrapper: minus the perplexity beyond as many tokens as `conts` has."""
        lengths = [len(self.tokenizer(c, add_special_tokens=False)["input_ids"]) for c in conts]
        return -self.get_ppl(inputs, lengths)

    def get_token_len(self, prompt: Any) -> int:
        """Tokens of one prompt as it would be given to the model."""
        return len(self._encode(prompt))

    def _through_journal(
        self,
        questions: list[Any],
        answer: Callable[[list[int], Callable[[int, Any], None]], None],
        unit: str = "questions",
    ) -> list[Any]:
        """An answer for each question: from the journal, or by `answer` and then kept there."""
        answers = [None if self.journal is None else self.journal.get(q) for q in questions]
        # a journal of before says of no text whether it was cut: such a question is asked again
        answers = [None if isinstance(entry, str) else entry for entry in answers]
        # and one of before could hold losses that are no numbers
        answers = [None if _no_number(entry) else entry for entry in answers]
        missing = [i for i, entry in enumerate(answers) if entry is None]
        initial = len(questions) - len(missing)
        description = f"evaluate {self.label}{self.asking}"
        # answers come in bursts: the time left is by the mean rate of this start
        settings = {"unit": f" {unit}", "initial": initial, "smoothing": 0}
        with progress.bar(len(questions), description, **settings) as bar:

            def keep(index: int, value: Any) -> None:
                answers[index] = value
                if self.journal is not None:
                    self.journal.put(questions[index], value)
                bar.update()

            if missing:
                answer(missing, keep)
        return answers

    def _continue(
        self,
        prompts: list[list[int]],
        room: list[int],
        finished: Finished,
        stopped: Callable[[list[int]], bool] | None,
    ) -> None:
        if self.batched:
            self._decoder().generate(prompts, room, finished, stopped)
            return
        for index, prompt in enumerate(prompts):
            finished(index, self._one_by_one(prompt, room[index]))

    def _decoder(self) -> Decoder:
        return Decoder(self.model, eos_ids=self.eos_ids, penalty=self.penalty, **self._batches())

    def _batches(self) -> dict[str, Any]:
        """How large batches may be, and what they are filled up with."""
        device = next(self.model.parameters()).device
        return {
            "pad_id": self.tokenizer.pad_token_id,
            "memory": memory.for_batches(device),
            "most_rows": self.batch_size or memory.MOST_ROWS[device.type],
        }

    @torch.inference_mode()
    def _one_by_one(self, prompt: list[int], max_new: int) -> list[int]:
        """The model's own generation, for what decoder.py does not support."""
        settings = copy.deepcopy(self.model.generation_config)
        settings.update(
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_new,
            eos_token_id=self.eos_ids,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        ids = torch.tensor([prompt], device=next(self.model.parameters()).device)
        tokens = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Numbers()]),
        )
        answer: list[int] = tokens[0, len(prompt) :].tolist()
        return answer

    def _encode(self, prompt: Any, followed: bool = True) -> list[int]:
        """A prompt as tokens; `followed`: an answer is to come after it."""
        if not self.dialogues and followed:
            return prompt_ids(self.tokenizer, str(prompt))
        if not self.dialogues:
            return list(self.tokenizer(str(prompt))["input_ids"])
        text = self.tokenizer.apply_chat_template(
            messages(prompt), tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _stopped(self, stops: Sequence[str]) -> Callable[[list[int]], bool]:
        # a stop text may begin and end within a token: one more than it has of its own
        longest = 1 + max(
            len(self.tokenizer(s, add_special_tokens=False)["input_ids"]) for s in stops
        )
        return lambda tokens: any(s in self.tokenizer.decode(tokens[-longest:]) for s in stops)

    def _answer(self, tokens: list[int], stops: Sequence[str], room: int) -> tuple[str, bool]:
        """An answer's text, and whether it ended at the length limit and not by itself."""
        text = self._text(tokens, stops)
        at_limit = len(tokens) >= room and not set(self.eos_ids).intersection(tokens)
        full_text = self.tokenizer.decode(tokens, skip_special_tokens=not self.dialogues)
        return text, at_limit and text == full_text

    def _text(self, tokens: list[int], stops: Sequence[str]) -> str:
        """The text before the first end token and before the first of `stops`; in a dialogue,
        also where a model spells an end token out."""
        ends = [i for i, token in enumerate(tokens) if token in self.eos_ids]
        text = self.tokenizer.decode(
            tokens[: ends[0]] if ends else tokens, skip_special_tokens=not self.dialogues
        )
        for stop in (*stops, *(self.end_texts if self.dialogues else ())):
            text = text.split(stop)[0]
        return str(text)


class _Numbers(LogitsProcessor):
    """Changes nothing; refuses logits that are no numbers."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        need_numbers(scores.amax(dim=-1))  # NaN if any is
        return scores


def messages(prompt: Any) -> list[dict[str, str]]:
    """OpenCompass's turns as chat messages; neighbours of one role become one turn."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    turns: list[dict[str, str]] = []
    for item in prompt:
        role, text = ROLES[item["role"]], item["prompt"]
        if not text:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n" + text
        else:
            turns.append({"role": role, "content": text})
    return turns


def _no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _plain(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "".join(item["prompt"] for item in prompt)


def _eos_ids(model: Any, tokenizer: Any, chat: bool) -> list[int]:
    """The model's own end tokens, the tokenizer's, and in a dialogue that of the chat template."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    ends = turn_end(tokenizer) if chat else []
    return sorted({int(i) for i in [*ids, tokenizer.eos_token_id, *ends] if i is not None})
