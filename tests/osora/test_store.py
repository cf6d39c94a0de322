"""The store of decompositions."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from osora_bench.osora import SvdStore, saving, start_pissa, use_store
from osora_bench.osora import store as store_module
from osora_bench.osora.store import content_key, current_store, decompose
from osora_bench.osora.svd import Triplets, top_triplets
from tests.osora.conftest import logits, make_base, make_inputs
from tests.osora.test_peft_features import config


def weight(seed: int = 0, shape: tuple[int, int] = (30, 40)) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ranks that were really computed, one entry a computation."""
    calls: list[int] = []

    def counted(w: Tensor, r: int) -> Triplets:
        calls.append(r)
        return top_triplets(w, r)

    monkeypatch.setattr(store_module, "top_triplets", counted)
    return calls


def file_of(store: SvdStore, w: Tensor) -> Path:
    return store.path(w, 1)


def same(a: Triplets, b: Triplets) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_one_decomposition_serves_all_ranks(tmp_path: Path, computed: list[int]) -> None:
    store, w = SvdStore(tmp_path), weight()
    five = store.get(w, 5)
    for r in (1, 5, 30, 12):
        exact = top_triplets(w, r)
        for found, true in zip(store.get(w, r), exact, strict=True):
            torch.testing.assert_close(found, true.float(), rtol=1e-4, atol=1e-5)
    assert same(store.get(w, 5), five)
    assert computed == [30]
    assert same(SvdStore(tmp_path).get(w.clone(), 5), five)
    assert computed == [30]


def test_large_weights_keep_what_ranks_in_use_need(
    tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "WHOLE_SIZE", 8)
    store, w = SvdStore(tmp_path), weight(shape=(40, 40))
    three = store.get(w, 3)
    for r in (10, 20, 40):
        assert store.get(w, r).u.shape == (40, r)
    # the larger one takes nobody's place: what a rank gets does not depend on what was asked before
    assert same(store.get(w, 3), three)
    assert computed == [10, 40]
    for r in (0, 41):
        with pytest.raises(ValueError, match=f"rank {r} is outside"):
            store.get(w, r)


def test_key_is_the_content() -> None:
    w = weight()
    assert content_key(w) == content_key(w.T.contiguous().T)
    others = [w.bfloat16(), w.double(), w.reshape(40, 30), w + 1e-6, weight(1)]
    assert len({content_key(o) for o in [w, *others]}) == 1 + len(others)


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    save_file({"x": torch.ones(3)}, path)


def of_another_weight(path: Path) -> None:
    store = SvdStore(path.parent / "other")
    store.get(weight(7), 3)
    file_of(store, weight(7)).replace(path)


@pytest.mark.parametrize("harm", [damaged, truncated, empty, foreign, of_another_weight])
def test_a_bad_file_is_found_and_computed_again(
    harm: Any, tmp_path: Path, computed: list[int]
) -> None:
    store, w = SvdStore(tmp_path), weight()
    before = store.get(w, 6)
    harm(file_of(store, w))
    computed.clear()
    with pytest.warns(UserWarning, match=r"computed again"):
        assert same(store.get(w, 6), before)
    assert computed == [30]
    assert same(store.get(w, 6), before)
    assert computed == [30]


def test_no_space_is_told_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    store, w = SvdStore(tmp_path), weight()
    monkeypatch.setattr(saving, "save_file", full)
    with pytest.warns(UserWarning, match="cannot store a decomposition.*No space"):
        found = store.get(w, 4)
    torch.testing.assert_close(found.s, top_triplets(w, 4).s.float())
    assert [p.name for p in tmp_path.iterdir()] == ["locks"]


def _slow_get(root: str, log: str) -> None:
    def slow(w: Tensor, r: int) -> Triplets:
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return top_triplets(w, r)

    store_module.top_triplets = slow
    SvdStore(root).get(weight(), 3)


def test_two_processes_compute_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    jobs = [
        context.Process(target=_slow_get, args=(str(tmp_path / "store"), str(log)))
        for _ in range(3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 1


def test_least_recently_used_leave_first(tmp_path: Path) -> None:
    store = SvdStore(tmp_path)
    store.get(weight(0), 3)
    size = file_of(store, weight(0)).stat().st_size
    store.limit = int(2.5 * size)
    for age, seed in ((300, 0), (200, 1)):
        store.get(weight(seed), 3)
        moment = time.time() - age
        os.utime(file_of(store, weight(seed)), (moment, moment))
    store.get(weight(0), 3)  # used again: now 1 is the oldest
    store.get(weight(2), 3)
    assert [e.path for e in store.entries()] == [file_of(store, weight(s)) for s in (0, 2)]
    store.limit = 1
    store.get(weight(3), 3)
    assert [e.path for e in store.entries()] == [file_of(store, weight(3))]


def test_store_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OSORA_SVD_STORE", raising=False)
    assert current_store() is None
    monkeypatch.setenv("OSORA_SVD_STORE", str(tmp_path / "a"))
    monkeypatch.setenv("OSORA_SVD_STORE_GB", "3")
    named = current_store()
    assert named is not None
    assert (named.root, named.limit) == (tmp_path / "a", 3_000_000_000)
    with use_store(SvdStore(tmp_path / "b")):
        assert current_store().root == tmp_path / "b"
        found = decompose(weight().bfloat16(), 3)
    assert {t.dtype for t in found} == {torch.float32}
    assert len(list((tmp_path / "b").glob("*.safetensors"))) == 1
    with pytest.raises(ValueError, match="a number above 0, not 0"):
        SvdStore(tmp_path, 0)


def test_models_share_the_store_over_ranks_and_seeds(tmp_path: Path, computed: list[int]) -> None:
    inputs = make_inputs("gpt2")
    base = make_base("gpt2")
    before = logits(base, inputs)
    with use_store(SvdStore(tmp_path)):
        for seed, r in enumerate((2, 8, 4)):
            torch.manual_seed(seed)
            model = peft.get_peft_model(base, config("gpt2", r=r))
            assert torch.equal(logits(model, inputs), before)
            base = model.unload()
    assert len(computed) == 2  # one for each layer


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pissa_takes_the_same_decomposition(
    family: str, tmp_path: Path, computed: list[int]
) -> None:
    targets = config(family).target_modules
    options: dict[str, Any] = {
        "r": 4, "lora_alpha": 4, "target_modules": targets, "fan_in_fan_out": family == "gpt2",
    }  # fmt: skip
    base = make_base(family)
    inputs = make_inputs(family)
    before = logits(base, inputs)
    theirs = peft.get_peft_model(
        make_base(family), peft.LoraConfig(init_lora_weights="pissa", **options)
    )
    with use_store(SvdStore(tmp_path)):
        ours = peft.get_peft_model(base, peft.LoraConfig(**options))
        start_pissa(ours)
        with pytest.raises(ValueError, match="is not fresh"):
            start_pissa(ours)
    torch.testing.assert_close(logits(ours, inputs), before, rtol=1e-4, atol=1e-5)
    assert len(computed) == len(list(tmp_path.glob("*.safetensors"))) > 0
    a, b = theirs.state_dict(), ours.state_dict()
    for name in a:
        if "base_layer.weight" in name:
            torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-5)
        if "lora_A" in name:
            other = name.replace("lora_A", "lora_B")
            torch.testing.assert_close(b[other] @ b[name], a[other] @ a[name], rtol=1e-4, atol=1e-5)


def test_pissa_refuses_a_rank_that_a_layer_cannot_have() -> None:
    model = peft.get_peft_model(
        nn.ModuleDict({"a": nn.Linear(6, 4)}), peft.LoraConfig(r=5, target_modules=["a"])
    )
    with pytest.raises(ValueError, match="rank 5 is too large for .*a: PiSSA allows at most 4"):
        start_pissa(model)


def test_file_is_what_it_says(tmp_path: Path) -> None:
    store, w = SvdStore(tmp_path), weight()
    store.get(w, 3)
    tensors = load_file(file_of(store, w))
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        "u": (30, 30), "s": (30,), "vh": (30, 40),
    }  # fmt: skip


def test_the_layout_does_not_tell_where_a_decomposition_came_from(tmp_path: Path) -> None:
    """Other strides are another order of sums in every product with it."""
    w = weight()
    alone = decompose(w, 5)
    with use_store(SvdStore(tmp_path)):
        for found in (decompose(w, 5), decompose(w, 5)):  # computed, then read
            assert same(found, alone)
            assert [t.stride() for t in found] == [t.stride() for t in alone]
