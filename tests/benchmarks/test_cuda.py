"""The benchmarks for a GPU, on a CPU with tiny shapes: all of their code but the card."""

import pytest

from benchmarks.cuda import answering, cells, decomposition, shapes, step, training, vllm
from benchmarks.rows import LeftOut
from osora_bench.records.record import pack


@pytest.mark.parametrize(("name", "told"), [
    ("NVIDIA H100 80GB HBM3", "50% of 989 TFLOP/s"),
    ("NVIDIA H100 PCIe", "65% of 756 TFLOP/s"),
    ("NVIDIA L40S", "137% of 362 TFLOP/s"),
    ("A card of tomorrow", "494 TFLOP/s (the peak of A card of tomorrow is not in shapes.py)"),
])  # fmt: skip
def test_the_share_of_a_cards_peak(name, told, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: name)
    assert shapes.share_of_peak(494.5e12, "cuda") == told


def test_the_shapes_are_those_of_7b_models():
    """Of a step's products, 4 operations a weight of the layers and the output layer."""
    model = shapes.base_model("mistral-7b-instruct-v0.3", "meta", tiny=False)
    layer = 2 * 4096**2 + 2 * 1024 * 4096 + 3 * 14336 * 4096
    assert shapes.operations(model) == 4 * (2 * layer + 32768 * 4096)
    assert shapes.rank_of(model) == 512


@pytest.mark.long
@pytest.mark.parametrize(("module", "count", "settings"), [
    (training, 2, {"pairs": 1}),
    (step, 8, {"pairs": 1}),
    (decomposition, 3, {"pairs": 1}),
    (answering, 4, {"repeats": 1}),
    (cells, 1, {}),
], ids=["training", "step", "decomposition", "answering", "cells"])  # fmt: skip
def test_the_code_for_a_gpu_runs_on_a_cpu_with_tiny_shapes(module, count, settings):
    found = list(module.rows(device="cpu", tiny=True, **settings))
    assert len(found) == count
    assert all(row.ratio is not None and row.ratio[1] > 0 for row in found)


def test_two_runs_of_a_cell_that_differ_are_told():
    def record(losses, right):
        curve = [[i, loss] for i, loss in enumerate(losses)]
        score = {"right": pack([letter == "r" for letter in right]), "n": len(right)}
        return {"training": {"loss": curve}, "scores": {"a": score},
                "measured": {"seconds": {"total": 2.0}}}  # fmt: skip

    cpu = record([1.0, 2.0], "rrwww")
    assert not cells.compared("x", record([1.0, 2.001], "rwrww"), cpu).missed
    assert cells.compared("x", record([1.0, 2.1], "rrwww"), cpu).missed
    assert cells.compared("x", record([1.0, 2.0], "wwrww"), cpu).missed


def test_without_vllm_a_line_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LeftOut, match="vLLM"):
        next(iter(vllm.rows()))
