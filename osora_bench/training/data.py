"""Training rows: checked rows -> dialogues -> tokens with labels."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.common.fingerprint import fingerprint
from osora_bench.models.dialogue import prompt_ids, turns
from osora_bench.planning.config import Config, KeyConfig, SourceConfig, TaskConfig, plain
from osora_bench.training.rows import column_of, source_rows
from osora_bench.training.template import Template, Unfit

IGNORED_LABEL = -100
"""What torch's cross entropy leaves out of the loss."""
LETTERS = "ABCDEFGHIJ"
ANSWER = "answer"
"""The column that options and keys give a row."""


@dataclass(frozen=True)
class Dialogue:
    """One user turn and the assistant's answer to it."""

    prompt: str
    response: str
    group: str | None = None
    """Rows of one group are re-wordings of one another."""
    source: int = 0
    """The place of its source among the task's."""


@dataclass(frozen=True)
class TokenisedTask:
    """Rows of `input_ids` and `labels` (same length), and how many had to be cut to fit."""

    rows: list[dict[str, list[int]]]
    truncated: int


def dialogues(task: TaskConfig, seed: int) -> list[Dialogue]:
    """The rows of a task to train on as dialogues, `max_rows` of them drawn by the seed.

    Raises:
        UserError: what `read_rows` refuses, a template that is none or that a row does not fill
            (a column that is missing, null or no text), a response that is empty, or more
            validation rows than there are.
    """
    places = [place for file in task.row_files if (place := paths.data_file(file)).is_file()]
    drawn_by = seed if by_seed(task) else None
    key = json.dumps([plain(task), drawn_by, [[str(p), fingerprint(p)] for p in places]])
    if key not in _last_read:
        result = _drawn_dialogues(task, seed)
        _last_read.clear()
        _last_read[key] = result
    return [*_last_read[key]]


def by_seed(task: TaskConfig) -> bool:
    """Whether seeds train on other rows, or on the same in other words."""
    return task.max_rows is not None or any(source.options for source in task.sources)


_last_read: dict[str, list[Dialogue]] = {}
"""The rows that were asked for last: the checks before a cell, the look for its questions in them
and its tokens read them one after another. Once they are tokens nobody reads them again."""


def _drawn_dialogues(task: TaskConfig, seed: int) -> list[Dialogue]:
    generator = random.Random(seed)
    result = _all_dialogues(task, generator)
    held_out = _held_out(task, result)
    result = [dialogue for index, dialogue in enumerate(result) if index not in held_out]
    if task.max_rows is None or task.max_rows >= len(result):
        return result
    return [result[i] for i in _drawn(result, task.max_rows, generator, even=task.even)]


def validation_dialogues(task: TaskConfig) -> list[Dialogue]:
    """The rows that no seed trains on (`validation_rows`), in the same words for every seed."""
    candidates = _all_dialogues(task, random.Random(0))
    return [candidates[index] for index in sorted(_held_out(task, candidates))]


def _held_out(task: TaskConfig, candidates: Sequence[Dialogue]) -> set[int]:
    """Positions of the validation rows, drawn alike for every seed; of a group all or none, so that
    there may be some more than asked for."""
    count, rows = task.validation_rows, len(candidates)
    if count is None:
        return set()
    if count >= rows:
        raise UserError(
            f"task.validation_rows={count}: {rows} rows, and one at least is to train on"
        )
    drawn = _drawn(candidates, count, random.Random(0), even=task.even)
    groups: dict[str, list[int]] = {}
    for index, dialogue in enumerate(candidates):
        if dialogue.group is not None:
            groups.setdefault(dialogue.group, []).append(index)
    if not groups:
        return set(drawn)
    held_out: set[int] = set()
    for index in drawn:
        group = candidates[index].group
        if len(held_out) < count:
            held_out |= {index} if group is None else set(groups[group])
    if len(held_out) == rows:
        raise UserError(f"task.validation_rows={count}: its groups leave no row to train on")
    return held_out


def _drawn(
    candidates: Sequence[Dialogue], count: int, generator: random.Random, *, even: bool
) -> list[int]:
    """Positions of so many, in a random order; `even`: as many of each source as of another, as
    far as each has them."""
    if not even:
        return generator.sample(range(len(candidates)), count)
    by_source: dict[int, list[int]] = {}
    for index, dialogue in enumerate(candidates):
        by_source.setdefault(dialogue.source, []).append(index)
    result: list[int] = []
    smallest_first = sorted(by_source.values(), key=len)
    for place, positions in enumerate(smallest_first):  # what one lacks, the larger ones make up
        share = (count - len(result)) // (len(smallest_first) - place)
        result += generator.sample(positions, min(share, len(positions)))
    generator.shuffle(result)
    return result


def _all_dialogues(task: TaskConfig, generator: random.Random) -> list[Dialogue]:
    result = []
    for index, source in enumerate(task.sources):
        where = f"task.sources.{index}"
        prompt = Template(source.prompt, f"{where}.prompt")
        response = Template(source.response, f"{where}.response")
        answers = {
            value: Template(text, f"{where}.key.answers.{value}")
            for value, text in (source.key.answers if source.key is not None else {}).items()
        }
        for number, row in source_rows(source):
            try:
                columns = _with_options(row, source.options, generator) if source.options else row
                if source.key is not None:
                    columns = {**columns, ANSWER: _keyed(columns, source.key, answers)}
                dialogue = Dialogue(
                    prompt.filled(columns), response.filled(columns), _group(row, source), index
                )
                if response.says_nothing(columns):
                    raise Unfit("the response is empty: it would train nothing")
            except Unfit as error:
                kind = "line" if source.path.endswith(".jsonl") else "row"
                raise UserError(f"{source.path}, {kind} {number}: {error}") from error
            result.append(dialogue)
    return result


def _keyed(row: dict[str, Any], key: KeyConfig, answers: dict[str, Template]) -> str:
    """The text of the answer that a row's key names."""
    if key.column not in row:
        raise Unfit(unknown("column of the key", key.column, row))
    if (value := str(row[key.column])) not in answers:
        raise Unfit(f"{key.column} is {value!r}; there are answers for {', '.join(answers)}")
    return answers[value].filled(row)


def _group(row: dict[str, Any], source: SourceConfig) -> str | None:
    """What a row has in common with its re-wordings, which are of one file."""
    if source.group is None:
        return None
    value = column_of(row, source.group, source.path)
    if value is None:
        raise Unfit(f"the group {source.group!r} is null")
    return f"{source.path} {value}"


def _with_options(
    row: dict[str, Any], options: Sequence[str], generator: random.Random
) -> dict[str, Any]:
    for column in options:
        if row.get(column) is None:
            why = "is null" if column in row else f"is not in the row: {', '.join(sorted(row))}"
            raise Unfit(f"the option {column!r} {why}")
    order = list(range(len(options)))
    generator.shuffle(order)
    shuffled = {LETTERS[i]: row[options[j]] for i, j in enumerate(order)}
    return {**row, **shuffled, ANSWER: LETTERS[order.index(0)]}


def tokenise(
    pairs: Sequence[Dialogue],
    tokenizer: Any,
    *,
    chat: bool,
    loss_on: str,
    max_length: int,
    plain: bool = False,
) -> TokenisedTask:
    """Tokens and labels of dialogues, cut at `max_length` tokens.

    With `chat` both turns go through the tokenizer's chat template, else they are joined and end
    with the end-of-sequence token; not so with `plain`, which is the text that a perplexity is of.
    `loss_on="text"` puts the loss on every token, as the authors' code does; `"answer"` on those
    after the prompt only.
    """
    rows, truncated = [], 0
    ids_of = _chat_ids if chat else _text_ids if plain else _plain_ids
    for pair in pairs:
        prompt_ids, ids = ids_of(pair, tokenizer)
        masked = len(prompt_ids) if loss_on == "answer" else 0
        truncated += len(ids) > max_length
        labels = [IGNORED_LABEL] * masked + ids[masked:]
        if masked >= max_length:
            continue  # nothing of the answer is left to learn from; counted as truncated
        rows.append({"input_ids": ids[:max_length], "labels": labels[:max_length]})
    if not rows:
        raise UserError(f"task.max_length={max_length} leaves no row to train on")
    return TokenisedTask(rows, truncated)


def tokenised(cfg: Config, tokenizer: Any) -> TokenisedTask:
    """A cell's training rows as tokens."""
    result = _tokens(cfg, dialogues(cfg.task, cfg.seed), tokenizer)
    _last_read.clear()
    return result


def held_out(cfg: Config, tokenizer: Any) -> TokenisedTask | None:
    """The rows that a cell's task keeps out of training as tokens, if it does."""
    if cfg.task.validation_rows is None:
        return None
    return _tokens(cfg, validation_dialogues(cfg.task), tokenizer)


def _tokens(cfg: Config, pairs: Sequence[Dialogue], tokenizer: Any) -> TokenisedTask:
    task = cfg.task
    return tokenise(
        pairs,
        tokenizer,
        chat=cfg.chat,
        loss_on=task.loss_on,
        max_length=task.max_length,
        plain=task.plain,
    )


def _chat_ids(pair: Dialogue, tokenizer: Any) -> tuple[list[int], list[int]]:
    encoded = [
        list(tokenizer(part, add_special_tokens=False)["input_ids"])
        for part in turns(tokenizer, pair.prompt, pair.response)
    ]
    return encoded[0], encoded[0] + encoded[1]


def _plain_ids(pair: Dialogue, tokenizer: Any) -> tuple[list[int], list[int]]:
    prompt = prompt_ids(tokenizer, pair.prompt)
    answer = list(tokenizer(pair.response, add_special_tokens=False)["input_ids"])
    return prompt, [*prompt, *answer, tokenizer.eos_token_id]


def _text_ids(pair: Dialogue, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Both turns as one text, whose tokens are those that its perplexity is asked of: a token that
    spans the two belongs to the answer."""
    ids = prompt_ids(tokenizer, pair.prompt + pair.response)
    alone = prompt_ids(tokenizer, pair.prompt)
    same = [one == other for one, other in zip(alone, ids, strict=False)]
    return ids[: same.index(False) if False in same else len(same)], ids
