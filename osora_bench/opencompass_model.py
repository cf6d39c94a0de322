"""The model object that OpenCompass's tasks are handed: a transformers model in memory.

OpenCompass's own Hugging Face wrapper calls a tokenizer method that transformers 5 no longer
has. This class keeps its behaviour (chat template, greedy decoding, where an answer ends) and
differs in how the work is batched: by length, so that there is little padding.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from opencompass.models.base import BaseModel, LMTemplateParser
from opencompass.models.base_api import APITemplateParser

from osora_bench import progress
from osora_bench.errors import UserError

CHAT_ROUND = {
    "round": [
        {"role": "HUMAN", "api_role": "HUMAN"},
        {"role": "SYSTEM", "api_role": "HUMAN"},
        {"role": "BOT", "api_role": "BOT", "generate": True},
    ]
}
"""How OpenCompass renders a prompt for a chat model: a list of turns."""
ROLES = {"HUMAN": "user", "SYSTEM": "system", "BOT": "assistant"}


class InMemoryModel(BaseModel):
    """A causal language model with its tokenizer, as OpenCompass sees a model.

    Args:
        model: a transformers or PEFT model, in evaluation mode.
        chat: whether prompts are dialogues for the tokenizer's chat template, or plain text.
        batch_tokens: upper bound of sequences x (prompt + answer) tokens of one batch.
        label: names the cell in the progress bar.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, chat: bool, batch_tokens: int, label: str
    ) -> None:
        context = int(model.config.max_position_embeddings)
        super().__init__(path=label, max_seq_len=context)
        self.model = model
        self.tokenizer = tokenizer
        self.chat = chat
        self.batch_tokens = batch_tokens
        self.label = label
        self.template_parser = APITemplateParser(CHAT_ROUND) if chat else LMTemplateParser()
        self.eos_ids = _eos_ids(model, tokenizer)

    def generate(self, inputs: list[Any], max_out_len: int, **_: Any) -> list[str]:
        """Greedy continuations of the prompts, in their order, at most `max_out_len` tokens each.

        Raises:
            UserError: prompts that do not fit the model's context; none is ever cut.
        """
        encoded = [self._encode(prompt) for prompt in inputs]
        too_long = [len(ids) for ids in encoded if len(ids) + max_out_len > self.max_seq_len]
        if too_long:
            raise UserError(
                f"{len(too_long)} of {len(encoded)} prompts (up to {max(too_long)} tokens) and "
                f"{max_out_len} new tokens do not fit the context of {self.max_seq_len}"
            )
        outputs = [""] * len(encoded)
        with progress.bar(len(encoded), f"evaluate {self.label}") as bar:
            for batch in self._batches(encoded, max_out_len):
                texts = self._continue([encoded[i] for i in batch], max_out_len)
                for index, text in zip(batch, texts, strict=True):
                    outputs[index] = text
                bar.update(len(batch))
        return outputs

    def get_token_len(self, prompt: Any) -> int:
        """Tokens of one prompt as it would be given to the model."""
        return len(self._encode(prompt))

    def _encode(self, prompt: Any) -> list[int]:
        if not self.chat:
            return list(self.tokenizer(str(prompt))["input_ids"])
        text = self.tokenizer.apply_chat_template(
            messages(prompt), tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _batches(self, encoded: Sequence[list[int]], max_out_len: int) -> Iterator[list[int]]:
        """Indices of prompts in batches, longest first: the first batch shows what fits."""
        batch: list[int] = []
        for index in sorted(range(len(encoded)), key=lambda i: -len(encoded[i])):
            width = len(encoded[batch[0] if batch else index]) + max_out_len
            if batch and (len(batch) + 1) * width > self.batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.inference_mode()
    def _continue(self, prompts: list[list[int]], max_out_len: int) -> list[str]:
        width = max(len(ids) for ids in prompts)
        pad = self.tokenizer.pad_token_id
        device = next(self.model.parameters()).device
        padded = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device)
        mask = torch.tensor(
            [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device
        )
        settings = copy.deepcopy(self.model.generation_config)
        settings.update(
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_out_len,
            eos_token_id=self.eos_ids,
            pad_token_id=pad,
        )
        tokens = self.model.generate(
            input_ids=padded, attention_mask=mask, generation_config=settings
        )
        return [self._answer(row) for row in tokens[:, width:].tolist()]

    def _answer(self, tokens: list[int]) -> str:
        """The text before the first end-of-sequence token."""
        ends = [i for i, token in enumerate(tokens) if token in self.eos_ids]
        return str(self.tokenizer.decode(tokens[: ends[0]] if ends else tokens))


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


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None})
