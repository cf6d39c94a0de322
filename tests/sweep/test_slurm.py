"""Sweeps on SLURM: a throw-away cluster of two nodes on this machine (shared by all tests here)."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timedelta

import psutil
import pytest
from submitit.core.utils import UncompletedJobError

from osora_bench.cli.main import main
from osora_bench.common import exits
from osora_bench.common.claim import claimed
from osora_bench.common.errors import Refused, UserError
from osora_bench.pipeline.attempt import explained
from osora_bench.planning import cell as cells_module
from osora_bench.planning.compose import quoted
from osora_bench.records import record
from osora_bench.sweep import frozen_plan, run
from osora_bench.sweep.options import RunOptions
from osora_bench.sweep.slurm import job_process, profile
from osora_bench.sweep.slurm import queue as slurm_queue
from osora_bench.sweep.slurm import sweep as slurm
from osora_bench.sweep.slurm.submission import Submission, prepared
from osora_bench.sweep.watch import Watch
from tests.sweep.slurm_cluster import MISSING, PACKAGES, Cluster
from tests.sweeps import from_another_commit, numbers, wait_until


def needs_slurm(test):
    """Runs jobs on the cluster: skipped where there is no SLURM, and left out by test-fast."""
    missing = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} ({PACKAGES})")
    return pytest.mark.sweep(missing(test))


SHORT = ["trainer.max_steps=3", "eval.datasets.0.limit=4", "eval.datasets.1.limit=4"]
LONG = ["trainer.max_steps=60", "trainer.checkpoint_minutes=0", *SHORT[1:]]
SMALL = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]
ON_SLURM = ("hydra/launcher=slurm", *SMALL)
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


QUICK = {"LOOK_EVERY": 0.5, "ASK_EVERY": 0.5, "GRACE": 2.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in QUICK.items():
        monkeypatch.setattr(slurm, name, seconds)


@pytest.fixture
def grid(make_cell, tmp_path):
    """Cells of several methods in a place of their own."""

    def make(where, methods, *overrides):
        place = [f"ledger={tmp_path}/{where}/ledger", f"runs={tmp_path}/{where}/runs"]
        return [make_cell(*place, f"method={m}", *overrides) for m in methods]

    return make


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


def test_a_job_that_slurm_holds_again_and_again_is_a_failure(grid, monkeypatch, capsys):
    (cell,) = grid("slurm", ["none"], *SHORT)
    sweep = slurm.Sweep(Watch(frozen_plan.freeze([cell])), ON_SLURM, {})
    cancelled = []
    monkeypatch.setattr(slurm, "cancel", lambda job: cancelled.append(job.id))

    def hold(number, reason="launch_failed_requeued_held"):
        job = slurm_queue.Job(number, "PENDING", reason, cell.paths.folder / "no.log")
        return sweep._needs_job(cell, job)

    assert not hold("1", "JobHeldUser")  # by a person: waited for
    assert not cancelled
    assert hold("1")
    assert not hold("2", "JobHoldMaxRequeue")
    assert cancelled == ["1", "2"]
    assert cell.error == "its job 2 was held by SLURM (JobHoldMaxRequeue), 2 times in all"


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


def test_an_squeue_that_does_not_answer_is_not_waited_for_without_end(grid, monkeypatch, capsys):
    def queue(runs):
        raise subprocess.CalledProcessError(1, "squeue", stderr="squeue: error: no such host")

    (cell,) = grid("slurm", ["none"], *SHORT)
    sweep = slurm.Sweep(Watch(frozen_plan.freeze([cell])), ON_SLURM, {})
    monkeypatch.setattr(slurm, "jobs_in_queue", queue)
    slurm._follow(sweep, wait=0.02)
    output = capsys.readouterr().out
    assert "squeue does not answer, waiting: squeue: error: no such host" in output
    assert "nothing has moved for 0.02 minutes" in output


def test_what_runs_is_waited_for_as_long_as_it_takes(grid, monkeypatch):
    """A cell in a job, and a job whose state changes."""
    (cell,) = grid("slurm", ["none"], *SHORT)
    sweep = slurm.Sweep(Watch(frozen_plan.freeze([cell])), ON_SLURM, {})
    now = [0.0]
    monkeypatch.setattr(slurm.time, "monotonic", lambda: now[0])

    def seen_to_move(state):
        now[0] += 1
        sweep._notice_moves([slurm_queue.Job("1", state, "None", cell.paths.folder / "no.log")])
        return sweep.moved == now[0]

    assert [seen_to_move(s) for s in ("PENDING", "PENDING", "RUNNING")] == [True, False, True]
    with claimed(cell.paths.folder):
        assert seen_to_move("RUNNING")
        assert seen_to_move("RUNNING")
    assert not seen_to_move("RUNNING")


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


@pytest.mark.parametrize("name", ["back\\slash", "50%x", "100%%", "a%4j", "${x}"])
def test_a_place_that_slurm_reads_otherwise_is_refused(name, grid, monkeypatch):
    monkeypatch.setattr(slurm, "check_cluster", lambda _: None)
    monkeypatch.setattr(slurm, "array_limit", lambda: 4)
    (cell,) = grid("slurm", ["none"], *SHORT)
    cell.config.runs = f"{cell.config.runs}/{name}"
    with pytest.raises(UserError, match=r"do not take .* as it stands.*take another folder"):
        run.run_missing([cell], RunOptions(launcher=ON_SLURM))


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


def test_a_squeue_that_does_not_answer_is_told_before_anything_is_submitted(
    grid, tmp_path, monkeypatch
):
    for tool in profile.TOOLS:
        (tmp_path / tool).write_text(
            "#!/bin/sh\necho 'squeue: error: no such cluster' >&2; exit 1\n"
        )
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (cell,) = grid("slurm", ["none"], *SHORT)
    with pytest.raises(UserError, match="does not answer: squeue: squeue: error: no such cluster"):
        run.run_missing([cell], RunOptions(launcher=ON_SLURM))


@pytest.mark.parametrize(
    ("rows", "states"),
    [
        (["1|N/A|1|CANCELLED"], "CANCELLED CANCELLED"),
        (["1|N/A|1|CANCELLED", "1|0|1_0|RUNNING"], "RUNNING CANCELLED"),
        (["1|1|1_1|FAILED", "1|N/A|1|CANCELLED"], "CANCELLED FAILED"),
        (["1|N/A|1|CANCELLED", "2|1|5_1|FAILED"], "CANCELLED FAILED"),
        (["2|N/A|5|CANCELLED", "1|1|1_1|FAILED"], "CANCELLED CANCELLED"),
        (["2|N/A|5|CANCELLED", "1|1|1_1|RUNNING"], "CANCELLED RUNNING"),
        (["1|0|1_0|RUNNING", "2|0|5_0|PENDING"], "PENDING"),
    ],
)
def test_the_job_that_counts_is_an_active_one_or_the_last(rows, states, grid, monkeypatch):
    cells = grid("slurm", ["osora", "lora"], *SHORT)
    sweep = frozen_plan.freeze(cells).path.with_suffix("")
    for number in (1, 2):
        (sweep / f"slurm-{number}").mkdir(parents=True)
        listed = json.dumps([cell.run_id for cell in cells])
        (sweep / f"slurm-{number}" / "cells.json").write_text(listed)
    told = "".join(f"osora-{sweep.name}-{row}|None\n" for row in rows)
    monkeypatch.setattr(
        slurm.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, told)
    )
    jobs = slurm_queue.jobs_in_queue(cells[0].paths.runs)
    assert [jobs[c.run_id].state for c in cells if c.run_id in jobs] == states.split()


def test_a_job_of_before_says_nothing_of_the_next(grid, monkeypatch, capsys):
    """A cell is submitted anew after a scancel, and its new job is never seen."""
    (cell,) = grid("slurm", ["osora"], *SHORT)
    sweep = slurm.Sweep(Watch(frozen_plan.freeze([cell])), ON_SLURM, {"array_parallelism": 2})
    before = slurm_queue.Job("2", "CANCELLED", "None", cell.paths.folder / "no.log")
    monkeypatch.setattr(slurm, "jobs_in_queue", lambda runs: {cell.run_id: before})
    monkeypatch.setattr(slurm, "array_limit", lambda: 4)
    monkeypatch.setattr(slurm, "GRACE", 0.0)
    launched = []
    monkeypatch.setattr(slurm.Sweep, "_launch", lambda self, ids, arrays: launched.append(ids))
    sweep.step()
    sweep.cell_jobs[cell.run_id].expect(None)  # as when the submitting process was killed
    sweep.step()
    assert f"{cell.label}: its job was never seen" in capsys.readouterr().out
    assert not sweep.plan.settled(cell)
    sweep.step()
    assert launched == [[cell.run_id]] * 2


def test_cells_that_another_start_submits_are_not_submitted_twice(grid, monkeypatch):
    cells = grid("slurm", ["osora", "lora"], *SHORT)
    theirs = Submission(frozen_plan.freeze(cells).path.with_suffix("") / "slurm-1")
    theirs.folder.mkdir(parents=True)
    (theirs.folder / "cells.json").write_text(json.dumps([cells[0].run_id]))
    ours = slurm.Sweep(Watch(frozen_plan.freeze(cells)), ON_SLURM, {})
    launched = []
    monkeypatch.setattr(slurm, "jobs_in_queue", lambda runs: {})
    monkeypatch.setattr(slurm, "array_limit", lambda: 4)
    monkeypatch.setattr(slurm.Sweep, "_launch", lambda self, ids, arrays: launched.append(ids))
    with claimed(theirs.folder):
        ours._submit(cells)
    assert launched == [[cells[1].run_id]]


def miss(sweep, cell):
    """As when a cell's job has been missed for long."""
    sweep.cell_jobs[cell.run_id].expect(None)
    sweep.cell_jobs[cell.run_id].gone_since = 0.0


def test_a_cell_without_a_trace_of_its_job_fails_after_its_retries(grid, capsys):
    (cell,) = grid("slurm", ["osora"], *SHORT)
    sweep = slurm.Sweep(Watch(frozen_plan.freeze([cell])), ON_SLURM, {"mem_gb": 3})

    def lose(state):
        miss(sweep, cell)
        sweep._needs_job(cell, slurm_queue.Job("7_1", state, "None", cell.paths.folder / "no.log"))

    lose("FAILED")
    assert not sweep.plan.settled(cell)
    lose("NODE_FAIL")
    assert cell.error == "its job 7_1 ended without a record (NODE_FAIL), 2 times in all"
    cell.paths.failure.unlink()
    lose("OUT_OF_MEMORY")
    assert cell.error.startswith("out of memory: hydra.launcher.mem_gb (now 3) makes it larger; ")


def test_a_job_with_other_code_than_its_sweep_is_a_failure_of_its_cell(grid, capsys):
    (cell,) = grid("slurm", ["none"], *SHORT)
    sweep = frozen_plan.freeze([cell])
    from_another_commit(sweep)
    job_process.run_cell(sweep.path, cell.run_id, False)
    assert cell.error.startswith("the sweep was started with commit 000000000000")
    assert sweep.settled(cell)


def test_a_failure_on_a_node_whose_clock_is_behind_is_one_of_this_sweep(grid, monkeypatch):
    """What had failed before is still tried again, by the start and by the job."""
    (cell,) = grid("slurm", ["none"], *SHORT)
    cell.fail("in an earlier sweep")
    sweep = frozen_plan.freeze([cell])
    there = frozen_plan.thaw(sweep.path, only=cell.run_id)
    assert sweep.waits(cell)
    assert there.waits(cell)
    monkeypatch.setattr(cells_module, "datetime", ClockBehind)
    cell.fail("in this one")
    assert cell.failed < sweep.started
    assert sweep.settled(cell)
    assert there.settled(cell)


class ClockBehind(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) - timedelta(hours=1)


def test_retries_are_as_many_as_said(grid, capsys):
    (cell,) = grid("slurm", ["osora"], *SHORT)
    sweep = slurm.Sweep(Watch(frozen_plan.freeze([cell])), ON_SLURM, {"mem_gb": 3}, retries=0)
    miss(sweep, cell)
    sweep._needs_job(cell, None)
    assert cell.error == "its job was never seen"


def test_a_job_that_is_run_again_notices_that_its_cell_is_done(grid, session, capsys):
    (cell,) = grid("slurm", ["none"], *SHORT)
    sweep = frozen_plan.freeze([cell])
    for _ in range(2):
        job_process.run_cell(sweep.path, cell.run_id, False)
    assert f"{cell.label}: nothing to do, it is done" in capsys.readouterr().out
    assert record.read_record(cell.record)["measured"]["starts"] == 1


def test_a_time_limit_reached_too_often_names_the_setting(grid):
    (cell,) = grid("slurm", ["none"], *SHORT)
    error = UncompletedJobError("Job not requeued because: timed-out too many times.")
    assert "more often than hydra.launcher.max_num_timeout allows" in explained(error, cell)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.launcher.partition=a"], "needs a launcher: hydra/launcher=slurm"),
        (["hydra/launcher=slurm", "workers=2"], "name one way to run the cells"),
        (["wait=5"], "wait=5 is for SLURM jobs: it needs hydra/launcher=slurm"),
        (["hydra/launcher=slurm", "wait=0"], "wait=0: a whole number of at least 1"),
    ],
)
def test_a_launcher_is_named_and_alone(arguments, message, capsys):
    assert main(["run", "experiment=demo", *arguments]) == exits.MISTAKE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (["hydra/launcher=slrum"], "unknown hydra/launcher 'slrum'. Did you mean 'slurm'"),
        (
            ["hydra/launcher=slurm", "hydra.launcher.partitoin=a"],
            "unknown setting hydra.launcher.* 'partitoin'. Did you mean 'partition'?",
        ),
        (["hydra/launcher=slurm", "+hydra.launcher.mem_db=3"], "hydra.launcher.* 'mem_db'. Did"),
        (["hydra/launcher=submitit_local"], "other launchers take a multirun"),
        (["hydra/launcher=slurm", "hydra.launcher.mem_gb=lots"], "could not be converted"),
        (
            ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=a100:1"],
            "gpus_per_node=a100:1: takes a whole number; GPUs of a type are asked for by "
            "hydra.launcher.gres=gpu:a100:1",
        ),
        (["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=h100"], "gres=gpu:h100:1"),
        (["hydra/launcher=slurm", "hydra.launcher.gpus_per_task=v100:2"], "gres=gpu:v100:2"),
        (["hydra/launcher=slurm", "hydra.launcher.mem_gb=-1"], "mem_gb=-1: must be at least 0"),
        (["hydra/launcher=slurm", "hydra.launcher.nodes=2"], "nodes=2: a job runs one cell"),
        (["hydra/launcher=slurm", "hydra/launcher=slurm"], "beside one hydra/launcher"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_mistaken_launcher_is_refused_before_anything_starts(verb, how, message, capsys):
    assert main([verb, "experiment=demo", *how]) == exits.MISTAKE
    assert message in capsys.readouterr().err


def test_a_sweep_for_slurm_is_planned_where_there_is_no_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert main(["plan", "experiment=demo", *ON_SLURM]) == exits.OK
    assert "17 cells" in capsys.readouterr().out


def test_without_slurm_it_says_so(grid, monkeypatch):
    cells = grid("slurm", ["none"], *SHORT)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(UserError, match="no `sbatch` on the PATH; is this a SLURM cluster?"):
        run.run_missing(cells, RunOptions(launcher=ON_SLURM))


def test_what_may_wait_for_ever_is_told_once_a_reason(grid, capsys):
    cells = grid("slurm", ["osora", "lora", "pissa"], *SHORT)
    sweep = slurm.Sweep(Watch(frozen_plan.freeze(cells)), ON_SLURM, {})
    reasons = ["PartitionTimeLimit", "PartitionTimeLimit", "QOSMaxJobsPerUserLimit"]
    for number, (cell, reason) in enumerate(zip(cells, reasons, strict=True)):
        job = slurm_queue.Job(str(number), "PENDING", reason, cell.paths.folder / "no.log")
        assert not sweep._needs_job(cell, job)
    told = capsys.readouterr().out.splitlines()
    assert told == [f"{cells[0].label}: job 0 waits, perhaps for ever: PartitionTimeLimit"]


def test_a_cluster_that_is_not_reached_is_tried_ever_less_often(grid, monkeypatch, capsys):
    cells = grid("slurm", ["osora", "lora", "pissa"], *SHORT)
    sweep = slurm.Sweep(Watch(frozen_plan.freeze(cells)), ON_SLURM, {"array_parallelism": 4})
    now = [0.0]
    monkeypatch.setattr(slurm.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(slurm, "jobs_in_queue", lambda runs: {})
    monkeypatch.setattr(slurm, "array_limit", lambda: 1)  # three arrays, each with its launcher
    tried = []

    def launch(self, run_ids, arrays):
        tried.append(now[0])
        submission = Submission(sweep.folder / f"slurm-{len(tried)}")
        submission.folder.mkdir(parents=True)
        (submission.folder / "cells.json").write_text(json.dumps(run_ids))
        (submission.folder / "launcher.log").write_text("Unable to contact slurm controller")
        ended = subprocess.Popen(["false"])
        ended.wait()
        self.launching[submission.name] = (submission, ended)

    monkeypatch.setattr(slurm.Sweep, "_launch", launch)
    while now[0] < 3600:
        sweep.step()
        now[0] += 15
    assert all(tried.count(when) == len(cells) for when in tried)
    waits = [later - earlier for earlier, later in itertools.pairwise(sorted(set(tried)))]
    assert waits[:4] == [30, 45, 75, 135]
    assert max(waits) <= slurm.LATEST + 30
    told = capsys.readouterr().out
    assert told.count("does not reach the cluster, trying again: Unable to contact") == 1


def test_more_arrays_than_may_run_at_once_are_told(grid, monkeypatch, capsys):
    cells = grid("slurm", ["osora", "lora", "pissa"], *SHORT)
    sweep = slurm.Sweep(Watch(frozen_plan.freeze(cells)), ON_SLURM, {"array_parallelism": 2})
    monkeypatch.setattr(slurm, "jobs_in_queue", lambda runs: {})
    monkeypatch.setattr(slurm, "array_limit", lambda: 1)
    monkeypatch.setattr(slurm.Sweep, "_launch", lambda *_: None)
    sweep._submit(cells)
    assert "up to 3 jobs at once, more than array_parallelism=2" in capsys.readouterr().out


def test_jobs_without_a_gpu_for_models_that_need_one_are_told(make_cell, capsys):
    profile.check_gpus({"gpus_per_node": None}, [make_cell("model.needs_gpu=true")])
    assert "toy need a GPU; hydra.launcher.gpus_per_node is not set" in capsys.readouterr().out
    profile.check_gpus({"gpus_per_node": 1}, [make_cell("model.needs_gpu=true")])
    profile.check_gpus({"gpus_per_node": None}, [make_cell()])
    assert capsys.readouterr().out == ""
    profile.check_gpus(
        {"gpus_per_node": None, "additional_parameters": {"gres": "gpu:1"}},
        [make_cell("model.needs_gpu=true")],
    )
    assert capsys.readouterr().out == ""


def test_a_refusal_on_the_way_is_told_after_the_jobs_have_ended(grid, monkeypatch, capsys):
    """One of two arrays is refused: the other's job is followed to its end."""
    cells = grid("slurm", ["osora", "lora"], *SHORT)
    states = iter(["PENDING", "RUNNING", "RUNNING"])
    monkeypatch.setattr(slurm, "profile", lambda _: {"array_parallelism": 4, "gpus_per_node": 1})
    monkeypatch.setattr(slurm, "check_cluster", lambda _: None)
    monkeypatch.setattr(slurm, "array_limit", lambda: 1)
    monkeypatch.setattr(slurm, "LOOK_EVERY", 0)

    def queue(runs):
        if not list(runs.glob("plans/*/slurm-2")):
            return {}
        state = next(states, None)
        if state is None:
            cells[0].fail("for the sake of a verdict")
            return {}
        return {cells[0].run_id: slurm_queue.Job("7", state, "None", cells[0].paths.folder / "log")}

    def launch(self, run_ids, arrays):
        number = 1 + len(list(self.folder.glob("slurm-*")))
        submission = Submission(self.folder / f"slurm-{number}")
        submission.folder.mkdir(parents=True)
        (submission.folder / "cells.json").write_text(json.dumps(run_ids))
        (submission.folder / "launcher.log").write_text(
            "sbatch: error: QOSMaxSubmitJobPerUserLimit"
        )
        ended = subprocess.Popen(["true" if number == 1 else "false"])
        ended.wait()
        self.launching[submission.name] = (submission, ended)

    monkeypatch.setattr(slurm, "jobs_in_queue", queue)
    monkeypatch.setattr(slurm.Sweep, "_launch", launch)
    with pytest.raises(Refused, match="not submitted: sbatch: error: QOSMaxSubmit"):
        run.run_missing(cells, RunOptions(launcher=ON_SLURM))
    told = capsys.readouterr().out
    assert f"{cells[0].label}: FAILED, for the sake of a verdict" in told
    assert "2 cells: 1 missing, 1 failed" in told
