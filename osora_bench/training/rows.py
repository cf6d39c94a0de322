"""Training files as rows: what is in them, and what is refused of them."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from osora_bench.common import paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.planning.config import SourceConfig

LABEL = "label"
"""The column that a source's file of labels gives its rows."""


def read_rows(path: str, expected: int) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json (a list of objects) or .csv file below the data folder.

    Raises:
        UserError: no such file, another number of rows than `expected`, or a broken line (named);
            text that is not UTF-8, or with a byte order mark.
    """
    file = _existing(path)
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
    if file.suffix not in readers:
        raise UserError(f"{file}: {unknown('kind of data file', file.suffix, readers)}")
    rows = readers[file.suffix](file)
    if len(rows) != expected:
        raise UserError(f"{file}: {len(rows)} rows, but the configuration says {expected}")
    return rows


def _existing(path: str) -> Path:
    file = paths.data_file(path)
    if not file.is_file():
        raise UserError(
            f"{file}: no such file. OSORA_DATA names the data folder (now {paths.data_root()})"
        )
    return file


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
    rows = list(enumerate(_labelled(source, read_rows(source.path, source.rows)), start=1))
    if source.first is not None:
        if source.first > len(rows):
            raise UserError(f"{source.path}: first={source.first}, but it has {len(rows)}")
        rows = rows[: source.first]
    if source.exclude is None:
        return rows
    column, excluded_path = source.exclude.column, source.exclude.path
    excluded = {
        column_of(row, column, excluded_path)
        for row in read_rows(excluded_path, source.exclude.rows)
    }
    missing = excluded - {column_of(row, column, source.path) for _, row in rows}
    if missing:
        raise UserError(
            f"{source.path}: {len(missing)} rows of {excluded_path} are not in it by {column!r}, "
            "so they cannot be left out"
        )
    return [(number, row) for number, row in rows if row[column] not in excluded]


def _labelled(source: SourceConfig, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the lines of the source's file of labels, if it names one, as a column.

    Raises:
        UserError: not one label a row, one that is empty, or rows that have such a column.
    """
    if source.labels is None:
        return rows
    file = _existing(source.labels)
    labels = [line.strip() for line in read_text(file).splitlines()]
    if len(labels) != len(rows):
        raise UserError(f"{file}: {len(labels)} labels, but {source.path} has {len(rows)} rows")
    for number, (label, row) in enumerate(zip(labels, rows, strict=True), start=1):
        if not label:
            raise UserError(f"{file}, line {number}: no label")
        if LABEL in row:
            raise UserError(
                f"{source.path}, row {number}: has a column {LABEL!r} of its own beside "
                f"{source.labels}"
            )
    return [{**row, LABEL: label} for row, label in zip(rows, labels, strict=True)]


def column_of(row: dict[str, Any], column: str, path: str) -> Any:
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
