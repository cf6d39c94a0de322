"""How much memory a batch may take on this machine."""

from pathlib import Path

import psutil
import torch

SHARE = 0.5
"""Of what is free: the rest is for activations, the libraries and the neighbours."""
MOST_ROWS = {"cpu": 128, "cuda": 512}
"""Beyond these, more rows a batch answer no more questions a second."""
CGROUP = Path("/sys/fs/cgroup")


def for_batches(device: torch.device) -> int:
    """Bytes that the keys, values and logits of a batch may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # what torch keeps for itself and does not use is free as well
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = min(psutil.virtual_memory().available, _group_free())
    return int(free * SHARE)


def used(device: torch.device) -> int:
    """Bytes that this process has now: on the GPU the most since its start, else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def _group_free() -> float:
    """Bytes that are left within the memory limit of the process's control group, if it has one."""
    limit, usage = CGROUP / "memory.max", CGROUP / "memory.current"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return float("inf")
    return max(0, int(limit.read_text()) - int(usage.read_text()))
