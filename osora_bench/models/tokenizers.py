"""A model's tokenizer: loaded, its tokens and its chat template tried out."""

from datetime import datetime
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any
from unittest import mock

from transformers import AutoConfig, AutoTokenizer
from transformers.utils import chat_template_utils

from osora_bench.common.errors import UserError
from osora_bench.models.dialogue import ANSWER, QUESTION, rendered, turn_end
from osora_bench.models.embeddings import saved_words
from osora_bench.planning.blank import location
from osora_bench.planning.config import ModelConfig


def load_tokenizer(model: ModelConfig, folder: Path | None = None) -> Any:
    """The tokenizer of a model, or that which lies beside an adapter of it in `folder`.

    Raises:
        UserError: there is none, it has no end token, it names tokens that the model has no
            embedding of, or its chat template is none that a model can be asked with.
    """
    path = location(model) if folder is None else str(folder)
    revision = {"revision": model.revision} if folder is None else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, **revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model {model.name}: no tokenizer can be had of {path}: {reason}"
        ) from error
    size = max(_embeddings(model), 0 if folder is None else saved_words(folder))
    _check_tokens(tokenizer, model, path, size)
    if model.chat:
        check_template(tokenizer, f"model {model.name}")
        _check_embedded(tokenizer, model, size)
    return tokenizer


def check_tokenizer(model: ModelConfig) -> None:
    """Raise UserError where `load_tokenizer` does."""
    _check(model.name, model.path, model.revision, model.chat)


@cache
def _check(name: str, path: str, revision: str | None, chat: bool) -> None:
    load_tokenizer(ModelConfig(name=name, path=path, revision=revision, chat=chat))


def _check_tokens(tokenizer: Any, model: ModelConfig, path: str, size: int) -> None:
    """End and padding: a tokenizer without the first is refused, without a usable second it pads
    with the first, which is masked wherever it stands for padding."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model {model.name}: the tokenizer of {path} has no end-of-sequence token, so no "
            "answer would end; `eos_token` in its tokenizer_config.json names one"
        )
    if tokenizer.eos_token_id >= size:
        raise UserError(
            f"model {model.name}: {tokenizer.eos_token!r} of the tokenizer of {path} is token "
            f"{tokenizer.eos_token_id}, and the model has embeddings of {size}"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= size:
        tokenizer.pad_token = tokenizer.eos_token


def _check_embedded(tokenizer: Any, model: ModelConfig, size: int) -> None:
    """Refuse a chat template that writes tokens beyond the model's embeddings."""
    ids = tokenizer(rendered(tokenizer, ANSWER), add_special_tokens=False)["input_ids"]
    if beyond := sorted({i for i in ids if i >= size}):
        raise UserError(
            f"model {model.name}: its chat template writes "
            f"{', '.join(map(repr, tokenizer.convert_ids_to_tokens(beyond)))}, of which the "
            f"model has no embedding (it has {size})"
        )


def _embeddings(model: ModelConfig) -> int:
    options = {"revision": model.revision, "local_files_only": True}
    config = AutoConfig.from_pretrained(location(model), **options)
    return int(config.get_text_config().vocab_size)


def check_template(tokenizer: Any, who: str) -> None:
    """Refuse a chat template with which answers would not end, or prompts change by the day.

    Raises:
        UserError: there is none, it writes no end token, drops the answer, or prints the date.
    """
    if tokenizer.chat_template is None:
        raise UserError(f"{who}: chat=true, but its tokenizer has no chat template")
    try:
        written = rendered(tokenizer, ANSWER)
    except Exception as error:  # a template may raise whatever it likes
        reason = shorten(str(error), 200)
        raise UserError(f"{who}: its chat template cannot be filled: {reason}") from error
    if ANSWER not in written:
        raise UserError(f"{who}: its chat template drops or rewrites the answer: {written!r}")
    if not turn_end(tokenizer):
        raise UserError(
            f"{who}: its chat template writes no end token after an answer, so no answer would "
            "end; model.chat=false asks without it"
        )
    if len({_on_day(tokenizer, day) for day in (1, 2)}) > 1:
        raise UserError(
            f"{who}: its chat template prints today's date, so that the same cell is asked "
            "something else on another day: write a fixed date into chat_template.jinja in a "
            "folder of the model"
        )


def _on_day(tokenizer: Any, day: int) -> str:
    """What a prompt is on a day of another year, month and weekday than today."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Then":
            return cls(1990 + day, day, 3 * day, day, day, day)

    turn = [{"role": "user", "content": QUESTION}]
    with mock.patch.object(chat_template_utils, "datetime", Then):
        return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
