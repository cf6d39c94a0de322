"""What vouches for base weights."""

import pytest
import torch
from torch import nn

from osora_bench.models.base import checksum, checksums


def test_a_constant_tensor_that_changes_as_a_whole_is_another():
    """An even number of like words cancels in an XOR, whatever they are."""
    zeros, ones = torch.zeros(64), torch.ones(64)
    assert len({checksum(t) for t in (zeros, ones, 1.5 * ones)}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.uint8])
@pytest.mark.parametrize("count", [1, 3, 7, 64])
def test_every_number_counts_wherever_it_lies(dtype, count):
    tensor = torch.ones(count).to(dtype)
    placed = torch.ones(count + 1).to(dtype)[1:]  # memory that begins within a word
    assert checksum(placed) == checksum(tensor)
    for place in {0, count // 2, count - 1}:
        changed = tensor.clone()
        changed[place] = 0
        assert checksum(changed) != checksum(tensor)


def test_layout_and_shape_do_not_count_and_nothing_is_zero():
    matrix = torch.randn(4, 6)
    assert checksum(matrix.T.contiguous().T) == checksum(matrix)
    assert checksum(torch.tensor(2.5)) == checksum(torch.tensor([2.5]))
    assert checksum(torch.empty(0, 5)) == 0


def test_checksums_are_of_parameters_and_buffers():
    model = nn.BatchNorm1d(4)
    before = checksums(model)
    assert set(before) == set(model.state_dict())
    model.running_mean += 1
    after = checksums(model)
    assert [name for name in before if before[name] != after[name]] == ["running_mean"]
