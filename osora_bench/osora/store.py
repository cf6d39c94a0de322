"""A content-addressed store of singular value decompositions.

One file a weight, named by the hash of the weight's bytes: every rank, seed, method and later run
takes a slice of the same decomposition. The store is off until it is named: by `use_store`, or by
the environment variables OSORA_SVD_STORE (a folder) and OSORA_SVD_STORE_GB (its size limit).

Hash and checksum are XXH3 of 128 bits, over every byte: as fast as memory is read, where SHA-256
takes ten times as long as reading the file. It withstands no forgery, but whoever could forge may
write into the folder anyway; two of a million weights agree by chance with a probability of 1e-27.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .svd import Triplets, top_triplets

FORMAT = "osora-svd-2"
DEFAULT_GB = 50.0
# Up to this size decompositions are kept whole; above, the leading part apart, for the ranks in it.
WHOLE_SIZE = 1024
LEADING_SHARE = 4
NAMES = Triplets._fields


@dataclass(frozen=True)
class Entry:
    """One stored decomposition."""

    key: str
    path: Path
    shape: tuple[int, int]
    rank: int
    size: int  # bytes
    used: float  # seconds since the epoch


class SvdStore:
    """Decompositions in the folder `root`, at most `limit_gb` (1e9 bytes) of them.

    Several processes may share a folder: a lock for each weight makes them compute it once. A
    damaged or foreign file is named in a warning, computed again and replaced.
    """

    def __init__(self, root: str | Path, limit_gb: float = DEFAULT_GB) -> None:
        self.root = Path(root).expanduser()
        self.limit = int(size_limit(limit_gb) * 1e9)
        if self.root.exists() and not self.root.is_dir():
            raise ValueError(f"the store of decompositions {self.root} is no folder")
        (self.root / "locks").mkdir(parents=True, exist_ok=True)

    def get(self, weight: Tensor, r: int) -> Triplets:
        """The r largest singular triplets of `weight` (d_out, d_in), on the CPU.

        In float32 (float64 for a float64 weight), read from the store or computed and stored.
        """
        path = self.path(weight, r)
        found = self._read(path, weight)
        if found is None:
            with self._locked(path.stem):
                found = self._read(path, weight)
                if found is None:
                    found = self._compute(weight, _stored_rank(weight, r), path)
        return Triplets(found.u[:, :r], found.s[:r], found.vh[:r])

    def path(self, weight: Tensor, r: int) -> Path:
        """The file for rank `r` of `weight`, which may not be there yet."""
        return self.root / f"{content_key(weight)}-{_stored_rank(weight, r)}.safetensors"

    def entries(self) -> list[Entry]:
        """What is stored, least recently used first. Unreadable files are named in a warning."""
        found = []
        for path in self.root.glob("*.safetensors"):
            try:
                meta, _ = _header(path)
                shape = tuple(int(n) for n in meta["shape"].split("x"))
                stat = path.stat()
                entry = Entry(path.stem, path, (shape[0], shape[1]), int(meta["rank"]),
                              stat.st_size, stat.st_mtime)  # fmt: skip
            except FileNotFoundError:  # evicted by another process
                continue
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                warnings.warn(f"{path} is not readable as a decomposition: {error}", stacklevel=2)
                continue
            found.append(entry)
        return sorted(found, key=lambda entry: entry.used)

    def evict(self, limit: int, keep: Path | None = None) -> list[Entry]:
        """Remove the least recently used decompositions until at most `limit` bytes are left."""
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        removed = []
        for entry in entries:
            if total <= limit:
                break
            if entry.path != keep:
                entry.path.unlink(missing_ok=True)
                total -= entry.size
                removed.append(entry)
        return removed

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        # The kernel drops the lock when its holder dies. The file stays: removing it would let a
        # third process lock a new file of the same name while a second still waits on this one.
        with (self.root / "locks" / key).open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _compute(self, weight: Tensor, rank: int, path: Path) -> Triplets:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        found = Triplets(*(t.to("cpu", dtype) for t in top_triplets(weight, rank)))
        try:
            self._write(path, found, weight)
            self.evict(self.limit, keep=path)
        except OSError as error:
            warnings.warn(f"cannot store a decomposition as {path}: {error}", stacklevel=2)
        return found

    def _write(self, path: Path, found: Triplets, weight: Tensor) -> None:
        # u is stored transposed: the first r rows of each tensor then are one piece of the file
        tensors = {"u": found.u.T.contiguous(), "s": found.s, "vh": found.vh}
        metadata = {
            "format": FORMAT,
            "key": path.stem,
            "shape": "x".join(str(n) for n in weight.shape),
            "rank": str(len(found.s)),
            "xxh3_128": _digest(tensors),
        }
        handle, name = tempfile.mkstemp(dir=self.root, prefix=".new-")
        os.close(handle)
        try:
            save_file(tensors, name, metadata=metadata)
            with Path(name).open("rb") as file:
                os.fsync(file.fileno())
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)

    def _read(self, path: Path, weight: Tensor) -> Triplets | None:
        """The stored triplets, None if there are none or the file is not sound."""
        try:
            meta, tensors = _header(path, load=True)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            warnings.warn(f"{path} is damaged ({error}); it is computed again", stacklevel=3)
            return None
        expected = (path.stem, "x".join(str(n) for n in weight.shape))
        if (meta["key"], meta["shape"]) != expected or _digest(tensors) != meta["xxh3_128"]:
            warnings.warn(
                f"{path} is not what its name or checksum says; it is computed again", stacklevel=3
            )
            return None
        os.utime(path)
        return Triplets(tensors["u"].T, tensors["s"], tensors["vh"])


def size_limit(value: float | str) -> float:
    """A store's size limit in units of 1e9 bytes; ValueError if it is no number above 0."""
    try:
        limit = float(value)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise ValueError(f"the store's size limit (GB) must be a number above 0, not {value!r}")
    return limit


def _header(path: Path, load: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata of a stored file, and its (memory-mapped) tensors if asked for."""
    if not path.exists():
        raise FileNotFoundError(path)
    with safe_open(path, framework="pt") as file:
        meta: dict[str, str] = file.metadata() or {}
        if meta.get("format") != FORMAT:
            raise ValueError(f"its format is {meta.get('format')!r}, not {FORMAT!r}")
        missing = {"key", "shape", "rank", "xxh3_128"} - set(meta) | set(NAMES) - set(file.keys())
        if missing:
            raise ValueError(f"without {', '.join(sorted(missing))}")
        return meta, {name: file.get_tensor(name) for name in NAMES} if load else {}


def _stored_rank(weight: Tensor, r: int) -> int:
    """Triplets in the file that serves rank `r`: of weight and rank alone, since the last bits of a
    decomposition depend on how much of it was computed. A rank that cannot be is its own."""
    whole = min(weight.shape)
    leading = whole if whole <= WHOLE_SIZE else whole // LEADING_SHARE
    return next((n for n in (leading, whole) if 1 <= r <= n), r)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name in NAMES:
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    """The tensor's bytes as a buffer, also for types that NumPy lacks."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def content_key(weight: Tensor) -> str:
    """Hash of dtype, shape and bytes of a weight (d_out, d_in)."""
    digest = xxhash.xxh3_128(f"{weight.dtype} {tuple(weight.shape)} ".encode())
    digest.update(_bytes(weight))
    return digest.hexdigest()


_chosen: ContextVar[SvdStore | None] = ContextVar("osora_svd_store", default=None)


@contextlib.contextmanager
def use_store(store: SvdStore | None) -> Iterator[None]:
    """Within the block, decompositions come from `store` (None: the environment's, if any)."""
    token = _chosen.set(store)
    try:
        yield
    finally:
        _chosen.reset(token)


def current_store() -> SvdStore | None:
    """The store in use: that of `use_store`, else that of OSORA_SVD_STORE, else none."""
    store = _chosen.get()
    root = os.environ.get("OSORA_SVD_STORE")
    if store is not None or not root:
        return store
    return SvdStore(root, size_limit(os.environ.get("OSORA_SVD_STORE_GB", DEFAULT_GB)))


def decompose(weight: Tensor, r: int) -> Triplets:
    """The r largest singular triplets of `weight` on its device, from the store if one is in use.

    In float32 (float64 for a float64 weight); accuracy and errors as `top_triplets`.
    """
    store = current_store()
    found = top_triplets(weight, r) if store is None else store.get(weight, r)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    # one layout wherever they come from: another one is another order of sums in what uses them
    return Triplets(*(t.to(weight.device, dtype).contiguous() for t in found))
