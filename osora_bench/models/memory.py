"""How much memory a batch may take on this machine, what was used, and how many threads compute."""

import ctypes
import os
import threading
from pathlib import Path

import psutil
import torch

from osora_bench.common.allowance import OURS, Allowance

SHARE = 0.5
"""Of what is free: the rest is for activations, the libraries and the neighbours."""
MOST_ROWS = {"cpu": 128, "cuda": 512}
"""Beyond these, more rows a batch answer no more questions a second."""


def for_batches(device: torch.device, allowance: Allowance = OURS) -> int:
    """Bytes that the keys, values and logits of a batch may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # what torch keeps for itself and does not use is free as well
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = min(psutil.virtual_memory().available, allowance.memory_left())
    return int(free * SHARE)


def used(device: torch.device) -> int:
    """Bytes that this process has now: on the GPU the most since its start, else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


class Peak:
    """The most memory that this process has from now on: of a GPU what torch has allocated, else
    what is resident.

    `ru_maxrss` never falls, so that a later cell would inherit an earlier one's. Linux forgets the
    high-water mark when it is asked to; where it does not, the memory is sampled. One may begin
    while another counts, which keeps what it has seen.

    Attributes:
        before: bytes when it began, once what is not needed was given back.
    """

    def __init__(
        self, device: torch.device, kernel: Path = Path("/proc/self"), every: float = 0.01
    ) -> None:
        self.device, self._kernel, self._every = device, kernel, every
        self._sampled: int | None = None
        self._ended = threading.Event()
        self._seen = 0
        for other in _counting:
            other._seen = other.most()
        _counting.append(self)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        _give_back()
        self.before = int(psutil.Process().memory_info().rss)
        try:
            (kernel / "clear_refs").write_text("5")  # proc(5): resets VmHWM
        except OSError:
            self._sampled = self.before
            threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(self._every):
            self._sampled = max(self._sampled or 0, int(own.memory_info().rss))

    def most(self) -> int:
        """Bytes, the most until now."""
        return max(self._seen, self._mark())

    def _mark(self) -> int:
        """The most since one began last."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self._sampled is not None:
            return max(self._sampled, int(psutil.Process().memory_info().rss))
        lines = (self._kernel / "status").read_text(encoding="ascii", errors="replace").splitlines()
        (mark,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(mark) << 10

    def end(self) -> int:
        """Count no more; the bytes of the most."""
        self._ended.set()
        self._seen = self.most()
        _counting.remove(self)
        return self._seen


_counting: list[Peak] = []


def _give_back() -> None:
    """Have the C library give freed memory back, which would count as resident; glibc's can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def bound_threads(allowance: Allowance = OURS) -> None:
    """Have torch compute on no more threads than the process may use processors: it sees the
    affinity by itself, but no quota. OMP_NUM_THREADS, where it is set, is somebody's word.

    Raises:
        UserError: as `Allowance.processors`.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), allowance.processors()))
