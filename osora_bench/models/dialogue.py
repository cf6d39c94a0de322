"""A dialogue as a chat template writes it, and where its turns and plain prompts end."""

from textwrap import shorten
from typing import Any

from osora_bench.common.errors import UserError

QUESTION, ANSWER = "What is 40 and 2?", "It is 42."
"""A dialogue that templates are tried on."""


def turn_end(tokenizer: Any) -> list[int]:
    """The token with which the chat template ends an answer; none if it writes no such token.

    It need not be the tokenizer's own: base models come with `<|endoftext|>` as that and a template
    that ends turns with `<|im_end|>`.
    """
    _, found, tail = rendered(tokenizer, ANSWER).rpartition(ANSWER)
    if not found:
        return []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return [token for token in ids if token in special][:1]


def rendered(tokenizer: Any, answer: str) -> str:
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def turns(tokenizer: Any, prompt: str, answer: str) -> tuple[str, str]:
    """A dialogue as the chat template writes it: up to the answer's turn, and that turn.

    Raises:
        UserError: the template does not write the answer as it is, or its turn otherwise than the
            generation prompt says.
    """
    user, reply = {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}
    asked = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template([user, reply], tokenize=False)
    if not text.startswith(asked):
        raise UserError(
            "the chat template writes the answer's turn differently than the generation prompt"
        )
    turn = str(text[len(asked) :])
    if not turn.lstrip().startswith(answer.strip()):
        raise UserError(
            f"the chat template rewrites the answer {shorten(answer, 60)!r} as "
            f"{shorten(turn, 60)!r}"
        )
    return str(asked), turn


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Plain text as tokens that something is to follow: with what the tokenizer puts before it, and
    without the end token that some put after it."""
    ids = list(tokenizer(text)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and _adds_end(tokenizer):
        ids.pop()
    return ids


def _adds_end(tokenizer: Any) -> bool:
    bare, whole = (
        tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True)
    )
    return bool(whole) and whole[-1:] == [tokenizer.eos_token_id] != bare[-1:]
