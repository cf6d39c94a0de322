"""What of a machine this process may use: processors and memory.

A container, a SLURM job and a systemd unit have a share of the machine. The kernel holds them to it
by control groups: a tree of folders for each controller (version 1) or one for all (version 2), in
which the limit of each group above the process's own holds as well.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from osora_bench.common.errors import UserError

SLURM_CPUS = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
"""What a job's task may use; the first is there only where it was asked for. Without the plugin
that confines tasks, nothing else says it."""


@dataclass(frozen=True)
class Allowance:
    """What a process may use, read anew at each call.

    Attributes:
        groups: says which control groups the process is in: /proc/self/cgroup.
        mount: where their folders lie: /sys/fs/cgroup.
        environment: variables, of which SLURM's are read.
    """

    groups: Path = Path("/proc/self/cgroup")
    mount: Path = Path("/sys/fs/cgroup")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def processors(self) -> int:
        """Processors that may be used at once: the least of the affinity, the quotas of the
        control groups and the share of a SLURM job's task; at least 1.

        Of a quota of 2.5, 2: threads that wait spin, and a quota that is used up stops them all.

        Raises:
            UserError: SLURM's variable holds no number.
        """
        known = [float(len(os.sched_getaffinity(0))), *self._quotas(), *self._of_task()]
        return max(1, math.floor(min(known)))

    def memory_limit(self) -> float:
        """Bytes that may be used in all; infinity where no control group limits them."""
        return min((limit for limit, _ in self._memory()), default=math.inf)

    def memory_left(self) -> float:
        """Bytes that are left in the group that has least left; infinity where none is limited."""
        return min((max(0.0, limit - used) for limit, used in self._memory()), default=math.inf)

    def _quotas(self) -> Iterator[float]:
        """In processors."""
        for folder in self._chain(None):
            if (words := _words(folder / "cpu.max")) and words[0] != "max":
                yield int(words[0]) / int(words[1])
        for folder in self._chain("cpu"):
            quota, period = (_words(folder / f"cpu.cfs_{n}_us") for n in ("quota", "period"))
            if quota and period and int(quota[0]) > 0:
                yield int(quota[0]) / int(period[0])

    def _of_task(self) -> Iterator[float]:
        name = next((name for name in SLURM_CPUS if name in self.environment), None)
        if name is None or "SLURM_JOB_ID" not in self.environment:
            return
        value = self.environment[name]
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"{name}={value}: not a number of processors; unset it")
        yield float(value)

    def _memory(self) -> Iterator[tuple[float, float]]:
        """Limit and use of each group that is limited, in bytes. The files in its page cache that
        nobody has used lately give way, so that they count as free."""
        for folder in self._chain(None):
            # above `high` a process is not killed but stopped until memory is free
            limit = min(_bytes(folder / f"memory.{name}") for name in ("max", "high"))
            if limit < math.inf:
                yield limit, _used(folder, "memory.current", "inactive_file")
        for folder in self._chain("memory"):
            limit = _bytes(folder / "memory.limit_in_bytes")
            if limit < math.inf:
                yield limit, _used(folder, "memory.usage_in_bytes", "total_inactive_file")
            if _words(folder.parent / "memory.use_hierarchy") == ["0"]:
                return  # what is above does not hold for it

    def _chain(self, controller: str | None) -> Iterator[Path]:
        """The folders of the process's group and of those above it; None: of version 2."""
        path = self._group(controller)
        if path is None:
            return
        names = [controller] if controller else [".", "unified"]
        tops = [self.mount / name for name in names if (self.mount / name).is_dir()]
        for top in tops:
            # in a container the path may be the host's, and what is mounted a part of its tree
            parts = [part for part in path.split("/") if part not in ("", "..")]
            ways = (top.joinpath(*parts[i:]) for i in range(len(parts) + 1))
            folder = next(way for way in ways if way.is_dir())
            yield folder
            while folder != top:
                folder = folder.parent
                yield folder

    def _group(self, controller: str | None) -> str | None:
        """The process's group in a controller's tree, by lines `number:controllers:/path`."""
        try:
            lines = self.groups.read_text(encoding="utf-8").splitlines()
        except OSError:  # no control groups in this kernel, or /proc is hidden: nothing is limited
            return None
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers == "" if controller is None else controller in controllers.split(","):
                return path
        return None


OURS = Allowance()
"""This process's."""


def _words(place: Path) -> list[str]:
    """Of a file of a control group; none where it does not have it."""
    try:
        return place.read_text(encoding="ascii").split()
    except OSError:
        return []


def _bytes(place: Path) -> float:
    words = _words(place)
    value = math.inf if not words or words[0] == "max" else float(words[0])
    return math.inf if value >= 1 << 60 else value  # how version 1 says that there is none


def _used(folder: Path, name: str, cached: str) -> float:
    words = _words(folder / "memory.stat")
    free = float(dict(zip(words[::2], words[1::2], strict=False)).get(cached, 0))
    return float((_words(folder / name) or ["0"])[0]) - free
