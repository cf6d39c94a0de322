"""Trackers: what they are told, and that a cell neither waits for them nor minds their end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.pipeline import preflight, tracker
from osora_bench.pipeline.attempt import attempt
from osora_bench.pipeline.tracker import tracking
from osora_bench.planning import config
from osora_bench.records import record
from tests.conftest import QUICK
from tests.grids import cells_of
from tests.sweeps import wait_until

BLOCK = 32768
FAKE = """
import os, time
from types import SimpleNamespace
doing = os.environ["FAKE_WANDB"]
def keep(line):
    with open(os.environ["FAKE_TOLD"], "a") as file:
        file.write(line + "\\n")
def act(where):
    if doing == where + " raises":
        raise OSError(28, "No space left on device")
    if doing == where + " hangs":
        time.sleep(1000)
class Run:
    dir = "nowhere"
    summary = {}
    def define_metric(self, *args, **settings): pass
    def log(self, values): act("log"); keep(f"log {values}")
    def finish(self, exit_code): act("finish"); keep(f"finish {exit_code} {self.summary}")
def init(**settings):
    act("init")
    keep(f"init {settings['id']} {settings['resume']} {settings['mode']}")
    return Run()
Settings = SimpleNamespace
class errors:
    class CommError(Exception): pass
act("import")
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Nobody is logged in, and nothing of another test's tracker is left."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(tracker, "_finishing", [])


@pytest.fixture
def wandb_that(make_cell, tmp_path, monkeypatch):
    """Put a wandb in place that does something; a cell for it, and how to see what it was told."""

    def make(doing):
        package = tmp_path / "fake" / "wandb"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(FAKE)
        told = tmp_path / "told"
        monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{paths.ROOT}")
        monkeypatch.setenv("FAKE_WANDB", doing)
        monkeypatch.setenv("FAKE_TOLD", str(told))
        cell = make_cell("method=none", *QUICK, "tracker=wandb")
        cell.paths.folder.mkdir(parents=True)
        return cell, lambda: told.read_text().splitlines() if told.exists() else []

    return make


def offline_run(place):
    """The records of a run that wandb kept on disk: LevelDB's log format, after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content = place.read_bytes()
    assert content[:4] == b":W&B"
    at, whole, records = 7, b"", []
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            records.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return records


def values(items):
    return {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}


def warnings(capsys):
    """But for those of an untrained model's answers, which end nowhere."""
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if "WARNING" in line and "cut at the length" not in line]


def test_an_offline_run_holds_the_cell_and_changes_nothing_of_it(
    make_cell, session, tmp_path, capsys
):
    one = ["method=lora", *QUICK, "tracker.group=my-table"]
    cell = make_cell(*one, "tracker=wandb")
    plain = make_cell(*one, f"ledger={tmp_path}/plain", f"runs={tmp_path}/plain")
    assert cell.run_id == plain.run_id
    assert attempt(cell) == attempt(plain) == "done"
    tracker._wait_for_all()
    assert warnings(capsys) == []
    (place,) = cell.paths.folder.glob(f"wandb/offline-run-*-{cell.run_id}/*.wandb")
    records = offline_run(place)
    (told,) = [r.run for r in records if r.HasField("run")]
    assert (told.run_id, told.run_group) == (cell.run_id, "my-table")
    assert (told.display_name, told.project) == (cell.label, "osora_bench")
    settings = values(told.config.update)
    assert settings["method"]["peft"]["r"] == 16
    assert settings["run_id"] == cell.run_id
    assert "ledger" not in settings
    history = [values(r.history.item) for r in records if r.HasField("history")]
    body = record.read_record(cell.record)
    assert [[h["step"], round(h["loss"], 6)] for h in history] == body["training"]["loss"]
    rate = cell.config.trainer.learning_rate
    assert all(0 <= h["learning_rate"] <= rate and h["tokens_per_second"] > 0 for h in history)
    assert all(0.05 < h["memory_gb"] < 100 for h in history)
    summary = {}
    for r in records:
        summary |= values(r.summary.update) if r.HasField("summary") else {}
    for name, score in body["scores"].items():
        assert summary[f"accuracy/{name}"] == score["accuracy"]
    assert summary["trainable"] == body["parameters"]["trainable"]
    (end,) = [r.exit.exit_code for r in records if r.HasField("exit")]
    assert end == 0
    parts = ("config", "scores", "training", "parameters")
    assert [body[p] for p in parts] == [record.read_record(plain.record)[p] for p in parts]
    one, other = (next(c.paths.adapter.glob("*.safetensors")).read_bytes() for c in (cell, plain))
    assert one == other


@pytest.mark.parametrize("how", ["raises", "hangs"])
@pytest.mark.parametrize("where", ["import", "init", "log", "finish"])
def test_a_dead_or_slow_tracker_costs_a_cell_one_warning(
    wandb_that, monkeypatch, capsys, where, how
):
    tracked, _ = wandb_that(f"{where} {how}")
    monkeypatch.setattr(tracker, "FINISH", 2.0 if how == "hangs" else 300.0)
    started = time.monotonic()
    with tracking(tracked, {}) as told:
        process = told.process
        told.log({"step": 1, "loss": 2.0})
        told.end({}, failed=False)
    assert time.monotonic() - started < 30.0
    tracker._wait_for_all()
    if how == "hangs":
        assert process.poll() is None  # it may yet come through
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    told = f"{tracked.label}: its tracker "
    if how == "raises":
        assert printed.startswith(f"WARNING: {told}")
        assert "No space left on device" in printed
    else:
        assert printed.startswith(f"{told}is not done yet and goes on by itself")
    assert str(tracked.paths.folder / "tracker.log") in printed


def test_a_cell_ends_with_its_record_whatever_its_tracker_does(wandb_that, session, capsys):
    cell, _ = wandb_that("init hangs")
    assert attempt(cell) == "done"
    (left,) = tracker._finishing
    left.give_up("is given up by this test")
    assert len(warnings(capsys)) == 1


def test_one_that_does_not_keep_up_is_given_up(wandb_that, capsys):
    tracked, _ = wandb_that("log hangs")
    with tracking(tracked, {}) as told:
        process = told.process
        for step in range(100_000):
            told.log({"step": step, "loss": 2.0})
            if told.process is None:
                break
        told.end({}, failed=False)
    assert 1_000 < step < 99_999
    assert process.poll() == -signal.SIGKILL
    assert capsys.readouterr().out.count("its tracker does not keep up") == 1
    assert tracker._finishing == []


def test_one_that_cannot_be_started_is_done_without(make_cell, capsys):
    cell = make_cell("method=lora", "tracker=wandb")  # its folder is not there
    with tracking(cell, {}) as told:
        told.log({"step": 1})
        told.end({}, failed=False)
    assert "its tracker does not start ([Errno 2]" in capsys.readouterr().out


def test_a_cell_that_is_started_again_goes_on_in_the_same_run(wandb_that):
    tracked, told = wandb_that("nothing")
    for failed in (True, False):
        with tracking(tracked, {}) as one:
            one.log({"step": 1})
            one.end({"accuracy/x": 3.5}, failed)
        tracker._wait_for_all()
    assert told() == [
        f"init {tracked.run_id} allow offline",
        "log {'step': 1}",
        "finish 1 {'accuracy/x': 3.5}",
        f"init {tracked.run_id} allow offline",
        "log {'step': 1}",
        "finish 0 {'accuracy/x': 3.5}",
    ]


def test_a_failure_is_told(wandb_that):
    tracked, told = wandb_that("nothing")
    with pytest.raises(ArithmeticError), tracking(tracked, {}):
        raise ArithmeticError
    tracker._wait_for_all()
    assert told()[-1] == "finish 1 {}"


def test_a_job_waits_longer_and_ends_it(wandb_that, monkeypatch, capsys):
    tracked, _ = wandb_that("finish hangs")
    monkeypatch.setattr(tracker, "FINISH", 0.0)
    monkeypatch.setattr(tracker, "FINISH_JOB", 2.0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with tracking(tracked, {}) as told:
        process = told.process
        told.end({}, failed=False)
    tracker._wait_for_all()
    assert process.poll() == -signal.SIGKILL
    assert "was not done 2 s after the end" in capsys.readouterr().out


def test_one_that_is_left_to_itself_ends():
    code = (
        "import os, sys; from osora_bench.pipeline import tracker_process as one\n"
        "print(os.getpid(), flush=True); one.ORPHANED = 1.0; one._end_with(int(sys.argv[1]))"
    )
    left = f"{sys.executable} -c '{code}' $$ & sleep 1"
    with subprocess.Popen(
        ["sh", "-c", left], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        process = psutil.Process(int(parent.stdout.readline()))
        assert process.is_running()
        parent.wait()
    wait_until(
        lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "its end"
    )


def test_signals_mean_the_cell_and_its_death_ends_the_run(wandb_that):
    """As in a SLURM job, where every process gets them; the end of the pipe is what counts."""
    tracked, told = wandb_that("nothing")
    with tracking(tracked, {}) as one:
        process = one.process
        wait_until(told, "start")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(process.pid, number)
        one.log({"step": 1})
        wait_until(lambda: told()[1:], "a step")
        process.stdin.close()
        process.wait(timeout=60)
        one.process = None
    assert told()[1:] == ["log {'step': 1}", "finish 1 {}"]


def test_what_does_not_reach_its_server_is_kept_offline(tmp_path):
    """wandb itself, and a server that is not there."""
    code = (
        "import sys; from osora_bench.pipeline import tracker_process\n"
        "tracker_process.ANSWER = 2.0; sys.exit(tracker_process.main())"
    )
    dead = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    start = {"project": "p", "mode": "online", "id": "0123456789ab", "dir": str(tmp_path)}
    lines = [{"tracker": "wandb", "init": start}, {"log": {"step": 1, "loss": 2.0}}, {"end": END}]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="".join(json.dumps(line) + "\n" for line in lines),
        text=True,
        capture_output=True,
        env={**os.environ, **dead, "PYTHONPATH": str(paths.ROOT)},
        check=False,
    )
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("does not reach its server (")
    (place,) = tmp_path.glob("wandb/offline-run-*-0123456789ab/*.wandb")
    assert f"`wandb sync {place.parent}`" in last
    history = [values(r.history.item) for r in offline_run(place) if r.HasField("history")]
    assert [h["loss"] for h in history] == [2.0]


END = {"summary": {}, "failed": False}


MACHINE = "machine {} login user password x"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "x"}, "online"),
        ({"netrc": MACHINE.format("api.wandb.ai")}, "online"),
        ({"netrc": MACHINE.format("other.example")}, "offline"),
        (
            {"netrc": MACHINE.format("w.example:80"), "WANDB_BASE_URL": "http://w.example:80"},
            "online",
        ),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
        ({"netrc": "machine"}, "offline"),
    ],
)
def test_auto_is_online_where_the_user_is_logged_in(given, expected, monkeypatch, capsys):
    def network(*_):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket, "socket", network)
    netrc = given.pop("netrc", None)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        Path(os.environ["NETRC"]).write_text(netrc + "\n")
    assert tracker.mode("auto") == expected
    assert ("cannot be read" in capsys.readouterr().out) == (netrc == "machine")
    assert tracker.mode("online") == "online"


def test_a_mode_that_is_none_or_cannot_work_is_refused_before_anything_starts(
    make_cell, monkeypatch
):
    with pytest.raises(UserError, match="unknown tracker.mode 'onlin'.*Valid: auto, offline, onl"):
        make_cell("tracker=wandb", "tracker.mode=onlin")
    cell = make_cell("tracker=wandb", "tracker.mode=online")
    with pytest.raises(UserError, match="not logged in to api.wandb.ai: set WANDB_API_KEY"):
        preflight.check_cells([cell])
    monkeypatch.setenv("WANDB_API_KEY", "x")
    preflight.check_cells([cell])


def test_an_experiments_cells_are_grouped_by_its_name():
    cells = cells_of("demo", ["tracker=wandb"])
    assert {c.config.tracker.group for c in cells} == {"demo"}
    mine = cells_of("demo", ["tracker=wandb", "tracker.group=mine"])
    assert {c.config.tracker.group for c in mine} == {"mine"}
    assert [c.run_id for c in mine] == [c.run_id for c in cells]
    assert config.TrackerConfig.group is None
