"""How an optimiser step's rows are shared out."""

import random

import pytest
import torch

from osora_bench.models import adapters
from osora_bench.training import collator, train
from osora_bench.training.collator import micro_batches
from osora_bench.training.data import TokenisedTask
from tests.conftest import QUICK


def padding(lengths, shares):
    padded = sum(len(share) * max(lengths[i] for i in share) for share in shares)
    return 1 - sum(lengths) / padded


@pytest.mark.parametrize("enough", [None, 256])
@pytest.mark.parametrize("most_rows", [1, 3, 8])
def test_every_row_once_longest_first_and_no_more_than_fit(enough, most_rows):
    chance = random.Random(most_rows)
    lengths = [chance.randint(20, 200) for _ in range(37)]
    shares = micro_batches(lengths, most_rows, enough)
    assert sorted(i for share in shares for i in share) == list(range(37))
    assert max(map(len, shares)) <= most_rows
    in_order = [lengths[i] for share in shares for i in share]
    assert in_order == sorted(lengths, reverse=True)


def test_without_fine_shares_there_are_as_few_as_can_be():
    assert len(micro_batches([9, 3, 100, 4, 5], 2)) == 3


def test_padding_is_below_a_tenth():
    """Rows as long as CommonsenseQA's: 63 to 106 tokens, eight at a time of a step's 32."""
    chance = random.Random(0)
    for _ in range(20):
        lengths = [chance.randint(63, 106) for _ in range(32)]
        assert padding(lengths, micro_batches(lengths, 8, 256)) < 0.1
        assert padding(lengths, [list(range(i, i + 8)) for i in range(0, 32, 8)]) > 0.1


def test_short_rows_are_not_split_for_padding_s_sake():
    assert len(micro_batches([30, 10, 5, 2], 8, 256)) == 1


@pytest.mark.parametrize("method", ["lora", "osora"])
def test_shares_do_not_change_what_is_trained(make_cell, session, tmp_path, method, monkeypatch):
    """Steps of 16 rows, all at once, two at a time, or in fine shares: equal but for round-off."""
    losses, adapters = [], []
    for index, (rows, work) in enumerate([(16, 2**60), (2, 2**60), (8, 1)]):
        monkeypatch.setattr(collator, "PIECE", 64)
        monkeypatch.setattr(collator, "PIECE_WORK", work)
        cell = make_cell(
            f"method={method}", *QUICK, "trainer.max_steps=5", "trainer.batch_size=16",
            f"trainer.micro_batch_size={rows}", f"runs={tmp_path}/{index}",
        )  # fmt: skip
        training, adapter = trained(cell, session)
        losses.append([loss for _, loss in training.loss])
        adapters.append(adapter)
    for loss, adapter in zip(losses[1:], adapters[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        torch.testing.assert_close(adapter, adapters[0], rtol=1e-2, atol=2e-4)  # Adam's first steps


def trained(cell, session):
    base = session.workspace.base(cell.config)
    torch.manual_seed(0)
    model = adapters.with_fresh_adapter(base.model, cell)
    rows = session.tokenised(cell, base.tokenizer)
    setup = train.TrainingSetup(
        cell.config, rows=TokenisedTask(rows.rows, 0), held_out=None,
        pad_token_id=base.tokenizer.pad_token_id, checkpoints=cell.paths.trainer,
        device=torch.device("cpu"), label="", log=lambda _: None,
    )  # fmt: skip
    try:
        training = train.train(model, setup)
        weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
        return training, weights.clone()
    finally:
        session.workspace.release(model)


def test_a_small_model_s_rows_stay_together_and_a_gpu_s():
    """SmolLM2-135M's products are worth more than a micro-batch's operations; the toy's are not."""
    assert collator.piece(torch.device("cpu"), 135_000_000) == 512
    assert collator.piece(torch.device("cpu"), 700_000) > 32 * 46
    assert collator.piece(torch.device("cuda"), 7 * 10**9) is None
