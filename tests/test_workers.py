"""Sweeps in several processes: the same records, whoever is killed, and nothing twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from osora_bench import checkout, frozen, record, run, workers
from osora_bench.errors import UserError

SHORT = ["trainer.max_steps=3", "eval.datasets.0.limit=4", "eval.datasets.1.limit=4"]
LONG = ["trainer.max_steps=80", "trainer.checkpoint_minutes=0.02", *SHORT[1:]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Of the workers: as many as the records that they are held against were made with."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def numbers(cell):
    body = record.read(cell.record)
    return {k: v for k, v in body.items() if k not in ("measured", "sha256", "schema")}


def in_process(cells, cwd):
    """Run cells by the command line in one process of one thread, as `workers` would."""
    sweep = frozen.freeze(cells)
    subprocess.run([sys.executable, "-m", "osora_bench.worker", str(sweep.path)], check=True)


def started(cell, seconds=90):
    """Wait until a cell runs; the process that runs it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pid = (cell.holder or {}).get("pid")
        if pid:
            return pid
        time.sleep(0.05)
    raise TimeoutError(cell.label)


def test_workers_give_the_records_of_one_process_and_a_failure_stops_no_other(
    make_cell, tmp_path, capsys
):
    def grid(where):
        place = [f"ledger={tmp_path}/{where}", f"runs={tmp_path}/{where}", *SHORT]
        cells = [make_cell(*place, f"method={m}") for m in ("osora", "lora", "pissa")]
        # AdamW takes no such momentum: refused when the optimiser is made, not before
        return cells, make_cell(*place, "trainer.optimizer=nonsense")

    cells, broken = grid("workers")
    alone, _ = grid("alone")
    assert run.run_missing([*cells, broken], workers=2) == run.FAILED
    told = capsys.readouterr().out
    assert f"failed: {broken.label}: ValueError" in told
    assert "4 cells: 3 done, 1 failed" in told
    in_process(alone, tmp_path)
    assert [numbers(c) for c in cells] == [numbers(c) for c in alone]
    # a second start tries only what failed, in this process too
    assert run.run_missing([*cells, broken]) == run.FAILED
    assert "[1/1] " in capsys.readouterr().out


def test_a_killed_worker_is_replaced_and_its_cell_goes_on(make_cell, tmp_path, capsys):
    place = [f"ledger={tmp_path}/a", f"runs={tmp_path}/a", *LONG]
    cells = [make_cell(*place, f"method={m}") for m in ("osora", "lora")]
    whole = [
        make_cell(f"ledger={tmp_path}/b", f"runs={tmp_path}/b", *LONG, f"method={m}")
        for m in ("osora", "lora")
    ]
    ended = []
    thread = threading.Thread(target=lambda: ended.append(run.run_missing(cells, workers=2)))
    thread.start()
    pid = started(cells[0])
    while not list(cells[0].paths.trainer.glob("checkpoint-*/complete.json")):
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    thread.join(timeout=240)
    assert ended == [run.OK]
    assert f"{cells[0].label}: its process was killed by signal 9" in capsys.readouterr().out
    assert record.read(cells[0].record)["measured"]["starts"] == 2
    in_process(whole, tmp_path)
    assert [numbers(c) for c in cells] == [numbers(c) for c in whole]


def test_a_cell_that_kills_its_process_every_time_has_failed(make_cell, tmp_path):
    cell = make_cell(*SHORT)
    sweep = frozen.freeze([cell])
    crew = workers.Workers(sweep, 1, False, [])
    cell.paths.folder.mkdir(parents=True)
    for starts in (1, 2):
        assert sweep.waits(cell)
        note = {"pid": 77, "host": "h", "job": None, "since": "", "starts": starts}
        (cell.paths.folder / "status.json").write_text(json.dumps(note))
        crew._killed(77, 9)
    assert sweep.settled(cell)
    assert cell.error.startswith("its process was killed 2 times, at last by signal 9 (out of")


def test_the_starting_process_may_die_and_the_next_one_attaches(make_cell, tmp_path, capsys):
    place = [f"ledger={tmp_path}/ledger", f"runs={tmp_path}/runs", *LONG]
    cell = make_cell(*place, "method=lora")
    code = (
        "from osora_bench import frozen, run; import sys; from pathlib import Path\n"
        "run.run_missing(frozen.thaw(Path(sys.argv[1])).cells, workers=2)"
    )
    sweep = frozen.freeze([cell])
    parent = subprocess.Popen([sys.executable, "-c", code, str(sweep.path)])
    worker = started(cell)
    parent.kill()
    parent.wait()
    os.kill(worker, 0)  # it is there
    assert run.run_missing([cell]) == run.OK
    told = capsys.readouterr().out
    assert f"{cell.label}: runs already on" in told
    assert f"(pid {worker})" in told
    assert "[1/1]" not in told  # it was not run here
    assert record.read(cell.record)["measured"]["starts"] == 1


def test_other_code_than_the_sweeps_is_refused_or_marked(make_cell, tmp_path, monkeypatch):
    from osora_bench import worker

    cell = make_cell("method=none", *SHORT)
    sweep = frozen.freeze([cell])
    told = json.loads(sweep.path.read_text())
    told["code"]["commit"] = "0" * 40
    sweep.path.write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"started with commit 000000000000.*allow_changed=true"):
        worker.work(sweep.path)
    assert not cell.record.exists()
    monkeypatch.setenv("OSORA_CHANGED_SINCE_PLAN", "")
    assert worker.work(sweep.path, allow_changed=True) == run.OK
    assert record.read(cell.record)["provenance"]["changed_since_plan"] is True


def test_files_that_changed_under_a_sweep_are_refused(make_cell, tmp_path):
    from osora_bench import paths

    source = paths.data_file("pkg://osora_bench.toy/data/gsm8k/train.jsonl")
    copy = tmp_path / "train.jsonl"
    rows = source.read_text(encoding="utf-8").splitlines()
    copy.write_text("\n".join(rows) + "\n", encoding="utf-8")
    cell = make_cell(f"task.sources.0.path={copy}", *SHORT)
    frozen.check_content(cell)
    copy.write_text("\n".join(reversed(rows)) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="have changed since the sweep was started"):
        frozen.check_content(cell)


def test_a_frozen_sweep_is_read_back_as_it_was(make_cell):
    cells = [make_cell(f"method={m}", "seed=3") for m in ("osora", "none")]
    sweep = frozen.freeze(cells)
    again = frozen.thaw(sweep.path)
    assert again == sweep
    assert again.code == checkout.code()
    assert frozen.changes(again) is None


def test_there_is_a_gpu_for_each_worker(monkeypatch, make_cell):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert workers.gpus() == ["3", "5"]
    with pytest.raises(UserError, match="workers=3: there are 2 GPUs"):
        workers.run_in_workers([make_cell()], 3)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_workers_are_a_number(text, capsys):
    from osora_bench.cli import main

    assert main(["run", "experiment=demo", f"workers={text}"]) == 2
    assert "a whole number of at least 1" in capsys.readouterr().err
