"""`osora-bench data fetch`: download what the data folder lacks, checked before it has its name."""

import errno
import hashlib
import json
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from osora_bench.benchdata.download import FailedError, UnreachableError, download
from osora_bench.benchdata.sets import (
    DataSet,
    File,
    Origin,
    count_rows,
    examine,
    named_sets,
    refuse_committable,
)
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.common.files import sync
from osora_bench.common.progress import say

INSTEAD = (
    "Without network, copy a folder in OpenCompass's layout from elsewhere and name it with "
    "OSORA_DATA; `osora-bench data verify` checks it"
)


def fetch(names: Sequence[str], *, replace: bool = False) -> int:
    """Download what is missing of the named sets, without a name of all that are not gated.

    Args:
        replace: also download anew what has another checksum, in place of it.

    Returns:
        Exit status: 0 if all files are there and right, 1 if one could not be had.

    Raises:
        UserError: no such set, no network, or a folder that cannot be written.
    """
    sets = named_sets(names)
    if not names:
        for name in [n for n, data_set in sets.items() if data_set.gated]:
            print(f"{name}: left out, {sets.pop(name).gated}. Name it to fetch it")
    else:
        for name, data_set in sets.items():
            if data_set.gated:
                print(f"{name}: {data_set.gated}")
    problems, downloads = _wanted(sets, replace)
    if downloads:
        _refuse_offline()
        problems += _Run().get(downloads)
    elif not problems:
        print(f"nothing to fetch: {', '.join(sets)} complete below {paths.data_root()}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


def _wanted(sets: dict[str, DataSet], replace: bool) -> tuple[list[str], list[tuple[str, File]]]:
    """What may not be touched, in words, and the files to download."""
    problems, downloads = [], []
    for name, data_set in sets.items():
        for file in data_set.files:
            finding = examine(file)
            if finding.kind == "wrong" and not replace:
                problems.append(
                    f"{name}: {paths.data_file(file.path)}: {finding.told}. Left as it is; "
                    f"`osora-bench data fetch {name} --replace` overwrites it"
                )
            elif finding.kind != "right":
                if data_set.gated:
                    refuse_committable(paths.data_file(file.path), "with OSORA_DATA")
                downloads.append((name, file))
    return problems, downloads


def _refuse_offline() -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(f"cannot fetch: HF_HUB_OFFLINE is set. {INSTEAD}")


class _Run:
    """One call of `fetch`: a URL is asked for once, and so is a host that is silent."""

    def __init__(self) -> None:
        self.scratch = paths.data_root() / ".fetch"
        self.sources: dict[str, Path] = {}
        self.failed: dict[str, FailedError] = {}
        self.silent: set[str] = set()

    def get(self, downloads: Sequence[tuple[str, File]]) -> list[str]:
        """Download the files; return what could not be had, in words."""
        problems, reached = [], False
        try:
            for name, file in downloads:
                failures = self._one(file)
                if failures:
                    reached |= any(not isinstance(f, UnreachableError) for f in failures)
                    reasons = "".join(f"\n  {f}" for f in failures)
                    problems.append(f"{name}: {file.path} could not be had:{reasons}")
                else:
                    reached = True
                    say(f"{name}: {file.path}")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            raise UserError(
                f"{paths.data_root()}: cannot write there ({error.strerror}); what was downloaded "
                "is kept and the next fetch goes on from it"
            ) from error
        finally:
            self._clean()
        if reached:
            return problems
        return [problems[0], f"{len(problems)} files in all; no host answered. {INSTEAD}"]

    def _clean(self) -> None:
        for source in self.sources.values():
            source.unlink(missing_ok=True)
        with suppress(OSError):  # what was interrupted stays, for the next fetch
            self.scratch.rmdir()

    def _one(self, file: File) -> list[FailedError]:
        """Put one file in its place; the failures of all origins if none gave it."""
        failures: list[FailedError] = []
        for origin in file.origins:
            try:
                self._from(origin, file)
            except FailedError as error:
                failures.append(error)
            else:
                return []
        return failures

    def _from(self, origin: Origin, file: File) -> None:
        place = paths.data_file(file.path)
        if origin.member is not None:
            secret = password(origin)  # before anything is downloaded for nothing
            install(member(self._whole(origin), origin, secret), place, file)
        elif origin.columns:
            install(converted(self._whole(origin), origin, place.suffix), place, file)
        else:
            part = place.with_name(f"{place.name}.part")
            self._download(origin.url, part, sha256=file.sha256, blob=origin.blob)
            part.replace(place)

    def _whole(self, origin: Origin) -> Path:
        """What an origin's URL gives, downloaded once in a run: files are taken out of it."""
        url = origin.url
        if url not in self.sources:
            prefix = hashlib.sha256(url.encode()).hexdigest()[:8]
            part = self.scratch / f"{prefix}-{url.rsplit('/', 1)[-1]}.part"
            self._download(url, part, sha256=origin.sha256, md5=origin.md5)
            self.sources[url] = part.replace(part.with_suffix(""))
        return self.sources[url]

    def _download(self, url: str, part: Path, **digests: str | None) -> None:
        host = urlsplit(url).netloc
        if url in self.failed:
            raise self.failed[url]
        if host in self.silent:
            raise UnreachableError(f"{url}: no answer from {host}")
        try:
            download(url, part, **digests)
        except FailedError as error:
            self.failed[url] = error
            if isinstance(error, UnreachableError):
                self.silent.add(host)
            raise


def password(origin: Origin) -> bytes | None:
    """The password of an origin's archive, if it has one.

    Raises:
        FailedError: the environment variable that should hold it is not set.
    """
    if origin.password is None:
        return None
    if not os.environ.get(origin.password):
        raise FailedError(f"{origin.url}: this archive has a password; set {origin.password} to it")
    return os.environ[origin.password].encode()


def member(archive: Path, origin: Origin, secret: bytes | None) -> bytes:
    """One file of a zip archive.

    Raises:
        FailedError: no such member, no archive, or a wrong password.
    """
    try:
        with zipfile.ZipFile(archive) as zip_file:
            return zip_file.read(str(origin.member), pwd=secret)
    except KeyError as error:
        raise FailedError(f"{origin.url}: has no file {origin.member}") from error
    except (zipfile.BadZipFile, RuntimeError, zlib.error) as error:  # a wrong password, too
        raise FailedError(f"{origin.url}: {origin.member}: {error}") from error


def converted(source: Path, origin: Origin, suffix: str) -> bytes:
    """Some columns of a file of the hub (.jsonl, .json, .csv, .parquet) in OpenCompass's form:
    lines of JSON (.jsonl), or one object with the rows under their numbers (.json).

    Raises:
        FailedError: it cannot be read, or lacks a column.
    """
    import datasets

    readers = datasets.Dataset
    reader = {
        ".jsonl": readers.from_json,
        ".json": readers.from_json,
        ".csv": readers.from_csv,
        ".parquet": readers.from_parquet,
    }[source.suffix]
    with tempfile.TemporaryDirectory(dir=source.parent) as cache:
        try:
            table = reader(str(source), cache_dir=cache)
            rows = [{key: row[column] for key, column in origin.columns.items()} for row in table]
        except datasets.exceptions.DatasetsError as error:
            raise FailedError(f"{origin.url}: {error}") from error
        except KeyError as error:
            raise FailedError(f"{origin.url}: has no column {error}") from error
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    by_number = {str(number): row for number, row in enumerate(rows)}
    return json.dumps(by_number, ensure_ascii=False, indent=4).encode()


def install(data: bytes, place: Path, file: File) -> None:
    """Write a checked file at once: it has its name only when all of it is on the disk.

    Raises:
        FailedError: other bytes than the file's checksum says, or another number of rows; the
            place is left as it was.
    """
    digest = hashlib.sha256(data).hexdigest()
    if file.sha256 is not None and digest != file.sha256 and digest not in file.also:
        raise FailedError(f"{file.path}: sha256 {digest} instead of {file.sha256}")
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{os.getpid()}.{place.name}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            sync(stream.fileno())
        rows = count_rows(temporary)
        if file.rows not in (None, rows):
            raise FailedError(f"{file.path}: {rows:,} rows instead of {file.rows:,}")
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
