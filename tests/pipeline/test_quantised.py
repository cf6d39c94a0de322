"""Cells on a base model in 4 or 8 bits, on a CPU. `make test-quantised` brings bitsandbytes."""

import importlib.util

import pytest

from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.models import smollm2
from osora_bench.models.quantisation import check_library
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.planning import estimate
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.records import record
from tests.conftest import QUICK

FOLDER = paths.ROOT / smollm2.FOLDER
with_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes: make test-quantised"
)


@with_library
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("method", ["lora", "dora", "vera", "osora", "osora_dora"])
def test_a_cell_is_trained_and_scored(method, quantization, make_cell, session):
    if (method, quantization) == ("dora", "int8"):
        pytest.skip("refused on a CPU: below")
    cell = make_cell(f"method={method}", f"model.quantization={quantization}", *QUICK)
    plain = make_cell(f"method={method}", *QUICK)
    assert cell.run_id != plain.run_id
    assert attempt(cell) == "done", cell.error
    made = record.read_record(cell.record)
    assert made["config"]["model"]["quantization"] == quantization
    assert made["provenance"]["versions"]["bitsandbytes"]
    assert attempt(plain) == "done", plain.error
    other = record.read_record(plain.record)
    assert made["parameters"]["trainable"] == other["parameters"]["trainable"]
    loss, exact = (r["training"]["loss"][-1][1] for r in (made, other))
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.15)


@with_library
@pytest.mark.real_data
@pytest.mark.skipif(not FOLDER.is_dir(), reason="no weights: make smollm2")
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_cell_of_smollm2(quantization, make_cell, session):
    cell = make_cell("model=smollm2-135m", "method=osora", "method.rank=64",
                     f"model.quantization={quantization}", *QUICK)  # fmt: skip
    assert attempt(cell) == "done", cell.error


def test_the_run_ids_of_before_stay(make_cell):
    assert make_cell().run_id == make_cell("model.quantization=null").run_id


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.quantization=int4"], "unknown model.quantization 'int4'.*Valid: int8, nf4, null"),
        (["model.quantization=nf4", "method=pissa"], "pissa starts by changing the base weights"),
        (["model.quantization=nf4", "method=full"], "full trains every weight"),
        (["model.quantization=int8", "eval.merge=true"], "would round the merged weights anew"),
        (["model.quantization=int8", "trainer.processes=2"], "are not shared out"),
    ],
)
def test_what_cannot_be_had_is_refused(overrides, told):
    with composer(), pytest.raises(UserError, match=told):
        resolve(compose(overrides, "test"), "test")


def test_the_command_that_installs_the_library_is_named(make_cell, monkeypatch):
    monkeypatch.setattr("osora_bench.models.quantisation.find_spec", lambda _: None)
    model = make_cell("model.quantization=nf4").config.model
    with pytest.raises(UserError, match=r'pip install "osora-bench\[quantised\]"'):
        check_library(model)


def test_dora_on_8_bits_is_refused_where_peft_cannot_do_it(make_cell, monkeypatch):
    monkeypatch.setattr("osora_bench.models.quantisation.find_spec", lambda _: True)
    cells = [
        make_cell(f"method={name}", "model.quantization=int8", "device=cpu")
        for name in ("dora", "lora", "osora_dora")
    ]
    with pytest.raises(UserError, match="loses the scales of 8-bit layers on a CPU") as told:
        preflight.check_cells(cells)
    assert len(str(told.value).splitlines()) == 2


def test_the_estimate_knows_it(make_cell):
    """Llama-2-13B: 13.0e9 numbers, of which 0.33e9 stay in 16 bits."""

    def gigabytes(*overrides):
        cell = make_cell("model=llama2-13b-chat", "task=gsm8k", "method=osora", *overrides)
        return estimate.estimate_of(cell, {}).gigabytes

    whole, four, eight = (
        gigabytes(*o) for o in ([], ["model.quantization=nf4"], ["model.quantization=int8"])
    )
    assert whole - four == pytest.approx(12.69 * (2 - 0.5625), rel=0.01)
    assert whole - eight == pytest.approx(12.69, rel=0.01)


def test_plan_takes_it(places, capsys):
    assert main(["plan", "experiment=demo", "model.quantization=nf4", *places]) == 2
    assert "pissa starts by changing the base weights" in capsys.readouterr().err
