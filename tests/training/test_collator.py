"""Batches and micro-batches: what is padded with what, and which rows go together."""

import random
from itertools import pairwise

import pytest
import torch

from osora_bench.training import collator
from osora_bench.training.collator import Collator, micro_batches, piece, with_places

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8], "labels": [8]},
    {"input_ids": [9, 3], "labels": [-100, 3]},
]


def test_rows_are_padded_on_the_right_and_the_padding_has_no_label():
    batch = Collator(2)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 2, 2], [9, 3, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100], [-100, 3, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert list(batch) == ["input_ids", "attention_mask", "labels"]


def test_places_are_those_before_a_label():
    batch = Collator(2, labelled_only=True)(ROWS)
    assert batch["logits_to_keep"].tolist() == [0, 1]
    assert batch["shift_labels"].tolist() == [[6, 7], [-100, -100], [3, -100]]
    assert batch["shift_labels"].is_contiguous()
    assert batch["labels"].tolist() == Collator(2)(ROWS)["labels"].tolist()
    few = with_places({"labels": torch.tensor([[1, -100, -100, -100, 4]])})
    assert few["logits_to_keep"].tolist() == [3]
    assert few["shift_labels"].tolist() == [[4]]
    none = with_places({"labels": torch.tensor([[1, -100]])})
    assert none["logits_to_keep"].tolist() == [0]
    assert none["logits_to_keep"].dtype == torch.int64
    assert none["shift_labels"].tolist() == [[-100]]


def test_a_cpu_ends_micro_batches_early_and_the_earlier_the_larger_the_model():
    assert piece(torch.device("cuda"), 10) is None
    assert piece(torch.device("cpu"), 2**35 // 1000) == 1000
    assert piece(torch.device("cpu"), 10**12) == 512
    assert piece(torch.device("cpu"), 2**26) == 512
    assert piece(torch.device("cpu"), 2**25) == 1024


def test_rows_go_together_by_length_longest_first():
    assert micro_batches([3, 9, 5, 7], 2) == [[1, 3], [2, 0]]
    assert micro_batches([3, 9, 5, 7, 1], 2) == [[1, 3], [2, 0], [4]]
    assert micro_batches([4, 4, 4], 5) == [[0, 1, 2]]
    assert micro_batches([], 5) == []
    assert micro_batches([10, 9, 8], 5, 20) == [[0, 1], [2]]  # 20 tokens, and 8 < 0.9 x 10
    assert micro_batches([10, 9, 9], 5, 20) == [[0, 1, 2]]
    assert micro_batches([10, 9, 8], 5, 21) == [[0, 1, 2]]
    assert micro_batches([10, 9, 8], 2, 20) == [[0, 1], [2]]


@pytest.mark.parametrize("enough", [None, 30])
def test_every_row_is_in_one_micro_batch(enough):
    """And what ends early by the rule written out is what ends early."""
    lengths = random.Random(0).choices(range(1, 20), k=50)
    found = micro_batches(lengths, 8, enough)
    assert sorted(i for rows in found for i in rows) == list(range(50))
    in_order = [lengths[i] for rows in found for i in rows]
    assert in_order == sorted(lengths, reverse=True)
    for rows, following in pairwise(found):
        longest, after = lengths[rows[0]], lengths[following[0]]
        early = enough is not None and len(rows) * longest >= enough and after < 0.9 * longest
        assert len(rows) == 8 or early
    assert collator.FILLED == 0.9
