"""Machines that users share, and users whom the machine does not know."""

import errno
import fcntl
import json
import os
import pwd
import stat
import tempfile
from pathlib import Path

import pytest

from osora_bench.common import claim, process
from osora_bench.common.errors import UserError
from osora_bench.common.paths import data_file, resolve
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.planning.cell import State
from osora_bench.sweep import frozen_plan
from tests.conftest import QUICK
from tests.users import ANNA, BERT, called, common, needs_users

__all__ = ["common"]


def places(folder: Path) -> list[str]:
    return [f"runs={folder}/runs", f"ledger={folder}/ledger"]


@pytest.mark.long
@needs_users
def test_a_user_without_home_and_name_goes_through_all_verbs(common, tmp_path, monkeypatch):
    short = [*QUICK, *places(common)]
    verbs = {
        "plan": ["plan", "experiment=demo", *places(common)],
        "cell": ["cell", "method=pissa", "tracker=wandb", "tracker.mode=offline", *short],
        "tables": ["tables", "experiment=demo", f"out={common}/tables", *places(common)],
        "figures": ["figures", "experiment=figure1", f"out={common}/figures"],
        "evaluate": ["evaluate", "--model", "toy", "--suite", "toy", "--limit", "2", *short[-2:]],
        "judge": ["judge", "--suite", "toy", "--set", "none"],
    }
    for name, verb in verbs.items():
        done = called(common, *verb, TMPDIR=str(common))
        output = done.stdout + done.stderr
        assert "Traceback" not in output, output
        assert done.returncode == (2 if name == "judge" else 0), output
        home = common / f"osora-home-{ANNA}"
        assert f"this user ({ANNA}) has no home; HOME={home} is taken for it\n" in done.stderr
    assert len(list((common / "ledger").glob("*.json"))) == 1
    assert stat.S_IMODE(home.stat().st_mode) & 0o077 == 0
    json.loads(called(common, *verbs["plan"], "--json", TMPDIR=str(common)).stdout)


@pytest.mark.long
@pytest.mark.sweep
@needs_users
def test_a_user_without_home_and_name_runs_a_sweep_in_workers(common):
    more = ["trainer.max_steps=1", "eval.datasets.0.limit=1", "eval.datasets.1.limit=1"]
    sweep = ["run", "experiment=demo", "workers=2", *more, *places(common)]
    done = called(common, *sweep, TMPDIR=str(common))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "17 cells: 17 done" in done.stdout
    assert not [log for log in common.rglob("worker-*.log") if "Traceback" in log.read_text()]


@needs_users
@pytest.mark.parametrize("home", ["", "/nonexistent/home", "/"])
def test_a_home_that_is_none_is_no_reason_to_plan_nothing(home, common):
    done = called(common, "plan", "experiment=demo", HOME=home, TMPDIR=str(common))
    assert done.returncode == 0, done.stderr
    assert ("has no home" in done.stderr) is (home == "")


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user with neither variables nor an entry in the machine's list."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", *process.NAMES):
        monkeypatch.setenv(name, "")  # so that it is taken back after the test
        monkeypatch.delenv(name)
    return tmp_path / f"osora-home-{os.getuid()}"


@pytest.mark.parametrize("prepared", ["nothing", "its own", "a link", "a file"])
def test_the_home_that_is_made_is_nobody_elses(prepared, nobody, capsys):
    elsewhere = nobody.parent / "elsewhere"
    elsewhere.mkdir()
    make = {
        "nothing": lambda: None,
        "its own": lambda: nobody.mkdir(0o777),
        "a link": lambda: nobody.symlink_to(elsewhere),
        "a file": nobody.touch,
    }
    make[prepared]()
    process.name_user()
    home = Path(os.environ["HOME"])
    assert (home == nobody) is (prepared in ("nothing", "its own"))
    assert stat.S_IMODE(home.lstat().st_mode) == 0o700
    assert os.environ["USER"] == f"uid-{os.getuid()}"
    process.name_user()
    assert capsys.readouterr().err.count("has no home") == 1


@needs_users
def test_a_home_that_another_user_has_prepared_is_not_taken(nobody):
    nobody.mkdir(0o700)
    os.chown(nobody, BERT, -1)
    process.name_user()
    assert Path(os.environ["HOME"]) != nobody


def test_a_user_with_a_name_keeps_it(nobody, monkeypatch):
    monkeypatch.setenv("LOGNAME", "anna")
    monkeypatch.setenv("HOME", "/home/anna")
    process.name_user()
    assert "USER" not in os.environ
    assert os.environ["HOME"] == "/home/anna"


@pytest.mark.parametrize("read", [resolve, data_file])
def test_the_home_of_somebody_unknown_is_told(read):
    with pytest.raises(UserError, match="~no-such-user/x: there is no such home on this machine"):
        read("~no-such-user/x")


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize("method", ["pissa", "full"])
def test_a_cell_leaves_files_of_the_modes_that_the_umask_gives(umask, method, make_cell, session):
    cell = make_cell(f"method={method}", *QUICK, "trainer.checkpoint_minutes=0.00001")
    before = os.umask(umask)
    try:
        assert attempt(cell) == State.DONE
        cell.fail("for its file")
        frozen_plan.freeze([cell])
    finally:
        os.umask(before)
    found = [
        p for top in (cell.paths.runs, cell.ledger) for p in top.rglob("*") if not p.is_symlink()
    ]
    made = {p.suffix for p in found}
    assert {".safetensors", ".json", ".jsonl", ".gz"} <= made
    assert ("svd" in {p.name for p in found}) is (method == "pissa")
    off = {p for p in found if stat.S_IMODE(p.stat().st_mode) != modes(p) & ~umask}
    assert not off


def modes(place: Path) -> int:
    return 0o777 if place.is_dir() else 0o666


@pytest.mark.long
@needs_users
@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_a_second_user_of_a_runs_folder_runs_or_is_told_the_folder_before_training(umask, common):
    short = ["cell", "method=pissa", *QUICK, *places(common), "device=cpu"]
    first = called(common, *short, umask=umask, HOME=str(common))
    assert first.returncode == 0, first.stderr
    (common / "ledger").chmod(0o2775)
    (common / "runs").chmod(0o2775)
    second = called(common, *short, "seed=1", uid=BERT, umask=umask, TMPDIR=str(common))
    if umask == 0o002:
        assert second.returncode == 0, second.stdout + second.stderr
        assert len(list((common / "ledger").glob("*.json"))) == 2
        return
    assert second.returncode == 2
    cells = common / "runs" / "cells"
    told = f"{cells}: is of user {ANNA}, and this user ({BERT}) may not write there: name another"
    assert told in second.stderr
    assert "loading torch" not in second.stdout
    # with a runs folder of its own, what the first has decomposed is used, and left as it is
    own = [f"runs={common}/own", f"ledger={common}/own/ledger"]
    store = {"OSORA_SVD_STORE": str(common / "runs" / "svd")}
    third = called(common, *short, *own, "seed=1", uid=BERT, TMPDIR=str(common), **store)
    assert third.returncode == 0, third.stdout + third.stderr
    assert not (common / "own" / "svd").exists()
    assert "Warning" not in third.stderr
    assert {p.stat().st_uid for p in (common / "runs" / "svd").rglob("*")} == {ANNA}


@needs_users
def test_a_store_that_cannot_be_used_is_refused_before_training(common):
    (common / "closed").mkdir(0o700)
    short = ["cell", "method=osora", *QUICK, *places(common)]
    place = common / "closed" / "svd"
    done = called(common, *short, HOME=str(common), OSORA_SVD_STORE=str(place))
    assert done.returncode == 2
    assert f"the store of decompositions {place} can be neither read nor written" in done.stderr
    assert "loading torch" not in done.stdout
    assert "Traceback" not in done.stderr


NO_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTSUP]


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without them."""

    def refuse(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return refuse


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks_is_told_by_folder_before_anything_runs(
    number, no_locks, make_cell
):
    cell = make_cell("method=lora")
    no_locks(number)
    with pytest.raises(UserError) as caught:
        preflight.check_cells([cell])
    told = str(caught.value)
    assert f"{cell.paths.runs}: its file system has no locks (flock: {os.strerror(number)})" in told
    assert "Name a folder on another one (runs=FOLDER), or have it mounted with them" in told
    assert not cell.paths.folder.exists()


def test_a_lock_that_is_there_and_cannot_be_tried_names_its_folder(no_locks, tmp_path):
    with claim.claimed(tmp_path) as free:
        assert free
    no_locks(errno.ENOLCK)
    with pytest.raises(UserError, match=f"{tmp_path}: its file system has no locks"):
        claim.holder(tmp_path)


def test_other_errors_of_a_lock_are_not_taken_for_a_file_system_without_them(no_locks, tmp_path):
    no_locks(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), claim.claimed(tmp_path):
        pass
