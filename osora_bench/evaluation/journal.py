"""Answers on disk as they come, so that an evaluation that dies goes on where it stopped."""

import contextlib
import errno
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from osora_bench.common import interruption
from osora_bench.common.errors import UserError


class Journal:
    """Answers by what was asked, in a file that belongs to one model as it answers.

    Each answer is one line with its checksum, written at once. What is read back ends before the
    first line that a crash cut short or that is damaged; the file of another `owner` is started
    anew.

    Args:
        owner: says whose answers these are (`answering.answerer`): they are a pure function of it
            and of the question.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self.path = path
        self._answers: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        size = self._read(owner)
        with _writing_to(path):
            self._file = path.open("r+b" if size else "wb", buffering=0)
            self._file.truncate(size)
            self._file.seek(size)
            if not size:
                self._append({"owner": owner})

    def _read(self, owner: str) -> int:
        """Read the file's answers if they are this model's; how many of its bytes to keep."""
        size = 0
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        for number, line in enumerate(lines):
            content = _parsed(line)
            if content is None or (number == 0 and content != {"owner": owner}):
                break
            if number > 0:
                self._answers[content[0]] = content[1]
            size += len(line)
        return size

    def _append(self, content: Any) -> None:
        text = json.dumps(content).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        if self._file.write(line) != len(line):  # the disk took a part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def get(self, question: Any) -> Any:
        """The answer to a question (anything that JSON can hold), None if there is none yet."""
        return self._answers.get(_key(question))

    def put(self, question: Any, answer: Any) -> None:
        """Keep an answer; it is on its way to the disk when this returns."""
        key = _key(question)
        self._answers[key] = answer
        with _writing_to(self.path):
            self._append([key, answer])
        interruption.current().safe_point()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


@contextlib.contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """What to say where an evaluation's files cannot be written."""
    return UserError(
        f"{path}: cannot write ({error.strerror}); the answers so far are kept, and the next start "
        "goes on from them"
    )


def _parsed(line: bytes) -> Any:
    """What a line says, None if it is not whole."""
    checksum, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text[:-1]):
        return None
    return json.loads(text)


def _key(question: Any) -> str:
    text = json.dumps(question, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
