"""Processors and memory that a process may use, on trees as kernels lay out control groups."""

import math
import os

import psutil
import pytest
import torch

from osora_bench.common.allowance import Allowance
from osora_bench.common.errors import UserError
from osora_bench.models import memory

GB = 10**9
UNLIMITED = 9223372036854771712
"""How version 1 writes that there is no limit."""


@pytest.fixture
def tree(tmp_path):
    """Make an allowance from the lines of /proc/self/cgroup and the files of /sys/fs/cgroup."""

    def make(lines, files=(), **environment):
        (tmp_path / "self").write_text("".join(f"{line}\n" for line in lines))
        for name, content in dict(files).items():
            place = tmp_path / "cgroup" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(f"{content}\n")
        return Allowance(tmp_path / "self", tmp_path / "cgroup", environment)

    return make


@pytest.fixture
def many_processors(monkeypatch):
    """A machine with 64, of which the scheduler gives the process all."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


ONE, TWO = "4:memory,cpu,cpuacct:", "0::"
MEMORY = {
    "version 2, its own": ([TWO + "/a"], {"a/memory.max": 3 * GB, "a/memory.current": GB}, 3, 2),
    "version 2, a parent's": (
        [TWO + "/a/b/c"],
        {
            "a/memory.max": 4 * GB,
            "a/memory.current": 3.5e9,
            "a/b/memory.max": "max",
            "a/b/c/memory.max": 8 * GB,
            "a/b/c/memory.current": GB,
        },
        4,
        0.5,
    ),
    "version 2, the least limit is not where least is left": (
        [TWO + "/a/b"],
        {
            "a/memory.max": 9 * GB,
            "a/memory.current": 8 * GB,
            "a/b/memory.max": 5 * GB,
            "a/b/memory.current": GB,
        },
        5,
        1,
    ),
    "version 2, none": ([TWO + "/a"], {"a/memory.max": "max"}, math.inf, math.inf),
    "version 2 in a namespace": ([TWO + "/"], {"memory.max": 3 * GB}, 3, 3),
    "version 2, from outside a namespace": ([TWO + "/../../a"], {"a/memory.max": GB}, 1, 1),
    "version 2, a soft limit": (
        [TWO + "/a"],
        {"a/memory.max": 3 * GB, "a/memory.high": 2 * GB},
        2,
        2,
    ),
    "version 2, unused files in the page cache": (
        [TWO + "/a"],
        {
            "a/memory.max": 4 * GB,
            "a/memory.current": 4 * GB,
            "a/memory.stat": f"anon {GB}\ninactive_file {3 * GB}\nactive_file 0",
        },
        4,
        3,
    ),
    "version 1, its own": (
        [ONE + "/a"],
        {"memory/a/memory.limit_in_bytes": 3 * GB, "memory/a/memory.usage_in_bytes": GB},
        3,
        2,
    ),
    "version 1, a parent's": (
        [ONE + "/a/b"],
        {
            "memory/a/memory.limit_in_bytes": 2 * GB,
            "memory/a/memory.use_hierarchy": 1,
            "memory/a/b/memory.limit_in_bytes": UNLIMITED,
        },
        2,
        2,
    ),
    "version 1, a parent's that does not hold": (
        [ONE + "/a/b"],
        {
            "memory/a/memory.limit_in_bytes": 2 * GB,
            "memory/a/memory.use_hierarchy": 0,
            "memory/a/b/memory.limit_in_bytes": 7 * GB,
        },
        7,
        7,
    ),
    "version 1, none": (
        [ONE + "/a"],
        {"memory/a/memory.limit_in_bytes": UNLIMITED},
        math.inf,
        math.inf,
    ),
    "version 1 in a container that sees the host's path": (
        [ONE + "/docker/0123"],
        {"memory/memory.limit_in_bytes": 3 * GB, "memory/memory.usage_in_bytes": GB},
        3,
        2,
    ),
    "version 1, a group in such a container": (
        [ONE + "/docker/0123/own"],
        {
            "memory/memory.limit_in_bytes": 3 * GB,
            "memory/own/memory.limit_in_bytes": 2 * GB,
        },
        2,
        2,
    ),
    "both, memory in version 1": (
        [ONE + "/a", TWO + "/b"],
        {"memory/a/memory.limit_in_bytes": 3 * GB, "unified/b/cgroup.procs": ""},
        3,
        3,
    ),
    "both, memory in version 2": (
        ["1:name=systemd:/a", TWO + "/b"],
        {"unified/b/memory.max": 3 * GB, "systemd/a/tasks": ""},
        3,
        3,
    ),
    "another's": ([TWO + "/a"], {"a/memory.max": "max", "b/memory.max": GB}, math.inf, math.inf),
    "no control groups": ([], {}, math.inf, math.inf),
}


@pytest.mark.parametrize("case", MEMORY)
def test_memory_is_that_of_the_process_own_groups(case, tree):
    lines, files, limit, left = MEMORY[case]
    allowance = tree(lines, files)
    assert allowance.memory_limit() == limit * GB
    assert allowance.memory_left() == left * GB


def test_a_kernel_without_control_groups_limits_nothing(tmp_path):
    allowance = Allowance(tmp_path / "none", tmp_path / "none", {})
    assert allowance.memory_limit() == math.inf
    assert allowance.processors() == len(os.sched_getaffinity(0))


def test_a_batch_takes_its_share_of_what_the_groups_leave(tree):
    cpu = torch.device("cpu")
    limited = tree([TWO + "/a"], {"a/memory.max": 1000, "a/memory.current": 400})
    assert memory.for_batches(cpu, limited) == 300
    free = memory.SHARE * psutil.virtual_memory().available
    assert memory.for_batches(cpu, tree([TWO + "/b"])) == pytest.approx(free, rel=0.2)


PROCESSORS = {
    "nothing": ([TWO + "/"], {}, {}, 64),
    "version 2": ([TWO + "/a"], {"a/cpu.max": "400000 100000"}, {}, 4),
    "version 2, none": ([TWO + "/a"], {"a/cpu.max": "max 100000"}, {}, 64),
    "version 2, a parent's": (
        [TWO + "/a/b"],
        {"a/cpu.max": "300000 100000", "a/b/cpu.max": "800000 100000"},
        {},
        3,
    ),
    "version 2, parts of one": ([TWO + "/a"], {"a/cpu.max": "250000 100000"}, {}, 2),
    "version 2, less than one": ([TWO + "/a"], {"a/cpu.max": "20000 100000"}, {}, 1),
    "version 1": (
        [ONE + "/a"],
        {"cpu/a/cpu.cfs_quota_us": 150000, "cpu/a/cpu.cfs_period_us": 50000},
        {},
        3,
    ),
    "version 1, none": (
        [ONE + "/a"],
        {"cpu/a/cpu.cfs_quota_us": -1, "cpu/a/cpu.cfs_period_us": 100000},
        {},
        64,
    ),
    "version 1, a parent's": (
        [ONE + "/a/b"],
        {
            "cpu/a/cpu.cfs_quota_us": 200000,
            "cpu/a/cpu.cfs_period_us": 100000,
            "cpu/a/b/cpu.cfs_quota_us": -1,
            "cpu/a/b/cpu.cfs_period_us": 100000,
        },
        {},
        2,
    ),
    "SLURM's task": ([], {}, {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "5"}, 5),
    "SLURM's job": ([], {}, {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "6"}, 6),
    "SLURM's task in its job": (
        [],
        {},
        {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "6", "SLURM_CPUS_PER_TASK": "2"},
        2,
    ),
    "more by SLURM than by quota": (
        [TWO + "/a"],
        {"a/cpu.max": "300000 100000"},
        {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "5"},
        3,
    ),
    "what is set for sbatch, outside a job": ([], {}, {"SLURM_CPUS_PER_TASK": "5"}, 64),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_processors_are_the_least_that_anything_allows(case, tree, many_processors):
    lines, files, environment, expected = PROCESSORS[case]
    assert tree(lines, files, **environment).processors() == expected


def test_the_affinity_counts_not_the_machine(tree):
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert tree([]).processors() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("value", ["", "two", "0", "2(x3)"])
def test_a_variable_of_slurm_that_is_no_number_is_told(value, tree):
    allowance = tree([], SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK=value)
    with pytest.raises(UserError, match="SLURM_CPUS_PER_TASK=.*: not a number of processors"):
        allowance.processors()


@pytest.mark.parametrize(("variable", "threads"), [(None, 1), ("2", 2)])
def test_torch_takes_no_more_threads_than_there_are_processors_for(
    variable, threads, tree, two_threads, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    memory.bound_threads(tree([TWO + "/a"], {"a/cpu.max": "100000 100000"}))
    assert torch.get_num_threads() == threads
