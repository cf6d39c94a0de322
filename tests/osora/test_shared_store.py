"""A store of decompositions that several users share, or that this one may only read."""

import errno
import fcntl
import os
import re
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest

from osora_bench.osora import OsoraConfig, SvdStore, save_lora
from osora_bench.osora import store as store_module
from osora_bench.osora.svd import top_triplets
from tests.osora.conftest import make_base
from tests.osora.test_store import file_of, weight
from tests.users import ANNA, BERT, as_user, common, needs_users

__all__ = ["common"]
Asked = tuple[list[float], list[str], int]


def asking(root: Path, *seeds: int, limit_gb: float = 1.0) -> Callable[[], Asked]:
    """Ask a store for weights: the largest singular values, what was said, how many computed."""

    def ask() -> Asked:
        computed = []

        def counted(w, r):
            computed.append(r)
            return top_triplets(w, r)

        store_module.top_triplets, real = counted, store_module.top_triplets
        store_module._told.clear()
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                store = SvdStore(root, limit_gb)
                values = [float(store.get(weight(seed), 3).s[0]) for seed in seeds]
        finally:
            store_module.top_triplets = real
        return values, [str(one.message) for one in said], len(computed)

    return ask


def right(*seeds: int) -> list[float]:
    return [pytest.approx(float(top_triplets(weight(seed), 1).s[0]), rel=1e-5) for seed in seeds]


def modes(folder: Path) -> dict[str, int]:
    return {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077, 0o027])
def test_files_have_the_modes_that_the_umask_gives(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        SvdStore(tmp_path / "store").get(weight(), 3)
        model = peft.get_peft_model(make_base("llama"), OsoraConfig(r=2, target_modules=["q_proj"]))
        save_lora(model, tmp_path / "lora")
    finally:
        os.umask(before)
    found = modes(tmp_path)
    assert {"adapter_model.safetensors", "adapter_config.json"} < found.keys()
    assert len(found) == 4  # a decomposition and its lock
    assert set(found.values()) == {0o666 & ~umask}
    folders = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_dir()}
    assert folders == {0o777 & ~umask}


@needs_users
def test_two_users_of_a_group_compute_each_decomposition_once(common: Path) -> None:
    root = common / "store"
    assert as_user(ANNA, asking(root, 0, 1), umask=0o002) == (right(0, 1), [], 2)
    assert as_user(BERT, asking(root, 1, 2, 0), umask=0o002) == (right(1, 2, 0), [], 1)
    assert as_user(ANNA, asking(root, 2)) == (right(2), [], 0)


@needs_users
def test_a_store_to_read_only_serves_what_it_has_and_says_once_that_it_keeps_nothing(common):
    root = common / "store"
    as_user(ANNA, asking(root, 0, 1))
    before = sorted((p.name, p.stat().st_mtime_ns) for p in root.rglob("*"))
    assert as_user(BERT, asking(root, 0, 1)) == (right(0, 1), [], 0)
    values, said, computed = as_user(BERT, asking(root, 2, 0, 3, 1))
    assert (values, computed) == (right(2, 0, 3, 1), 2)
    assert len(said) == 1
    assert f"{root} cannot be written by this user: what it has is used" in said[0]
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in root.rglob("*"))


@needs_users
@pytest.mark.parametrize("what", ["locks of another's", "no folder of locks", "a sticky folder"])
def test_other_stores_that_cannot_be_written_are_read(what: str, common: Path) -> None:
    root = common / "store"
    as_user(ANNA, asking(root, 0))
    if what == "no folder of locks":
        (root / "locks" / next((root / "locks").iterdir()).name).unlink()
        (root / "locks").rmdir()
    elif what == "locks of another's":
        root.chmod(0o2775)
    else:
        root.chmod(0o3777)
    values, said, computed = as_user(BERT, asking(root, 0, 1))
    assert (values, computed) == (right(0, 1), 1)
    assert len(said) == 1


@needs_users
def test_what_another_user_keeps_to_itself_is_computed_and_neither_replaced_nor_damaged(common):
    root = common / "store"
    as_user(ANNA, asking(root, 0, 1), umask=0o002)
    hidden = file_of(SvdStore(root), weight(0))
    hidden.chmod(0o600)
    before = (hidden.stat().st_ino, hidden.stat().st_mtime_ns, hidden.read_bytes())
    values, said, computed = as_user(BERT, asking(root, 0, 1, 2, 0), umask=0o002)
    assert (values, computed) == (right(0, 1, 2, 0), 3)
    (line,) = said
    assert re.search(f"may not read, such as {hidden.name} of user {ANNA}.*left as they are", line)
    assert before == (hidden.stat().st_ino, hidden.stat().st_mtime_ns, hidden.read_bytes())
    assert hidden.stat().st_uid == ANNA


@needs_users
def test_no_users_files_make_room_for_anothers(common: Path) -> None:
    root = common / "store"
    as_user(ANNA, asking(root, 0, 1), umask=0o002)
    size = file_of(SvdStore(root), weight(0)).stat().st_size
    asked = asking(root, 2, 3, limit_gb=2.5 * size / 1e9)
    _, said, _ = as_user(BERT, asked, umask=0o002)
    left = {file_of(SvdStore(root), weight(n)).exists(): n for n in (0, 1, 3)}
    assert left == {True: 3}
    assert not file_of(SvdStore(root), weight(2)).exists()  # Bert's own
    assert len(said) == 1
    assert "other users' files stay; `osora-bench svd clean` removes them" in said[0]


@needs_users
@pytest.mark.parametrize("place", ["closed", "closed/store", "open/store"])
def test_a_store_that_can_be_neither_read_nor_made_is_refused_by_name(place, common):
    (common / "closed").mkdir(0o700)
    (common / "open").mkdir(0o755)
    root = common / place
    with pytest.raises(RuntimeError, match=f"ValueError: .*{root} can be neither read nor written"):
        as_user(BERT, asking(root, 0))


def test_an_unknown_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="store of decompositions ~nobody-is-called-so/svd"):
        SvdStore("~nobody-is-called-so/svd")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_store_without_locks_is_used_and_says_so_once(number, tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    values, said, computed = asking(tmp_path, 0, 1, 0)()
    assert (values, computed) == (right(0, 1, 0), 2)
    assert len(said) == 1
    assert "has no locks here (flock: " in said[0]


ELSEWHERE = """
import os, sys, warnings
sys.modules["fcntl"] = None
for name in ("geteuid", "getuid"):
    delattr(os, name)
import peft, torch
from osora_bench.osora import OsoraConfig, SvdStore, save_lora, use_store
base = torch.nn.ModuleDict({"a": torch.nn.Linear(12, 8)})
with warnings.catch_warnings(record=True) as said, use_store(SvdStore(sys.argv[1])) as _:
    warnings.simplefilter("always")
    model = peft.get_peft_model(base, OsoraConfig(r=2, target_modules=["a"]))
model.save_pretrained(sys.argv[1] + "/adapter")
save_lora(model, sys.argv[1] + "/lora")
print(*(w.message for w in said if "store" in str(w.message)), sep="\\n")
print(len(SvdStore(sys.argv[1], 1e-9).evict(0, own=True)))
"""


def test_a_system_without_posix_has_it_all_but_the_locks(tmp_path):
    """Windows has no fcntl and no numbers of users."""
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, removed = done.stdout.splitlines()
    assert f"{tmp_path} has no locks here (flock: not on {sys.platform})" in said
    assert removed == "1"
