"""Downloads that go on where they were interrupted, held against a checksum."""

import errno
import hashlib
import http
import http.client
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from osora_bench.common.files import sync
from osora_bench.common.fingerprint import file_sha256
from osora_bench.common.progress import bar

CHUNK = 1 << 16
ATTEMPTS = 3
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
HUB = "https://huggingface.co"


class FailedError(Exception):
    """One origin did not give the file; the next one may."""


class UnreachableError(FailedError):
    """No answer from the host of an origin."""


def download(
    url: str,
    part: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    blob: str | None = None,
) -> None:
    """Bring the whole of `url` into `part`, going on from what an earlier call left there.

    Raises:
        FailedError: refused by the server, interrupted again and again, or other bytes than the
            checksums say; interrupted downloads stay for the next call.
    """
    if url.startswith(f"{HUB}/"):  # mirrors of the hub are named so
        url = os.environ.get("HF_ENDPOINT", HUB).rstrip("/") + url.removeprefix(HUB)
    for _ in range(ATTEMPTS):
        resumed = part.exists()
        if not _continue(url, part):
            continue
        if _has(part, sha256, md5, blob):
            return
        part.unlink()
        if not resumed:
            raise FailedError(f"{url}: other bytes than the checksum says")
        # what was left of another version was continued: once more from the start
    size = part.stat().st_size if part.exists() else 0
    raise FailedError(f"{url}: interrupted; {size:,} bytes are kept, the next fetch goes on there")


def _continue(url: str, part: Path) -> bool:
    """Append to `part` what it lacks; whether it is complete now."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "osora-bench"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise FailedError(f"{url}: {error.code} {error.reason}") from error
        return True  # nothing is left to get: the checksum tells whether it is the right file
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url}: {getattr(error, 'reason', error)}") from error
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        _receive(response, part, start, total)
    return total is None or part.stat().st_size == total


def _receive(response: Any, part: Path, start: int, total: int | None) -> None:
    """Write what comes until it ends or breaks off."""
    part.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise OSError(errno.ENOSPC, f"{total - start:,} bytes to come, {free:,} free", str(part))
    progress = bar(total or 0, part.name.removesuffix(".part"))
    progress.unit, progress.unit_scale = "B", True
    with part.open("ab" if start else "wb") as stream, progress:
        progress.update(start)
        while chunk := _read(response):
            stream.write(chunk)
            progress.update(len(chunk))
        stream.flush()
        sync(stream.fileno())


def _read(response: Any) -> bytes:
    """The next bytes; none at the end and where the connection broke."""
    try:
        return bytes(response.read(CHUNK))
    except (OSError, http.client.HTTPException):
        return b""


def _has(place: Path, sha256: str | None, md5: str | None, blob: str | None) -> bool:
    """Whether a file has the checksums that are known; git hashes a head before the content."""
    head = f"blob {place.stat().st_size}\0".encode()
    return (
        (md5 is None or _digest(place, "md5") == md5)
        and (blob is None or _digest(place, "sha1", head) == blob)
        and (sha256 is None or file_sha256(place) == sha256)
    )


def _digest(place: Path, kind: str, head: bytes = b"") -> str:
    with place.open("rb") as stream:
        begun = hashlib.new(kind, head, usedforsecurity=False)
        return hashlib.file_digest(stream, lambda: begun).hexdigest()
