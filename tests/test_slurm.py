"""Sweeps on SLURM: a throw-away cluster of two nodes on this machine (shared by all tests here)."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from osora_bench import cli, frozen, job, record, run, slurm
from osora_bench.claim import claimed
from osora_bench.errors import UserError

TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
MISSING = [
    tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None
]
needs_slurm = pytest.mark.skipif(
    bool(MISSING), reason=f"no {', '.join(MISSING)} (Debian: slurmctld slurmd slurm-client)"
)

SHORT = ["trainer.max_steps=3", "eval.datasets.0.limit=4", "eval.datasets.1.limit=4"]
LONG = ["trainer.max_steps=150", "trainer.checkpoint_minutes=0.02", *SHORT[1:]]
SMALL = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]
ON_SLURM = ["hydra/launcher=slurm", *SMALL]

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=3
MaxArraySize=4
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=8000
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def ask(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_until(true, what, seconds=120):
    until = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of one core; no root, no slurmdbd. Its daemons end with the module's tests."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    told = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser()}
    conf.write_text(CONF.format(folder=folder, ports=free_ports(3), **told))
    commands = [
        ["slurmctld", "-D", "-i", "-f", str(conf)],
        *(["slurmd", "-D", "-N", node, "-f", str(conf)] for node in ("n1", "n2")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        patch.setenv("OMP_NUM_THREADS", "1")
        daemons = [
            subprocess.Popen(
                c, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            for c in commands
        ]
        try:
            nodes = ["sinfo", "--noheader", "--Node", "--format=%N %t"]
            wait_until(lambda: up(nodes), f"the cluster does not start: {folder}", 30)
            slurm.array_limit.cache_clear()
            yield folder
        finally:
            subprocess.run(["scancel", "--me"], check=False, timeout=30)
            stop(daemons)
            slurm.array_limit.cache_clear()


def up(command):
    told = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return told.split() == ["n1", "idle", "n2", "idle"]


def stop(daemons):
    for one in reversed(daemons):
        one.terminate()
    for one in daemons:
        try:
            one.wait(timeout=10)
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(slurm, "LOOK_EVERY", 0.5)
    monkeypatch.setattr(slurm, "GRACE", 2.0)


@pytest.fixture
def grid(make_cell, tmp_path):
    """Cells of several methods in a place of their own."""

    def make(where, methods, *overrides):
        place = [f"ledger={tmp_path}/{where}/ledger", f"runs={tmp_path}/{where}/runs"]
        return [make_cell(*place, f"method={m}", *overrides) for m in methods]

    return make


def numbers(cell):
    body = record.read(cell.record)
    return {k: v for k, v in body.items() if k not in ("measured", "sha256", "schema")}


def in_one_process(cells):
    """Run cells without SLURM, with as many threads as a job there has."""
    sweep = frozen.freeze(cells)
    worker = [sys.executable, "-m", "osora_bench.worker", str(sweep.path)]
    subprocess.run(worker, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def start(cells, *launcher):
    """Watch a sweep from another process, as the command line does."""
    code = (
        "import sys; from pathlib import Path; from osora_bench import frozen, run, slurm\n"
        "slurm.LOOK_EVERY, slurm.GRACE = 0.5, 2.0\n"
        "sys.exit(run.run_missing(frozen.thaw(Path(sys.argv[1])).cells, launcher=sys.argv[2:]))"
    )
    sweep = frozen.freeze(cells)
    command = [sys.executable, "-c", code, str(sweep.path), *(launcher or ON_SLURM)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def submissions(cell):
    return sorted(cell.paths.runs.glob("plans/*/slurm-*"))


def job_of(cell):
    """The id of a cell's job once it is in the queue."""
    return wait_until(lambda: slurm.queued([cell]).get(cell.run_id), f"job of {cell.label}").id


def checkpointed(cell):
    """Wait until a cell has something to go on from."""
    place = cell.paths.trainer
    wait_until(lambda: list(place.glob("checkpoint-*/complete.json")), f"checkpoint: {cell.label}")


@needs_slurm
def test_a_grid_runs_on_both_nodes_in_arrays_that_fit_and_a_failure_stops_no_other(
    cluster, grid, capsys
):
    """Six cells where an array may have four; the records are those of one process."""
    methods = ["osora", "lora", "pissa", "vera", "none"]
    cells = grid("slurm", methods, *SHORT)
    # refused when the optimiser is made, not before
    (broken,) = grid("slurm", ["lora"], *SHORT, "trainer.optimizer=nonsense")
    assert run.run_missing([broken, *cells], launcher=ON_SLURM) == run.FAILED
    told = capsys.readouterr().out
    assert f"failed: {broken.label}: ValueError" in told
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


@needs_slurm
def test_killed_and_requeued_cells_end_with_the_record_of_an_undisturbed_run(cluster, grid):
    methods = ["osora", "lora"]
    killed, requeued = cells = grid("slurm", methods, *LONG)
    watcher = start(cells)
    for cell in cells:
        checkpointed(cell)
    os.kill(killed.holder["pid"], signal.SIGKILL)  # both nodes are this machine
    again = job_of(requeued)
    ask("scancel", "--signal=USR2", again)
    shown = ["squeue", "--noheader", "--states=all", f"--jobs={again}", "--format=%T"]
    wait_until(lambda: ask(*shown).strip() == "PENDING", "requeued")
    time.sleep(2.5)
    ask("scontrol", "update", f"jobid={again}", "StartTime=now")
    told, _ = watcher.communicate(timeout=240)
    assert watcher.returncode == run.OK, told
    assert f"{killed.label}: its job " in told
    assert " ended without a record (FAILED)" in told
    assert requeued.label + ": its job" not in told
    assert [len(s.name) for s in submissions(killed)] == [7, 7]  # the array; what was killed
    assert [record.read(c.record)["measured"]["starts"] for c in cells] == [2, 2]
    log = "".join(p.read_text() for p in submissions(requeued)[0].glob("*_log.*"))
    assert "Requeued job" in log
    assert f"{requeued.label}: goes on from" in log
    alone = grid("alone", methods, *LONG)
    in_one_process(alone)
    assert [numbers(c) for c in cells] == [numbers(c) for c in alone]


@needs_slurm
def test_the_starting_process_may_die_and_the_next_one_attaches(cluster, grid, capsys):
    cells = grid("slurm", ["osora", "lora", "pissa"], *LONG)
    first = start(cells)
    wait_until(lambda: all(c.run_id in slurm.queued(cells) for c in cells), "jobs of all")
    first.kill()
    first.wait()
    launching = ["pkill", "-KILL", "-f", f"osora_bench.submit {submissions(cells[0])[0]}"]
    subprocess.run(launching, check=False)  # it may have left already
    waiting = [c for c, state in ((c, state_of(c)) for c in cells) if state == "queued"]
    assert len(waiting) >= 1  # two nodes, three cells
    assert run.run_missing(cells, launcher=ON_SLURM) == run.OK
    told = capsys.readouterr().out
    for cell in cells:
        assert f"{cell.label}: has a job already, " in told
    assert len(submissions(cells[0])) == 1
    assert [record.read(c.record)["measured"]["starts"] for c in cells] == [1, 1, 1]


def state_of(cell):
    return slurm.state(cell, slurm.queued([cell]))


@needs_slurm
def test_a_held_job_is_told_and_a_cancelled_one_is_not_tried_again(cluster, grid):
    (cell,) = grid("slurm", ["none"], *SHORT)
    watcher = start([cell], *ON_SLURM, "+hydra.launcher.additional_parameters.hold=true")
    number = job_of(cell)
    assert state_of(cell) == "queued"
    assert str(slurm.queued([cell])[cell.run_id]) == f"job {number} (pending, JobHeldUser)"
    time.sleep(1.5)  # a look or two
    ask("scancel", number)
    told, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == run.FAILED
    assert f"job {number} is held: JobHeldUser" in told
    assert f"failed: {cell.label}: its job {number} was cancelled" in told
    assert len(submissions(cell)) == 1


@needs_slurm
def test_a_refused_submission_is_a_mistake_of_the_call(cluster, grid):
    (cell,) = grid("slurm", ["none"], *SHORT)
    with pytest.raises(UserError, match="not submitted: .*Invalid partition name"):
        run.run_missing([cell], launcher=[*ON_SLURM, "hydra.launcher.partition=none-such"])
    assert cell.state == "missing"


@needs_slurm
def test_a_plain_multirun_runs_there_too(cluster, tmp_path):
    command = [
        *(sys.executable, "-m", "osora_bench", "-m", "hydra/launcher=submitit_slurm", *SMALL),
        *(f"ledger={tmp_path}/ledger", f"runs={tmp_path}/runs", *SHORT, "method=none,lora"),
    ]
    failed = subprocess.run(
        [*command, "trainer.optimizer=nonsense"], check=False, capture_output=True, text=True
    )
    assert failed.returncode == run.FAILED, failed.stderr
    assert "toy lora r=16 seed=0: ValueError" in failed.stderr
    assert len(list(tmp_path.glob("ledger/*.json"))) == 1  # the base model needs no optimiser
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == run.OK, done.stderr
    assert len(list(tmp_path.glob("ledger/*.json"))) == 2


def test_cells_that_another_start_submits_are_not_submitted_twice(grid, monkeypatch):
    cells = grid("slurm", ["osora", "lora"], *SHORT)
    theirs = slurm.Submission(frozen.freeze(cells).path.with_suffix("") / "slurm-1")
    theirs.folder.mkdir(parents=True)
    (theirs.folder / "cells.json").write_text(json.dumps([cells[0].run_id]))
    ours = slurm.Sweep(frozen.freeze(cells), ON_SLURM, {}, False)
    launched = []
    monkeypatch.setattr(slurm, "queue", lambda runs: {})
    monkeypatch.setattr(slurm, "array_limit", lambda: 4)
    monkeypatch.setattr(slurm.Sweep, "_launch", lambda self, ids, arrays: launched.append(ids))
    with claimed(theirs.folder):
        ours._submit(cells)
    assert launched == [[cells[1].run_id]]


def test_a_cell_without_a_trace_of_its_job_fails_after_its_retries(grid, capsys):
    (cell,) = grid("slurm", ["osora"], *SHORT)
    sweep = slurm.Sweep(frozen.freeze([cell]), ON_SLURM, {"mem_gb": 3}, False)

    def lose(state):
        sweep.had[cell.run_id], sweep.gone[cell.run_id] = None, 0.0
        sweep._needs_job(cell, slurm.Job("7_1", state, "None", cell.paths.folder / "no.log"))

    lose("FAILED")
    assert not sweep.plan.settled(cell)
    lose("NODE_FAIL")
    assert cell.error == "its job 7_1 ended without a record (NODE_FAIL), 2 times in all"
    cell.paths.failure.unlink()
    lose("OUT_OF_MEMORY")
    assert cell.error.startswith("out of memory: hydra.launcher.mem_gb (now 3) makes it larger; ")


def test_a_job_with_other_code_than_its_sweep_is_a_failure_of_its_cell(grid, capsys):
    (cell,) = grid("slurm", ["none"], *SHORT)
    sweep = frozen.freeze([cell])
    told = json.loads(sweep.path.read_text())
    told["code"]["commit"] = "0" * 40
    sweep.path.write_text(json.dumps(told))
    job.run_cell(sweep.path, cell.run_id, False)
    assert cell.error.startswith("the sweep was started with commit 000000000000")
    assert sweep.settled(cell)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.launcher.partition=a"], "needs a launcher: hydra/launcher=slurm"),
        (["hydra/launcher=slurm", "workers=2"], "name one way to run the cells"),
    ],
)
def test_a_launcher_is_named_and_alone(arguments, message, capsys):
    assert cli.main(["run", "experiment=demo", *arguments]) == run.MISTAKE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        (["hydra/launcher=slrum"], "Could not find 'hydra/launcher/slrum'"),
        (["hydra/launcher=slurm", "hydra.launcher.partitoin=a"], "partitoin"),
        (["hydra/launcher=submitit_local"], "submits to SLURM only"),
    ],
)
def test_a_mistaken_launcher_is_refused_before_anything_starts(launcher, message, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    with pytest.raises(UserError, match=message):
        slurm.profile(launcher)


def test_without_slurm_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(UserError, match="no `sbatch` on the PATH; is this a SLURM cluster?"):
        slurm.profile(ON_SLURM)
