"""What counts as the code that runs, and that a multirun's cells run with that of its start."""

import json
import subprocess

import pytest

from osora_bench.common import exits, paths
from osora_bench.common.errors import UserError
from osora_bench.records import code_state, record
from osora_bench.sweep import multirun
from tests.conftest import QUICK


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small checkout in place of ours."""
    folder = tmp_path / "checkout"
    for name in ("code.py", "conf/one.yaml", "results/table.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("as committed")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    commit(folder, ".")
    monkeypatch.setattr(paths, "ROOT", folder)
    return folder


def commit(folder, what):
    me = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for command in (["add", what], [*me, "commit", "-q", "-m", "more"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def test_the_code_is_the_commit_and_what_differs_from_it_but_for_results(repository):
    clean = code_state.look()
    assert (len(clean["commit"]), clean["dirty"], clean["diff"]) == (40, False, None)
    (repository / "results" / "table.csv").write_text("another table")
    (repository / "notes.txt").write_text("not tracked")
    assert code_state.look() == clean
    (repository / "code.py").write_text("changed")
    changed = code_state.look()
    assert (changed["commit"], changed["dirty"]) == (clean["commit"], True)
    (repository / "code.py").write_text("changed again")
    assert code_state.look()["diff"] not in (None, changed["diff"])


def test_a_new_file_counts_where_runs_take_files_from(repository):
    clean = code_state.look()
    mine = repository / "conf" / "method" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text("a: 1")
    one = code_state.look()
    assert (one["commit"], one["dirty"]) == (clean["commit"], True)
    mine.write_text("a: 2")
    other = code_state.look()
    assert len({clean["diff"], one["diff"], other["diff"]}) == 3
    (repository / ".gitignore").write_text("*.yaml")
    assert code_state.look() == clean


def test_a_conf_of_the_users_own_counts(repository, tmp_path, monkeypatch):
    clean = code_state.look()
    mine = tmp_path / "work" / "conf" / "method" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("a: 1")
    monkeypatch.chdir(tmp_path / "work")
    one = code_state.look()
    assert (one["commit"], one["dirty"]) == (clean["commit"], True)
    mine.write_text("a: 2")
    assert code_state.look()["diff"] not in (None, one["diff"])


@pytest.mark.parametrize("place", ["checkout", "work"])
@pytest.mark.parametrize("commit", [True, False])
def test_a_configuration_that_is_new_since_a_look_is_no_other_code(
    repository, tmp_path, monkeypatch, place, commit
):
    if not commit:
        if place == "checkout":
            return  # without git nothing tells whose a file is
        (repository / ".git").rename(tmp_path / "git")
    methods = tmp_path / place / "conf" / "method"
    methods.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / place)
    (methods / "one.yaml").write_text("a: 1")
    start = json.loads(json.dumps(code_state.look()))
    (methods / "two.yaml").write_text("a: 2")
    assert not code_state.same(start, code_state.look())  # what a record says
    assert code_state.same(start, code_state.look_since(start))
    (methods / "one.yaml").write_text("a: 3")
    assert not code_state.same(start, code_state.look_since(start))
    (methods / "one.yaml").unlink()
    assert not code_state.same(start, code_state.look_since(start))
    (methods / "one.yaml").write_text("a: 1")
    assert code_state.same(start, code_state.look_since(start))


def test_a_new_module_is_other_code_and_so_is_a_tracked_configuration(repository):
    start = code_state.look()
    (repository / "osora_bench").mkdir()
    (repository / "osora_bench" / "new.py").write_text("")
    assert not code_state.same(start, code_state.look_since(start))
    (repository / "osora_bench" / "new.py").unlink()
    (repository / "conf" / "one.yaml").write_text("changed")
    assert not code_state.same(start, code_state.look_since(start))


def test_a_diff_that_fails_is_no_clean_checkout(repository):
    (repository / "code.py").write_bytes(b"changed \xe9")
    subprocess.run(["git", "config", "diff.external", "none-such"], cwd=repository, check=True)
    assert code_state.look()["dirty"] is True  # git's own diff is asked for
    (repository / ".git" / "index").write_bytes(b"no index")
    with pytest.raises(UserError, match="git diff .* fails, so the code is not known"):
        code_state.look()


def test_a_commit_of_records_is_the_same_code_and_another_is_not(repository):
    first = code_state.look()
    (repository / "results" / "record.json").write_text("{}")
    commit(repository, "results")
    later = code_state.look()
    assert later["commit"] != first["commit"]
    assert code_state.same(first, later)
    (repository / "code.py").write_text("changed")
    assert not code_state.same(first, code_state.look())
    commit(repository, "code.py")
    assert not code_state.same(first, code_state.look())


def test_outside_a_checkout_the_files_themselves_count(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "CONF", tmp_path)
    (tmp_path / "one.yaml").write_text("a: 1")
    before = code_state.look()
    assert before["commit"] is None
    assert code_state.look() == before
    (tmp_path / "one.yaml").write_text("a: 2")
    assert code_state.look()["diff"] != before["diff"]


def test_the_checkout_of_another_user_is_known(repository, monkeypatch):
    mine = code_state.look()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    ask = ["git", "rev-parse", "HEAD"]
    bare = subprocess.run(ask, cwd=repository, capture_output=True, check=False)
    assert b"dubious ownership" in bare.stderr
    assert code_state.look() == mine
    (repository / "code.py").write_text("changed")
    assert code_state.look()["dirty"] is True


def test_a_checkout_that_git_cannot_read_is_told(repository):
    (repository / ".git" / "config").write_text("[broken")
    with pytest.raises(UserError, match="git rev-parse HEAD fails.*bad config"):
        code_state.look()


@pytest.mark.parametrize("what", ["no commit", "no git"])
def test_a_checkout_without_a_commit_is_said(what, repository, monkeypatch, capsys):
    if what == "no commit":
        subprocess.run(["git", "checkout", "-q", "--orphan", "new"], cwd=repository, check=True)
    else:
        monkeypatch.setenv("PATH", str(repository))
    code_state.code.cache_clear()
    try:
        assert code_state.code()["commit"] is None
    finally:
        code_state.code.cache_clear()
    assert "WARNING: git knows no commit" in capsys.readouterr().out


def test_a_multirun_goes_on_with_other_code_only_if_that_is_allowed(
    places, session, tmp_path, monkeypatch, capsys
):
    arguments = ["-m", "method=none", *places, *QUICK]
    code_state.code()  # asked once a process: this is the start's
    monkeypatch.setattr(code_state, "look", lambda: {"commit": "1" * 40, "dirty": 0, "diff": None})
    assert multirun.main(arguments) == exits.MISTAKE
    assert ", this is commit 111111111111; OSORA_ALLOW_CHANGED=1 runs it" in capsys.readouterr().err
    monkeypatch.setenv("OSORA_ALLOW_CHANGED", "1")
    monkeypatch.setenv(code_state.CHANGED, "")  # so that it is taken back after this test
    assert multirun.main(arguments) == exits.OK
    (made,) = tmp_path.glob("ledger/*.json")
    assert record.read_record(made)["provenance"]["changed_since_plan"] is True
