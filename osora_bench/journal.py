"""Answers on disk as they come, so that an evaluation that dies goes on where it stopped."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from osora_bench import interruption
from osora_bench.errors import UserError


class Journal:
    """Answers by what was asked, in a file that belongs to one model.

    Each answer is one line, written and flushed at once; a line that a crash cut short is dropped.
    The file of another model, by `owner`, is started anew.

    Args:
        owner: says whose answers these are: they are a pure function of it and of the question.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self.path = path
        self._answers: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read(owner)
        with _writing_to(path):
            if kept is None:
                path.write_text(json.dumps({"owner": owner}) + "\n", encoding="utf-8")
            else:
                path.write_bytes(kept)
            self._file = path.open("a", encoding="utf-8")

    def _read(self, owner: str) -> bytes | None:
        """The file's whole lines if they are this model's."""
        if not self.path.is_file():
            return None
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines or json.loads(lines[0]) != {"owner": owner}:
            return None
        self._answers = dict(json.loads(line) for line in lines[1:])
        return whole

    def get(self, question: Any) -> Any:
        """The answer to a question (anything that JSON can hold), None if there is none yet."""
        return self._answers.get(_key(question))

    def put(self, question: Any, answer: Any) -> None:
        """Keep an answer; it is on its way to the disk when this returns."""
        key = _key(question)
        self._answers[key] = answer
        with _writing_to(self.path):
            self._file.write(json.dumps([key, answer]) + "\n")
            self._file.flush()
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


def _key(question: Any) -> str:
    text = json.dumps(question, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
