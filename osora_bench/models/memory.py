"""How much memory a batch may take on this machine, and how many threads compute."""

import os

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


def bound_threads(allowance: Allowance = OURS) -> None:
    """Have torch compute on no more threads than the process may use processors: it sees the
    affinity by itself, but no quota. OMP_NUM_THREADS, where it is set, is somebody's word.

    Raises:
        UserError: as `Allowance.processors`.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), allowance.processors()))
