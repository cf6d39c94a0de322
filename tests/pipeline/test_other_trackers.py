"""TensorBoard and MLflow through the tracker's process: what they hold, and what one costs a cell
that is not there, or fails."""

import importlib.util

import pytest

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.pipeline import tracker
from osora_bench.pipeline.attempt import attempt
from osora_bench.pipeline.tracker import tracking
from osora_bench.records import record
from tests.conftest import QUICK

NAMES = ("tensorboard", "mlflow")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(tracker, "_finishing", [])
    monkeypatch.setattr(tracker, "FINISH", 120.0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_event_files_hold_the_cell_and_change_nothing_of_it(
    make_cell, session, tmp_path, capsys
):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (optional)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = ["method=lora", *QUICK, "tracker.group=my-table"]
    cell = make_cell(*one, "tracker=tensorboard")
    plain = make_cell(*one, f"ledger={tmp_path}/plain", f"runs={tmp_path}/plain")
    assert cell.run_id == plain.run_id
    assert attempt(cell) == attempt(plain) == "done"
    tracker._wait_for_all()
    assert "its tracker" not in capsys.readouterr().out
    folder = cell.paths.runs / "tensorboard" / "my-table" / cell.run_id
    events = EventAccumulator(str(folder)).Reload()
    body = record.read_record(cell.record)
    told = {tag: [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors(tag)]
            for tag in events.Tags()["tensors"]}  # fmt: skip
    assert [[step, round(loss, 4)] for step, loss in told["loss"]] == [
        [step, round(loss, 4)] for step, loss in body["training"]["loss"]
    ]
    last = body["training"]["steps"]
    for name, score in body["scores"].items():
        assert told[f"accuracy/{name}"] == [(last, pytest.approx(score["accuracy"]))]
    assert told["failed"] == [(last, 0.0)]
    parts = ("config", "scores", "training", "parameters")
    assert [body[p] for p in parts] == [record.read_record(plain.record)[p] for p in parts]


def test_a_run_of_mlflow_holds_the_cell_and_goes_on_when_it_is_started_again(make_cell):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (optional)")
    cell = make_cell("method=lora", *QUICK, "tracker=mlflow", "tracker.group=my-table")
    cell.paths.folder.mkdir(parents=True)
    for step, failed in ((1, True), (2, False)):
        with tracking(cell, {"method": {"peft": {"r": 16}}, "long": "x" * 9000}) as one:
            one.log({"step": step, "loss": 2.0 / step})
            one.end({"accuracy/x": 3.5}, failed)
        tracker._wait_for_all()
    log = (cell.paths.folder / "tracker.log").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{cell.paths.runs.absolute()}/mlflow.db")
    experiment = client.get_experiment_by_name("osora_bench")
    assert experiment is not None, log
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == cell.label
    assert run.data.tags["group"] == "my-table"
    assert run.data.params["method.peft.r"] == "16"
    assert len(run.data.params["long"]) == 500
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]
    assert run.data.metrics["accuracy/x"] == 3.5


@pytest.mark.parametrize("name", NAMES)
def test_one_that_is_not_installed_is_refused_before_the_cell_starts(make_cell, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=f"{name} is not installed: pip install {name}"):
        tracker.check_tracker(make_cell(f"tracker={name}").config.tracker)


@pytest.mark.parametrize("name", NAMES)
def test_a_mode_that_would_have_no_effect_is_refused(make_cell, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module)
    section = make_cell(f"tracker={name}", "tracker.mode=online").config.tracker
    with pytest.raises(UserError, match=f"mode=online is wandb's: it has no effect on {name}"):
        tracker.check_tracker(section)
    tracker.check_tracker(make_cell(f"tracker={name}").config.tracker)


@pytest.mark.parametrize("name", NAMES)
def test_one_that_fails_costs_a_cell_its_curves_and_one_warning(
    make_cell, tmp_path, monkeypatch, capsys, name
):
    module = {"tensorboard": "summary.py", "mlflow": "__init__.py"}[name]
    fake = tmp_path / "fake" / name / module
    fake.parent.mkdir(parents=True)
    (fake.parent / "__init__.py").touch()
    fake.write_text("raise OSError(28, 'No space left on device')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/fake:{paths.ROOT}")
    cell = make_cell("method=none", *QUICK, f"tracker={name}")
    cell.paths.folder.mkdir(parents=True)
    with tracking(cell, {}) as told:
        told.log({"step": 1, "loss": 2.0})
        told.end({}, failed=False)
    tracker._wait_for_all()
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert printed.startswith(f"WARNING: {cell.label}: its tracker ")
    assert "No space left on device" in printed
