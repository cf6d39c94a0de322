"""What becomes of SLURM jobs as a sweep follows them: squeue and the jobs are made up."""

import itertools
import json
import subprocess
from datetime import datetime, timedelta

import pytest
from submitit.core.utils import UncompletedJobError

from osora_bench.common.claim import claimed
from osora_bench.common.errors import Refused
from osora_bench.pipeline.attempt import explained
from osora_bench.planning import cell as cells_module
from osora_bench.records import record
from osora_bench.sweep import frozen_plan, run
from osora_bench.sweep.options import RunOptions
from osora_bench.sweep.slurm import job_process
from osora_bench.sweep.slurm import queue as slurm_queue
from osora_bench.sweep.slurm import sweep as slurm
from osora_bench.sweep.slurm.submission import Submission
from osora_bench.sweep.watch import Watch
from tests.sweep.conftest import ON_SLURM, SHORT
from tests.sweeps import from_another_commit

pytestmark = pytest.mark.usefixtures("quick")


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
