"""Sweeps on SLURM: a throw-away cluster of two nodes on this machine (shared by all tests here)."""

import json
import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from osora_bench.common import exits
from osora_bench.common.errors import UserError
from osora_bench.planning.compose import quoted
from osora_bench.records import record
from osora_bench.sweep import frozen_plan, run
from osora_bench.sweep.options import RunOptions
from osora_bench.sweep.slurm import profile
from osora_bench.sweep.slurm import queue as slurm_queue
from osora_bench.sweep.slurm.submission import prepared
from tests.sweep.conftest import ON_SLURM, QUICK, SHORT, SMALL
from tests.sweep.slurm_cluster import MISSING, PACKAGES, Cluster
from tests.sweeps import numbers, wait_until

pytestmark = pytest.mark.usefixtures("quick")


def needs_slurm(test):
    """Runs jobs on the cluster: skipped where there is no SLURM, and left out by test-fast."""
    missing = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} ({PACKAGES})")
    return pytest.mark.sweep(missing(test))


LONG = ["trainer.max_steps=60", "trainer.checkpoint_minutes=0", *SHORT[1:]]
SBATCH_HELD = ["sbatch", "--hold", "--output=/dev/null", "--wrap=true"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of one core. Its daemons end with the module's tests."""
    with (
        Cluster(tmp_path_factory.mktemp("slurm"), array=4) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**made.environment, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        slurm_queue.array_limit.cache_clear()
        yield made
        slurm_queue.array_limit.cache_clear()


def in_one_process(cells):
    """Run cells without SLURM, with as many threads as a job there has."""
    sweep = frozen_plan.freeze(cells)
    worker = [sys.executable, "-m", "osora_bench.sweep.worker_process", str(sweep.path)]
    subprocess.run(worker, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def start(cells, *launcher):
    """Watch a sweep from another process, as the command line does."""
    code = (
        "import sys; from pathlib import Path; from osora_bench.sweep import frozen_plan, run\n"
        "from osora_bench.sweep.options import RunOptions\n"
        "from osora_bench.sweep.slurm import sweep as slurm\n"
        f"vars(slurm).update({QUICK})\n"
        "cells = frozen_plan.thaw(Path(sys.argv[1])).cells\n"
        "sys.exit(run.run_missing(cells, RunOptions(launcher=tuple(sys.argv[2:]))))"
    )
    sweep = frozen_plan.freeze(cells)
    command = [sys.executable, "-c", code, str(sweep.path), *(launcher or ON_SLURM)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def submissions(cell):
    return sorted(cell.paths.runs.glob("plans/*/slurm-*"))


def job_of(cell):
    """The id of a cell's job once it is in the queue."""
    return wait_until(
        lambda: slurm_queue.queued([cell]).get(cell.run_id), f"job of {cell.label}"
    ).id


def checkpoints(cell):
    """The steps that a cell could go on from."""
    return {p.parent.name for p in cell.paths.trainer.glob("checkpoint-*/complete.json")}


@needs_slurm
def test_a_grid_runs_on_both_nodes_in_arrays_that_fit_and_a_failure_stops_no_other(
    cluster, grid, capsys
):
    """Six cells where an array may have four; the records are those of one process."""
    methods = ["osora", "lora", "pissa", "vera", "none"]
    cells = grid("slurm", methods, *SHORT)
    # its package is not here: refused when the optimiser is made, not before
    (broken,) = grid("slurm", ["lora"], *SHORT, "trainer.optimizer=adamw_bnb_8bit")
    assert run.run_missing([broken, *cells], RunOptions(launcher=ON_SLURM)) == exits.FAILED
    told = capsys.readouterr().out
    assert f"failed: {broken.label}: ImportError" in told
    assert "6 cells: 5 done, 1 failed" in told
    sizes = [len(json.loads((p / "cells.json").read_text())) for p in submissions(broken)]
    assert sizes == [4, 2]
    logs = [p.read_text() for f in submissions(broken) for p in f.glob("*_log.out")]
    assert {line.split()[-1] for log in logs for line in log.splitlines() if "on node" in line} == {
        "n1",
        "n2",
    }
    alone = grid("alone", methods, *SHORT)
    in_one_process(alone)
    assert [numbers(c) for c in cells] == [numbers(c) for c in alone]


def as_soon_as_checkpointed(*deeds):
    """Do to each cell what is to be done to it, whichever comes first."""
    left = list(deeds)

    def done():
        for ready in [one for one in left if checkpoints(one[0])]:
            cell, deed = ready
            deed(cell)
            left.remove(ready)
        return not left

    wait_until(done, "checkpoints")


def started_again(number):
    """Wait until a requeued job runs; SLURM itself would wait longer."""
    shown = ["squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T"]

    def state():
        return subprocess.run(shown, check=True, capture_output=True, text=True).stdout.strip()

    def runs():
        update = ["scontrol", "update", f"jobid={number}", "StartTime=now"]
        subprocess.run(update, check=False, capture_output=True)
        return state() != "PENDING"

    wait_until(lambda: state() == "PENDING", "requeued")
    wait_until(runs, "started again")


@needs_slurm
def test_killed_and_requeued_cells_end_with_the_record_of_an_undisturbed_run(cluster, grid):
    """One is killed. The other is told of its time limit (USR2), and then requeued (SIGTERM)."""
    methods = ["osora", "lora"]
    killed, requeued = cells = grid("slurm", methods, *LONG)
    watcher = start(cells)
    as_soon_as_checkpointed(
        # not through scancel, which may cancel the job: both nodes are this machine
        (killed, lambda cell: os.kill(cell.holder["pid"], signal.SIGKILL)),
        (requeued, lambda cell: cluster.ask("scancel", "--signal=USR2", job_of(cell))),
    )
    number = job_of(requeued)
    started_again(number)
    before = checkpoints(requeued)
    wait_until(lambda: checkpoints(requeued) - before or requeued.state == "done", "a checkpoint")
    cluster.ask("scontrol", "requeue", number)
    started_again(number)
    told, _ = watcher.communicate(timeout=600)
    assert watcher.returncode == exits.OK, told
    assert f"{killed.label}: its job " in told
    assert " ended without a record (FAILED)" in told
    assert requeued.label + ": its job" not in told
    assert [s.name for s in submissions(killed)] == ["slurm-1", "slurm-2"]  # what was killed
    log = "".join(p.read_text() for p in submissions(requeued)[0].glob("*_log.*"))
    assert "Requeued job" in log
    resumed = log.count(f"{requeued.label}: goes on from")
    # a fast cell is done before SIGTERM's time is over, and its job then finds nothing to do
    assert resumed == 2 or (resumed == 1 and f"{requeued.label}: nothing to do" in log)
    starts = [record.read_record(c.record)["measured"]["starts"] for c in cells]
    assert starts == [2, 1 + resumed]
    alone = grid("alone", methods, *LONG)
    in_one_process(alone)
    assert [numbers(c) for c in cells] == [numbers(c) for c in alone]


@needs_slurm
def test_the_starting_process_may_die_and_the_next_one_attaches(cluster, grid, capsys):
    cells = grid("slurm", ["osora", "lora", "pissa"], *LONG)
    first = start(cells)
    wait_until(lambda: all(c.run_id in slurm_queue.queued(cells) for c in cells), "jobs of all")
    launching = psutil.Process(first.pid).children()
    for one in [psutil.Process(first.pid), *launching]:
        one.kill()
    first.wait()
    waiting = [c for c in cells if state_of(c) == "queued"]
    assert waiting  # two nodes, three cells
    assert run.run_missing(cells, RunOptions(launcher=ON_SLURM)) == exits.OK
    told = capsys.readouterr().out
    for cell in waiting:
        assert f"{cell.label}: has a job already, " in told
    assert len(submissions(cells[0])) == 1
    assert [record.read_record(c.record)["measured"]["starts"] for c in cells] == [1, 1, 1]


def state_of(cell):
    return slurm_queue.state_of(cell, slurm_queue.queued([cell]))


@needs_slurm
def test_a_held_job_is_told_and_cancelled_ones_are_not_tried_again(cluster, grid):
    """SLURM keeps one row, without an index, of what waited of an array that is cancelled."""
    cells = grid("slurm", ["none", "lora", "osora"], *SHORT)
    hold = "+hydra.launcher.additional_parameters.hold=true"
    watcher = start(cells, *ON_SLURM, hold)
    number = job_of(cells[0])
    array = number.partition("_")[0]
    assert state_of(cells[0]) == "queued"
    job_there = slurm_queue.queued(cells)[cells[0].run_id]
    assert str(job_there) == f"job {number} (pending, JobHeldUser)"
    with start(cells, *ON_SLURM, hold, "hydra.launcher.mem_gb=2") as other:
        assert other.stdout is not None
        line = next(line for line in other.stdout if line.startswith("WARNING"))
        other.kill()
    assert "as it was submitted, with hydra.launcher.mem_gb=1, not 2. " in line
    assert f"`scancel --state=PENDING {array}`" in line
    assert watcher.stdout is not None
    told = []
    for line in watcher.stdout:
        told.append(line)
        if "is held" in line:
            cluster.ask("scancel", "--state=PENDING", array)
    assert watcher.wait() == exits.FAILED
    told = "".join(told)
    assert f"job {number} is held: JobHeldUser" in told
    for cell in cells:
        assert f"failed: {cell.label}: its job {array} was cancelled" in told
    assert len(submissions(cells[0])) == 1


@needs_slurm
def test_a_job_that_slurm_holds_of_itself_is_submitted_anew(cluster, grid):
    """Its node cannot start it: SLURM drains the node, requeues the job and holds it."""
    cells = grid("slurm", ["none", "lora"], *SHORT)
    cluster.break_nodes()
    watcher = start(cells)
    assert watcher.stdout is not None
    lines = []
    for line in watcher.stdout:
        lines.append(line)
        if "was held by SLURM" in line:
            cluster.mend_nodes()
    output = "".join(lines)
    assert watcher.wait() == exits.OK, output
    assert "was held by SLURM (launch failed requeued held)" in output
    assert "cancelled" not in output
    assert [s.name for s in submissions(cells[0])][:2] == ["slurm-1", "slurm-2"]


@needs_slurm
def test_a_job_that_a_person_holds_is_left_to_itself_when_nothing_moves(cluster, grid, capsys):
    cells = grid("slurm", ["none", "lora"], *SHORT)
    hold = "+hydra.launcher.additional_parameters.hold=true"
    assert run.run_missing(cells, RunOptions(launcher=(*ON_SLURM, hold), wait=0.1)) == exits.FAILED
    jobs = slurm_queue.queued(cells)
    assert jobs.keys() == {cell.run_id for cell in cells}  # they stay
    output = capsys.readouterr().out
    assert "nothing has moved for 0.1 minutes (wait=0.1), so this start ends." in output
    assert "in the queue: 2 pending, JobHeldUser" in output
    assert "2 cells: 2 missing" in output
    cluster.ask("scancel", "--me")


@needs_slurm
def test_a_refused_submission_is_a_mistake_of_the_call(cluster, grid):
    (cell,) = grid("slurm", ["none"], *SHORT)
    with pytest.raises(UserError, match="not submitted: .*Invalid partition name"):
        run.run_missing(
            [cell], RunOptions(launcher=(*ON_SLURM, "hydra.launcher.partition=none-such"))
        )
    assert cell.state == "missing"


@needs_slurm
def test_a_plain_multirun_runs_there_too(cluster, tmp_path):
    command = [
        *(sys.executable, "-m", "osora_bench", "-m", "hydra/launcher=submitit_slurm", *SMALL),
        *(f"ledger={tmp_path}/ledger", f"runs={tmp_path}/runs", *SHORT, "method=none,lora"),
    ]
    failed = subprocess.run(
        [*command, "trainer.optimizer=adamw_bnb_8bit"], check=False, capture_output=True, text=True
    )
    assert failed.returncode == exits.FAILED, failed.stderr
    assert "toy lora r=16 seed=0: ImportError" in failed.stderr
    assert len(list(tmp_path.glob("ledger/*.json"))) == 1  # the base model needs no optimiser
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == exits.OK, done.stderr
    assert len(list(tmp_path.glob("ledger/*.json"))) == 2


@needs_slurm
def test_a_place_of_any_name_has_its_jobs_in_it(cluster, make_cell, tmp_path):
    place = tmp_path / """é it's a "b" (c), [d] e=f & 50% g $HOME"""
    where = [f"{key}={quoted(str(place / key))}" for key in ("ledger", "runs")]
    cells = [make_cell(*where, f"method={m}", *SHORT) for m in ("none", "lora")]
    assert run.run_missing(cells, RunOptions(launcher=ON_SLURM)) == exits.OK
    (submission,) = submissions(cells[0])
    assert str(submission).startswith(str(place))
    assert len([*submission.glob("*_log.out")]) == len(cells)


@needs_slurm
def test_jobs_of_others_are_not_mistaken_for_ours(cluster, grid):
    (cell,) = grid("slurm", ["none"], *SHORT)
    for name in ("osora-train", "osora-0123456789ab-1", "osora-a-b-c", "x|y"):
        cluster.ask(*SBATCH_HELD, f"--job-name={name}")
    assert slurm_queue.jobs_in_queue(cell.paths.runs) == {}
    cluster.ask("scancel", "--me")


@pytest.fixture
def odd_squeue(tmp_path, monkeypatch):
    """An squeue that does not know --me, and greets."""
    script = tmp_path / "bin" / "squeue"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\n"
        'case " $* " in *" --me "*) echo "squeue: unrecognized option --me" >&2; exit 1;; esac\n'
        "echo; echo '*** closed | on | friday | from | noon | on ***'; echo osora-0a-1\n"
        f'exec {shutil.which("squeue")} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")


@needs_slurm
def test_a_squeue_without_me_that_greets_is_understood(cluster, odd_squeue, grid):
    (cell,) = grid("slurm", ["none"], *SHORT)
    theirs = prepared(frozen_plan.freeze([cell]).path.with_suffix(""), [cell.run_id], {})
    profile.check_cluster("hydra/launcher=slurm")
    cluster.ask(*SBATCH_HELD, f"--job-name={theirs.name}", "--array=0")
    assert slurm_queue.queued([cell])[cell.run_id].state == "PENDING"
    cluster.ask("scancel", "--me")
