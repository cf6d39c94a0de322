"""Every cell of every experiment runs a step, on a tiny model of its family if need be."""

import csv

import pytest
import torch
from conftest import QUICK
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from osora_bench import paths, plan, record, run, tabulate


@pytest.fixture
def tiny_qwen2(tmp_path):
    """A random Qwen2 of one layer whose v_proj has 512 outputs, as Table 3's largest rank needs."""
    folder = tmp_path / "tiny-qwen2"
    tokenizer = AutoTokenizer.from_pretrained(paths.resolve("pkg://osora_bench.toy/model"))
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def made_up_gpqa(tmp_path, monkeypatch):
    """Files of GPQA's columns and sizes with made-up questions."""
    columns = [f"unused {i}" for i in range(7)] + [
        "Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2",
        "Incorrect Answer 3", "Explanation",
    ]  # fmt: skip
    folder = tmp_path / "data" / "gpqa"
    folder.mkdir(parents=True)
    for name, rows in {"main": 448, "extended": 546, "diamond": 198}.items():
        with (folder / f"gpqa_{name}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            for i in range(rows):
                options = [str(i + j) for j in range(4)]
                writer.writerow([""] * 7 + [f"What is {i} and 0?", *options, f"{i}."])
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))


def test_every_cell_of_the_demo_runs_a_step(places, session):
    cells = plan.expand("demo", [*places, *QUICK, "trainer.max_steps=1"])
    assert run.run_missing(cells) == run.OK
    for cell in cells:
        made = record.read(cell.record)
        assert made["training"] is None or made["training"]["steps"] == 1
    tables, damaged = tabulate.build(plan.load_experiment("demo"), cells)
    assert damaged == []
    assert "a limit cut the set" in tabulate.markdown(tables[0])


def test_every_cell_of_table3_runs_a_step(places, session, tiny_qwen2, made_up_gpqa):
    smoke = [
        f"model.path={tiny_qwen2}", "model.dtype=float32", "device=cpu",
        "trainer.precision=float32", "trainer.max_steps=1",
        "eval.datasets.0.limit=4", "eval.max_out_len=4",
    ]  # fmt: skip
    cells = plan.expand("table3", [*places, *smoke])
    assert run.run_missing(cells) == run.OK
    assert len({cell.run_id for cell in cells}) == 14
    widths = {record.read(c.record)["parameters"]["trainable"] for c in cells}
    # q and v are 512 x 512: LoRA 2 x 1024 r, VeRA and OSoRA 2 (r + 512)
    assert widths == {2048 * r for r in (2, 4, 8, 16, 32, 64)} | {
        2 * (r + 512) for r in (64, 128, 256, 512)
    }
