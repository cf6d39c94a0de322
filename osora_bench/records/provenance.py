"""Where a record comes from: commit, dirty flag, versions of what computes, hardware."""

import importlib.metadata
import os
import platform
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from osora_bench.records.code_state import CHANGED, code
from osora_bench.records.schema import Circumstances, Code

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "osora-bench",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "datasets",
    "opencompass",
    "numpy",
)
OPTIONAL = ("bitsandbytes",)
"""Named where they are installed."""


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part in the numbers."""
    by_package = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            by_package[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            by_package[name] = "not installed"
    for name in OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            by_package[name] = importlib.metadata.version(name)
    return by_package


def hardware(device: "torch.device", processes: int = 1) -> dict[str, Any]:
    """What ran, as far as it can change round-off, and how many processes shared its training."""
    shared = {"processes": processes} if processes > 1 else {}
    return {**_device(device), **shared}


def _device(device: "torch.device") -> dict[str, Any]:
    import torch

    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {
        "device": f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
    }


def circumstances(device: "torch.device", processes: int = 1) -> Circumstances:
    """Everything above, for a record, with a mark where a sweep's code changed under it."""
    state = code()
    source = Code(commit=state["commit"], dirty=state["dirty"], diff=state["diff"])
    result = Circumstances(code=source, versions=versions(), hardware=hardware(device, processes))
    if CHANGED in os.environ:
        result["changed_since_plan"] = True
    return result
