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
import errno
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .saving import save_tensors
from .svd import Triplets, top_triplets

FORMAT = "osora-svd-2"
DEFAULT_GB = 50.0
# Up to this size decompositions are kept whole; above, the leading part apart, for the ranks in it.
WHOLE_SIZE = 1024
LEADING_SHARE = 4
NAMES = Triplets._fields
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_told: set[tuple[Path, str]] = set()
"""What this process has said of which store: each thing once."""


@dataclass(frozen=True)
class Entry:
    """One stored decomposition."""

    key: str
    path: Path
    shape: tuple[int, int]
    rank: int
    size: int  # bytes
    used: float  # seconds since the epoch
    owner: int  # id of the user whose file it is


class SvdStore:
    """Decompositions in the folder `root`, at most `limit_gb` (1e9 bytes) of them.

    Several processes may share a folder: a lock for each weight makes them compute it once. A
    damaged or foreign file is named in a warning, computed again and replaced.

    Several users may, too. A store that can be read and not written serves what it has, and what it
    lacks is computed and not stored. A file that this user may not read stays as it is, and no
    user's files make room for another's. Each of these is said once, in a warning.

    Raises:
        ValueError: `root` is no folder, can neither be read nor made, or is below an unknown home;
            a size limit that is no number above 0.
    """

    def __init__(self, root: str | Path, limit_gb: float = DEFAULT_GB) -> None:
        try:
            self.root = Path(root).expanduser()
        except RuntimeError as error:
            raise ValueError(f"the store of decompositions {root}: {error}") from error
        self.limit = int(size_limit(limit_gb) * 1e9)
        try:
            if self.root.exists() and not self.root.is_dir():
                raise ValueError(f"the store of decompositions {self.root} is no folder")
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not os.access(self.root, os.R_OK | os.X_OK):
                raise ValueError(_cannot_use(self.root, error.strerror)) from error
            # what it holds can be read; what it lacks is another matter, told when it comes to it
        if not os.access(self.root, os.R_OK | os.X_OK):
            raise ValueError(_cannot_use(self.root, "it may not be read"))

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
            if self._withheld(path):
                continue
            try:
                meta, _ = _header(path)
                shape = tuple(int(n) for n in meta["shape"].split("x"))
                stat = path.stat()
                entry = Entry(path.stem, path, (shape[0], shape[1]), int(meta["rank"]),
                              stat.st_size, stat.st_mtime, stat.st_uid)  # fmt: skip
            except FileNotFoundError:  # evicted by another process
                continue
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                warnings.warn(f"{path} is not readable as a decomposition: {error}", stacklevel=2)
                continue
            found.append(entry)
        return sorted(found, key=lambda entry: entry.used)

    def evict(self, limit: int, keep: Path | None = None, own: bool = False) -> list[Entry]:
        """Remove the least recently used decompositions until at most `limit` bytes are left; of
        this user's own alone, if that is said."""
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        removed = []
        for entry in entries:
            if total <= limit:
                break
            if entry.path != keep and (not own or entry.owner == _this_user()):
                entry.path.unlink(missing_ok=True)
                total -= entry.size
                removed.append(entry)
        if own and total > limit and any(entry.owner != _this_user() for entry in entries):
            self._tell(
                "full",
                f"holds {total / 1e9:.3g} GB, above its limit of {limit / 1e9:.3g}: other users' "
                "files stay; `osora-bench svd clean` removes them",
            )
        return removed

    def _withheld(self, path: Path) -> bool:
        """Whether a file is there and this user may not read it, which is said."""
        if not path.exists() or os.access(path, os.R_OK):
            return False
        self._tell(
            "withheld",
            f"holds files that this user may not read, such as {path.name} of user "
            f"{path.stat().st_uid}: they are computed anew for this run and left as they are. "
            "Their owner can let others read them: chmod a+r",
        )
        return True

    def _tell(self, what: str, line: str) -> None:
        """Say something of this store, once a process."""
        if (self.root, what) not in _told:
            _told.add((self.root, what))
            warnings.warn(f"the store of decompositions {self.root} {line}", stacklevel=4)

    def _tell_unwritable(self) -> None:
        self._tell(
            "unwritable",
            "cannot be written by this user: what it has is used, what it lacks is computed and "
            "not stored",
        )

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        # The kernel drops the lock when its holder dies. The file stays: removing it would let a
        # third process lock a new file of the same name while a second still waits on this one.
        with contextlib.ExitStack() as held:
            try:
                handle = held.enter_context(_lock_file(self.root / "locks" / key))
                _lock(handle)
            except OSError as error:
                # files are written whole: without a lock two processes may only compute one twice
                if error.errno in REFUSED | {errno.ENOENT}:
                    self._tell_unwritable()
                else:
                    self._tell(
                        "unlocked",
                        f"has no locks here (flock: {error.strerror}): processes that start "
                        "together may each compute the same decomposition",
                    )
            yield

    def _compute(self, weight: Tensor, rank: int, path: Path) -> Triplets:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        found = Triplets(*(t.to("cpu", dtype) for t in top_triplets(weight, rank)))
        if self._withheld(path):  # whatever it is, it is not this user's to replace
            return found
        try:
            self._write(path, found, weight)
            self.evict(self.limit, keep=path, own=True)
        except OSError as error:
            if error.errno in REFUSED:
                self._tell_unwritable()
            else:
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
            save_tensors(tensors, Path(name), metadata)
            with Path(name).open("rb") as file:
                os.fsync(file.fileno())
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)

    def _read(self, path: Path, weight: Tensor) -> Triplets | None:
        """The stored triplets, None if there are none, the file is not sound or not to be read."""
        if self._withheld(path):
            return None
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
        with contextlib.suppress(OSError):  # of another user, or not to be written: as it was
            os.utime(path)
        return Triplets(tensors["u"].T, tensors["s"], tensors["vh"])


def _cannot_use(root: Path, reason: str | None) -> str:
    return (
        f"the store of decompositions {root} can be neither read nor written ({reason}): have its "
        "owner let this user read it (chmod -R a+rX), or name another folder"
    )


def _lock_file(path: Path) -> IO[str]:
    """A file to lock; that of another user may be one to read only, which is enough."""
    try:
        return path.open("a")
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return path.open()


def _lock(handle: IO[str]) -> None:
    """Wait for the lock on a file; OSError where there are none, as on Windows."""
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOSYS, f"not on {sys.platform}") from error
    fcntl.flock(handle, fcntl.LOCK_EX)


def _this_user() -> int:
    """As files give their owner: 0 for all of them where users have no numbers (Windows)."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


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
