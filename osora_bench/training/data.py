"""Training rows: files -> checked rows -> dialogues -> tokens with labels."""

import csv
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.models.dialogue import prompt_ids, turns
from osora_bench.planning.config import Config, SourceConfig, TaskConfig
from osora_bench.training.template import Template, Unfit

IGNORED_LABEL = -100
"""What torch's cross entropy leaves out of the loss."""
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Dialogue:
    """One user turn and the assistant's answer to it."""

    prompt: str
    response: str
    group: str | None = None
    """Rows of one group are re-wordings of one another."""


@dataclass(frozen=True)
class TokenisedTask:
    """Rows of `input_ids` and `labels` (same length), and how many had to be cut to fit."""

    rows: list[dict[str, list[int]]]
    truncated: int


def read_rows(path: str, expected: int) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json (a list of objects) or .csv file below the data folder.

    Raises:
        UserError: no such file, another number of rows than `expected`, or a broken line (named);
            text that is not UTF-8, or with a byte order mark.
    """
    file = paths.data_file(path)
    if not file.is_file():
        raise UserError(
            f"{file}: no such file. OSORA_DATA names the data folder (now {paths.data_root()})"
        )
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
    if file.suffix not in readers:
        raise UserError(f"{file}: {unknown('kind of data file', file.suffix, readers)}")
    rows = readers[file.suffix](file)
    if len(rows) != expected:
        raise UserError(f"{file}: {len(rows)} rows, but the configuration says {expected}")
    return rows


def read_text(file: Path) -> str:
    """A file's text, in UTF-8 without a byte order mark.

    Raises:
        UserError: it is not; file and line are named.
    """
    content = file.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file}, line {line}: not UTF-8 ({error.reason}, byte {content[error.start]:#04x}); "
            "the file is in another encoding"
        ) from error
    if text.startswith("\ufeff"):
        raise UserError(f"{file}, line 1: begins with a byte order mark (BOM): save it without")
    return text


def _json(text: str) -> Any:
    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no JSON value")

    return json.loads(text, parse_constant=no_number)


def _read_jsonl(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(io.StringIO(read_text(file), newline=None), start=1):
        try:
            row = _json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: not a JSON object")
        rows.append(row)
    return rows


def _read_json(file: Path) -> list[dict[str, Any]]:
    text = read_text(file)
    try:
        rows = _json(text)
    except (ValueError, RecursionError) as error:  # says line and column
        raise UserError(f"{file}: not JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file}: not a list of JSON objects")
    return rows


def source_rows(source: SourceConfig) -> list[tuple[int, dict[str, Any]]]:
    """The rows that a source trains on, each with its number in the file.

    Raises:
        UserError: what `read_rows` refuses, fewer rows than `first`, or a row to be left out that
            the file does not have: the two files then do not belong together.
    """
    rows = list(enumerate(read_rows(source.path, source.rows), start=1))
    if source.first is not None:
        if source.first > len(rows):
            raise UserError(f"{source.path}: first={source.first}, but it has {len(rows)}")
        rows = rows[: source.first]
    if source.exclude is None:
        return rows
    column, excluded_path = source.exclude.column, source.exclude.path
    excluded = {
        _column(row, column, excluded_path) for row in read_rows(excluded_path, source.exclude.rows)
    }
    missing = excluded - {_column(row, column, source.path) for _, row in rows}
    if missing:
        raise UserError(
            f"{source.path}: {len(missing)} rows of {excluded_path} are not in it by {column!r}, "
            "so they cannot be left out"
        )
    return [(number, row) for number, row in rows if row[column] not in excluded]


def _column(row: dict[str, Any], column: str, path: str) -> Any:
    if column not in row:
        raise UserError(f"{path}: {unknown('column', column, row)}")
    return row[column]


def _read_csv(file: Path) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
    rows: list[dict[str, Any]] = []
    try:
        rows += reader
    except csv.Error as error:
        hint = "; a quote that is not closed makes such a field" if "limit" in str(error) else ""
        raise UserError(f"{file}, line {reader.line_num + 1}: {error}{hint}") from error
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UserError(f"{file}, row {number}: another number of columns than the header has")
    return rows


def dialogues(task: TaskConfig, seed: int) -> list[Dialogue]:
    """The rows of a task to train on as dialogues, `max_rows` of them drawn by the seed.

    Raises:
        UserError: what `read_rows` refuses, a template that is none or that a row does not fill
            (a column that is missing, null or no text), a response that is empty, or more
            validation rows than there are.
    """
    generator = random.Random(seed)
    result = _all_dialogues(task, generator)
    held_out = _held_out(task, result)
    result = [dialogue for index, dialogue in enumerate(result) if index not in held_out]
    if task.max_rows is not None and task.max_rows < len(result):
        result = generator.sample(result, task.max_rows)
    return result


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
    drawn = random.Random(0).sample(range(rows), count)
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


def _all_dialogues(task: TaskConfig, generator: random.Random) -> list[Dialogue]:
    result = []
    for index, source in enumerate(task.sources):
        where = f"task.sources.{index}"
        prompt = Template(source.prompt, f"{where}.prompt")
        response = Template(source.response, f"{where}.response")
        for number, row in source_rows(source):
            try:
                columns = _with_options(row, source.options, generator) if source.options else row
                dialogue = Dialogue(
                    prompt.filled(columns), response.filled(columns), _group(row, source)
                )
                if response.says_nothing(columns):
                    raise Unfit("the response is empty: it would train nothing")
            except Unfit as error:
                kind = "line" if source.path.endswith(".jsonl") else "row"
                raise UserError(f"{source.path}, {kind} {number}: {error}") from error
            result.append(dialogue)
    return result


def _group(row: dict[str, Any], source: SourceConfig) -> str | None:
    """What a row has in common with its re-wordings, which are of one file."""
    if source.group is None:
        return None
    value = _column(row, source.group, source.path)
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
    return {**row, **shuffled, "answer": LETTERS[order.index(0)]}


def tokenise(
    pairs: Sequence[Dialogue], tokenizer: Any, *, chat: bool, loss_on: str, max_length: int
) -> TokenisedTask:
    """Tokens and labels of dialogues, cut at `max_length` tokens.

    With `chat` both turns go through the tokenizer's chat template, else they are joined and end
    with the end-of-sequence token. `loss_on="text"` puts the loss on every token, as the authors'
    code does; `"answer"` on those after the prompt only.
    """
    rows, truncated = [], 0
    for pair in pairs:
        prompt_ids, ids = _chat_ids(pair, tokenizer) if chat else _plain_ids(pair, tokenizer)
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
    return _tokens(cfg, dialogues(cfg.task, cfg.seed), tokenizer)


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
        chat=cfg.model.chat,
        loss_on=task.loss_on,
        max_length=task.max_length,
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
