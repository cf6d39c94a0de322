"""The most memory of a stretch of work, by the kernel's mark and by samples."""

import time

import numpy as np
import pytest
import torch

from osora_bench.models.memory import Peak

CPU = torch.device("cpu")
MB = 1 << 20


@pytest.fixture(params=["kernel", "sampled"])
def options(request, tmp_path):
    return {} if request.param == "kernel" else {"kernel": tmp_path / "none", "every": 0.002}


def use(megabytes, seconds=0.05):
    held = np.ones(megabytes * MB, dtype=np.uint8)
    time.sleep(seconds)
    del held


def test_a_peak_is_of_its_own_stretch(options):
    use(300)
    peak = Peak(CPU, **options)
    use(100)
    found = (peak.end() - peak.before) / MB
    assert 95 < found < 130
    after = Peak(CPU, **options)
    assert (after.end() - after.before) / MB < 20


def test_an_outer_one_keeps_what_it_has_seen(options):
    outer = Peak(CPU, **options)
    use(200)
    inner = Peak(CPU, **options)
    use(50)
    assert 45 < (inner.end() - inner.before) / MB < 80
    assert 195 < (outer.end() - outer.before) / MB < 240
