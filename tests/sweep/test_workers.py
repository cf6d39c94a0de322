"""Sweeps in several processes: the same records, whoever is killed, and nothing twice."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import torch

from osora_bench.common import exits
from osora_bench.common.errors import Refused, UserError
from osora_bench.pipeline import attempt as attempts
from osora_bench.pipeline.attempt import DeviceLost
from osora_bench.planning import estimate
from osora_bench.planning.cell import check_content
from osora_bench.records import code_state, record
from osora_bench.sweep import frozen_plan, run, worker_process, workers
from osora_bench.sweep.options import RunOptions
from osora_bench.sweep.watch import Watch
from tests.sweeps import from_another_commit, numbers, wait_until

SHORT = ["trainer.max_steps=3", "eval.datasets.0.limit=4", "eval.datasets.1.limit=4"]
LONG = ["trainer.max_steps=40", "trainer.checkpoint_minutes=0", *SHORT[1:]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Of the workers: as many as the records that they are held against were made with."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def in_process(cells):
    """Run cells by the command line in one process of one thread, as `workers` would."""
    sweep = frozen_plan.freeze(cells)
    subprocess.run(
        [sys.executable, "-m", "osora_bench.sweep.worker_process", str(sweep.path)], check=True
    )


def started(cell):
    """Wait until a cell runs; the process that runs it."""
    return wait_until(lambda: (cell.holder or {}).get("pid"), f"start of {cell.label}")


def crew_of(cells, count=1, devices=(), retries=1):
    """Workers that have not started."""
    watch = Watch(frozen_plan.freeze(cells))
    return workers.Workers(watch, count, False, list(devices), retries)


class Ended:
    """A worker's process that has ended."""

    def __init__(self, status, pid=77):
        self.pid = pid
        self.poll = lambda: status


def ends(crew, status, cell=None):
    """Let a worker end, in the middle of a cell if one is named."""
    crew.folder.mkdir(exist_ok=True)
    crew.log(0).write_text("the last line\n")
    if cell is not None:
        cell.paths.folder.mkdir(parents=True, exist_ok=True)
        told = {"pid": 77, "host": socket.gethostname(), "job": None, "since": "", "starts": 1}
        (cell.paths.folder / "status.json").write_text(json.dumps(told))
    crew.running[0] = Ended(status)
    crew.reap()
    if cell is not None:
        (cell.paths.folder / "status.json").unlink()


@pytest.mark.sweep
def test_workers_give_the_records_of_one_process_and_a_failure_stops_no_other(
    make_cell, tmp_path, capsys
):
    def grid(where):
        place = [f"ledger={tmp_path}/{where}", f"runs={tmp_path}/{where}", *SHORT]
        cells = [make_cell(*place, f"method={m}") for m in ("osora", "lora", "pissa")]
        # its package is not here: refused when the optimiser is made, not before
        return cells, make_cell(*place, "trainer.optimizer=adamw_bnb_8bit")

    cells, broken = grid("workers")
    alone, _ = grid("alone")
    assert run.run_missing([*cells, broken], RunOptions(workers=2)) == exits.FAILED
    told = capsys.readouterr().out
    assert f"failed: {broken.label}: ImportError" in told
    assert "4 cells: 3 done, 1 failed" in told
    in_process(alone)
    assert [numbers(c) for c in cells] == [numbers(c) for c in alone]
    # a second start tries only what failed, in this process too
    assert run.run_missing([*cells, broken]) == exits.FAILED
    assert "[1/1] " in capsys.readouterr().out


@pytest.mark.sweep
def test_a_killed_worker_is_replaced_and_its_cell_goes_on(make_cell, tmp_path, capsys):
    place = [f"ledger={tmp_path}/a", f"runs={tmp_path}/a", *LONG]
    cells = [make_cell(*place, f"method={m}") for m in ("osora", "lora")]
    whole = [
        make_cell(f"ledger={tmp_path}/b", f"runs={tmp_path}/b", *LONG, f"method={m}")
        for m in ("osora", "lora")
    ]
    ended = []
    thread = threading.Thread(
        target=lambda: ended.append(run.run_missing(cells, RunOptions(workers=2)))
    )
    thread.start()
    pid = started(cells[0])
    seals = cells[0].paths.trainer
    wait_until(lambda: list(seals.glob("checkpoint-*/complete.json")), "checkpoint")
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert ended == [exits.OK]
    assert f"{cells[0].label}: its process was killed by signal 9" in capsys.readouterr().out
    assert record.read_record(cells[0].record)["measured"]["starts"] == 2
    in_process(whole)
    assert [numbers(c) for c in cells] == [numbers(c) for c in whole]


@pytest.mark.parametrize(
    ("status", "how"),
    [
        (
            -9,
            "was killed by signal 9 (out of memory? fewer workers, trainer.micro_batch_size (now "
            "32), trainer.gradient_checkpointing=true or eval.batch_size take less)",
        ),
        (3, "ended with status 3"),
    ],
)
def test_a_cell_that_kills_its_process_every_time_has_failed(make_cell, status, how, capsys):
    cell, other = make_cell(*SHORT), make_cell("method=lora", *SHORT)
    crew = crew_of([cell, other])
    ends(crew, status, cell)
    assert not crew.sweep.settled(cell)
    ends(crew, status, cell)
    assert crew.sweep.settled(cell)
    assert cell.error == f"its process {how}, 2 times in all  (see {crew.log(0)})"
    assert not crew.sweep.settled(other)
    assert capsys.readouterr().out.count(f"(see {crew.log(0)})") == 2


def test_retries_are_as_many_as_said(make_cell):
    cell = make_cell(*SHORT)
    crew = crew_of([cell], retries=2)
    for lost in (1, 2, 3):
        assert not crew.sweep.settled(cell), lost
        ends(crew, -9, cell)
    assert crew.sweep.settled(cell)


def test_a_worker_that_is_asked_to_end_costs_its_cell_no_try(make_cell, capsys):
    cell = make_cell(*SHORT)
    crew = crew_of([cell], retries=0)
    ends(crew, 128 + signal.SIGTERM, cell)
    assert crew.sweep.waits(cell)
    assert f"{cell.label}: its process was ended by SIGTERM" in capsys.readouterr().out


def test_workers_that_can_do_nothing_are_not_started_for_ever(make_cell):
    crew = crew_of([make_cell(*SHORT)])
    for _ in range(workers.BARREN - 1):
        ends(crew, 3)
    assert crew.refusal is None
    ends(crew, 3)
    assert "nothing done and 1 cells left: the last line  (see " in crew.refusal
    crew.fill()
    assert not crew.running


def test_a_worker_that_refuses_stops_no_other_and_the_verdict_is_told(
    make_cell, monkeypatch, capsys
):
    """One of two finds other code: the other's cell is waited for, then all is said."""
    cells = [make_cell(*SHORT), make_cell("method=lora", *SHORT)]
    begun = []

    class Other:
        """Takes three looks to do its cell."""

        pid, looks = 78, 0

        def poll(self):
            self.looks += 1
            if self.looks < 3:
                return None
            cells[1].fail("for the sake of a verdict")
            return exits.FAILED

    def start(self, slot, lock):
        begun.append(slot)
        self.folder.mkdir(exist_ok=True)
        self.log(slot).write_text("osora-bench: the sweep was started with commit 0\n")
        return Ended(exits.MISTAKE) if slot == 0 else Other()

    monkeypatch.setattr(workers.Workers, "_start", start)
    with pytest.raises(Refused, match=r"^the sweep was started with commit 0  \(see .*-0.log\)"):
        run.run_missing(cells, RunOptions(workers=2))
    told = capsys.readouterr().out
    assert begun == [0, 1]
    assert f"{cells[1].label}: FAILED, for the sake of a verdict" in told
    assert "2 cells: 1 missing, 1 failed" in told


@pytest.mark.sweep
def test_a_refusal_is_none_where_every_cell_is_done_all_the_same(make_cell, monkeypatch):
    """One of two workers refuses, the other has done both cells."""
    cells = [make_cell(*SHORT), make_cell("method=lora", *SHORT)]

    class Other:
        """Does both cells."""

        pid = 78

        def poll(self):
            if not cells[0].record.exists():
                in_process(cells)
            return exits.OK

    def start(self, slot, lock):
        self.log(slot).write_text("osora-bench: the sweep was started with commit 0\n")
        return Ended(exits.MISTAKE) if slot == 0 else Other()

    monkeypatch.setattr(workers.Workers, "_start", start)
    monkeypatch.setattr(workers.Workers, "log", lambda self, slot: cells[0].ledger / f"{slot}.log")
    cells[0].ledger.mkdir(parents=True)
    assert run.run_missing(cells, RunOptions(workers=2)) == exits.OK


def test_a_gpu_that_cells_lose_is_given_none_while_there_are_others(make_cell, monkeypatch, capsys):
    """And where cells have lost every one, the rest have their try all the same."""
    cells = [make_cell(*SHORT, f"seed={i}") for i in range(6)]
    crew, begun = crew_of(cells, 2, ["3", "5"]), []

    def start(self, slot, lock):
        begun.append(slot)
        return Ended(None)

    monkeypatch.setattr(workers.Workers, "_start", start)
    for _ in range(workers.LOSSES):
        ends(crew, exits.LOST)
    assert "GPU 3: 2 cells in a row have lost it" in capsys.readouterr().out
    crew.fill()
    assert begun == [1]
    crew.lost[1] = workers.LOSSES
    crew.fill()
    assert begun == [1, 0]
    assert crew.refusal is None
    for status in (exits.BROKEN, exits.LOST):  # it was of use in between
        ends(crew, status)
    assert crew.lost[0] == 1


@pytest.mark.parametrize(
    ("processors", "gigabytes", "expected"),
    [(1, 64, 1), (2, 64, 2), (64, 64, 3), (64, 4, 2), (64, 0.5, 1)],
)
def test_as_many_workers_as_there_is_work_processors_and_memory_for(
    processors, gigabytes, expected, make_cell, monkeypatch
):
    cells = [make_cell(*SHORT), make_cell("method=lora", *SHORT), make_cell("method=none")]
    assert all(1.5 < estimate.estimate_of(cell, {}).gigabytes < 2 for cell in cells)
    monkeypatch.setattr(type(workers.OURS), "processors", lambda self: processors)
    monkeypatch.setattr(type(workers.OURS), "memory_left", lambda self: gigabytes * 1e9)
    assert workers.room(cells) == expected


def test_as_many_workers_as_gpus_that_a_cell_can_have(make_cell, monkeypatch):
    monkeypatch.setattr(workers, "gpus", lambda cells: ["0", "1", "2"])
    assert workers.room([make_cell(f"seed={n}", *SHORT) for n in range(5)]) == 3
    assert workers.room([make_cell(*SHORT)]) == 1


def test_a_slot_that_a_worker_of_an_earlier_start_has_is_left_to_it(make_cell, monkeypatch, capsys):
    cells = [make_cell(*SHORT), make_cell("method=lora", *SHORT)]
    earlier, later = (crew_of(cells, 2, ["GPU-3", "GPU-5"]) for _ in range(2))
    given = []
    monkeypatch.setattr(
        workers.Workers, "_start", lambda self, slot, lock: given.append(self.devices[slot])
    )
    held = earlier._slot_lock(0)
    later.fill()
    assert given == ["GPU-5"]
    with earlier._slot_lock(1):
        given.clear()
        later.running.clear()
        later.fill()
        later.fill()
        assert given == []
    assert capsys.readouterr().out.count("which have every slot") == 1
    held.close()


def test_a_worker_goes_on_after_a_cell_that_cannot_be_run(
    make_cell, session, tmp_path, monkeypatch, capsys
):
    from osora_bench.sweep import worker_process

    refused, unwritable, good = (
        make_cell("method=none", f"eval.datasets.0.limit={n}", SHORT[2]) for n in (3, 4, 5)
    )
    sweep = frozen_plan.freeze([refused, unwritable, good])
    unwritable.paths.folder.parent.mkdir(parents=True)
    unwritable.paths.folder.write_text("a file where its folder should be")
    check = check_content

    def changed(cell):
        if cell.run_id == refused.run_id:
            raise UserError("its files have changed")
        check(cell)

    monkeypatch.setattr(attempts, "check_content", changed)
    assert worker_process.work(frozen_plan.thaw(sweep.path)) == exits.FAILED
    assert [c.state for c in (refused, unwritable, good)] == ["failed", "missing", "done"]
    assert refused.error == "its files have changed"
    told = capsys.readouterr().out
    assert f"{unwritable.label}: FAILED, [Errno 17] File exists" in told


def test_a_lost_gpu_ends_the_process_and_not_the_sweep(make_cell, session, monkeypatch, capsys):
    cells = [make_cell(*SHORT), make_cell("method=lora", *SHORT)]
    sweep = frozen_plan.freeze(cells)

    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(session, "_run", fail)
    monkeypatch.setattr(sys, "argv", ["worker", str(sweep.path)])
    assert worker_process.main() == exits.LOST
    assert [c.state for c in cells] == ["failed", "missing"]
    with pytest.raises(DeviceLost):
        run.run_missing(cells)
    assert [c.state for c in cells] == ["failed", "missing"]
    assert "2 cells: 1 missing, 1 failed" in capsys.readouterr().out


@pytest.mark.sweep
def test_the_starting_process_may_die_and_the_next_one_attaches(make_cell, tmp_path, capsys):
    place = [f"ledger={tmp_path}/ledger", f"runs={tmp_path}/runs", *LONG]
    cell = make_cell(*place, "method=lora")
    code = (
        "from osora_bench.sweep.options import RunOptions\n"
        "from osora_bench.sweep import frozen_plan, run; import sys; from pathlib import Path\n"
        "run.run_missing(frozen_plan.thaw(Path(sys.argv[1])).cells, RunOptions(workers=2))"
    )
    sweep = frozen_plan.freeze([cell])
    parent = subprocess.Popen([sys.executable, "-c", code, str(sweep.path)])
    worker = started(cell)
    parent.kill()
    parent.wait()
    os.kill(worker, 0)  # it is there
    assert run.run_missing([cell]) == exits.OK
    told = capsys.readouterr().out
    assert f"{cell.label}: runs already on" in told
    assert f"(pid {worker})" in told
    assert "[1/1]" not in told  # it was not run here
    assert record.read_record(cell.record)["measured"]["starts"] == 1


def test_other_code_than_the_sweeps_is_refused_or_marked(make_cell, tmp_path, monkeypatch):
    cell = make_cell("method=none", *SHORT)
    sweep = frozen_plan.freeze([cell])
    from_another_commit(sweep)
    with pytest.raises(UserError, match=r"started with commit 000000000000.*allow_changed=true"):
        worker_process.work(frozen_plan.thaw(sweep.path))
    assert not cell.record.exists()
    monkeypatch.setenv("OSORA_CHANGED_SINCE_PLAN", "")
    assert worker_process.work(frozen_plan.thaw(sweep.path), allow_changed=True) == exits.OK
    assert record.read_record(cell.record)["provenance"]["changed_since_plan"] is True


def test_a_method_that_is_added_while_a_sweep_runs_does_not_stop_it(
    make_cell, tmp_path, monkeypatch
):
    (tmp_path / "conf" / "method").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    cell = make_cell("method=none", *SHORT)
    sweep = frozen_plan.freeze([cell])
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("name: mine\n")
    assert worker_process.work(frozen_plan.thaw(sweep.path)) == exits.OK
    assert "changed_since_plan" not in record.read_record(cell.record)["provenance"]


def test_a_worker_looks_at_the_code_before_each_cell(make_cell, session, monkeypatch):
    """The tree is changed while the first of two runs."""
    cells = [make_cell("method=none", *SHORT), make_cell("method=lora", *SHORT)]
    sweep = frozen_plan.freeze(cells)
    whole, then = session._run, code_state.look()

    def change(cell, tracker):
        monkeypatch.setattr(code_state, "look", lambda *_: {**then, "diff": "1" * 64})
        return whole(cell, tracker)

    monkeypatch.setattr(session, "_run", change)
    with pytest.raises(UserError, match="with changes 111111111111"):
        worker_process.work(sweep)
    assert [cell.state for cell in cells] == ["done", "missing"]


@pytest.mark.sweep
def test_a_cell_that_ends_while_a_start_gets_ready_is_told(make_cell, capsys):
    """Counted as running, done before the sweep is frozen: with its line all the same."""
    cells = [make_cell("method=none", *SHORT), make_cell("method=lora", *SHORT)]
    in_process(cells)
    run.run_by(cells, RunOptions(workers=2))
    told = capsys.readouterr().out
    assert [cell.label in told for cell in cells] == [True, True]
    assert "workers; their output" not in told


def test_files_that_changed_under_a_sweep_are_refused(make_cell, tmp_path):
    from osora_bench.common import paths

    source = paths.data_file("pkg://osora_bench.toy/data/gsm8k/train.jsonl")
    copy = tmp_path / "train.jsonl"
    rows = source.read_text(encoding="utf-8").splitlines()
    copy.write_text("\n".join(rows) + "\n", encoding="utf-8")
    cell = make_cell(f"task.sources.0.path={copy}", *SHORT)
    check_content(cell)
    copy.write_text("\n".join(reversed(rows)) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="have changed since the sweep was started"):
        check_content(cell)


def test_a_frozen_sweep_is_read_back_as_it_was(make_cell):
    cells = [make_cell(f"method={m}", "seed=3") for m in ("osora", "none")]
    sweep = frozen_plan.freeze(cells)
    again = frozen_plan.thaw(sweep.path)
    assert again == sweep
    assert frozen_plan.thaw(sweep.path, only=cells[1].run_id).cells == [cells[1]]
    assert again.code == code_state.code()
    assert frozen_plan.changes(again) is None


@pytest.mark.parametrize(
    ("named", "count", "names"),
    [("3,5", 2, ["3", "5"]), ("-1", 0, []), (None, 2, ["0", "1"]), ("MIG-a", 1, ["MIG-a"]),
     ("0,-1,2", 1, ["0"])],
)  # fmt: skip
def test_gpus_are_those_that_torch_sees_by_the_names_they_were_given(
    named, count, names, monkeypatch, make_cell
):
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert workers.gpus([make_cell()]) == names
    assert workers.gpus([make_cell("device=cpu")]) == []


def test_there_is_a_gpu_for_each_worker(monkeypatch, make_cell):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="workers=3: there are 2 GPUs"):
        workers.run_in_workers([make_cell()], RunOptions(workers=3))


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_workers_are_a_number(text, capsys):
    from osora_bench.cli.main import main

    assert main(["run", "experiment=demo", f"workers={text}"]) == 2
    assert "a whole number of at least 1" in capsys.readouterr().err
