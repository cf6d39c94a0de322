"""Cells end to end: same seed same record, base weights as loaded, failures apart."""

import json
import time

import peft
import pytest
import torch
from hydra.utils import instantiate

from osora_bench.common import exits, paths
from osora_bench.common.errors import UserError
from osora_bench.models import adapter_config
from osora_bench.models import base as models
from osora_bench.pipeline import attempt as attempts
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.planning import adapter_rank
from osora_bench.records import record
from osora_bench.sweep import run
from tests.conftest import QUICK
from tests.more_methods import PAPER


def numbers(cell, made=None):
    """A record without its block of measured costs (and the checksum that covers it)."""
    body = made or record.read_record(cell.record)
    return {k: v for k, v in body.items() if k not in ("measured", "sha256", "schema")}


@pytest.mark.parametrize("method", PAPER)
def test_every_method_builds_its_adapter_with_the_rank_it_is_given(make_cell, method):
    cell = make_cell(f"method={method}", "method.rank=4")
    base = models.Workspace().base(cell.config)
    layers = adapter_rank.adapted_layers(base.model, cell.config.model.target_modules)
    adapted = peft.get_peft_model(base.model, instantiate(cell.config.method.peft, _convert_="all"))
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    formula = {
        "lora": lambda out, into: 4 * (out + into),
        "dora": lambda out, into: 4 * (out + into) + out,
        "pissa": lambda out, into: 4 * (out + into),
        "vera": lambda out, into: 4 + out,
        "osora": lambda out, into: 4 + out,
    }
    if method in formula:
        assert trainable == sum(formula[method](*shape) for shape in layers.values())
    else:
        assert 0 < trainable < sum(4 + 2 * max(shape) for shape in layers.values())


@pytest.mark.parametrize("method", ["none", "lora", "dora", "pissa", "vera", "osora"])
def test_a_cell_leaves_one_whole_record(make_cell, session, method):
    cell = make_cell(f"method={method}", *QUICK)
    assert attempt(cell) == "done"
    made = record.read_record(cell.record)
    assert made["config"]["method"]["name"] == method
    assert set(made["scores"]) == {"gsm8k-toy", "commonsenseqa-toy"}
    for score in made["scores"].values():
        assert (score["n"], score["questions"]) == (6, 500)
        assert sum(record.unpack(score["right"], score["n"])) == score["k"]
    if method == "none":
        assert made["training"] is None
    else:
        assert made["training"]["steps"] == 2
        assert [step for step, _ in made["training"]["loss"]] == [1, 2]
        assert made["parameters"]["trainable"] > 0
        assert made["parameters"]["adapter_bytes"] > 0
    assert str(paths.ROOT) not in cell.record.read_text()
    prints = made["provenance"]["fingerprints"]
    assert all(content.startswith("sha256:") for content in prints.values())
    assert "pkg://osora_bench.toy/model" in prints


@pytest.mark.long
@pytest.mark.usefixtures("two_threads")
def test_one_seed_gives_one_record_and_another_seed_another(make_cell, tmp_path, session):
    def made(where, seed, before=()):
        chosen = [f"ledger={tmp_path}/{where}", f"runs={tmp_path}/{where}", f"seed={seed}", *QUICK]
        for method in before:  # what ran before in the process must not matter
            assert attempt(make_cell(*chosen, f"method={method}", "method.rank=4")) == "done"
        cell = make_cell(*chosen, "method=lora", "trainer.max_steps=4")
        assert attempt(cell) == "done"
        adapter = peft.load_peft_weights(str(cell.paths.adapter))
        return numbers(cell), adapter

    first, weights = made("a", 0)
    again, same_weights = made("b", 0, before=["pissa", "vera"])
    other, _ = made("c", 1)
    assert first == again
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)
    assert other["run_id"] != first["run_id"]
    assert other["training"]["loss"] != first["training"]["loss"]


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "vera", "osora"])
def test_the_next_cell_finds_the_base_weights_as_loaded(make_cell, session, method):
    cell = make_cell(f"method={method}", "method.rank=8", *QUICK)
    fresh = {
        n: t.clone() for n, t in models.Workspace().base(cell.config).model.state_dict().items()
    }
    assert attempt(cell) == "done"
    after = session.workspace.base(cell.config).model
    assert after.state_dict().keys() == fresh.keys()
    assert all(torch.equal(t, fresh[n]) for n, t in after.state_dict().items())
    assert not hasattr(after, "peft_config")
    assert all(p.grad is None for p in after.parameters())


def test_the_base_model_is_loaded_once_for_cells_that_leave_it_alone(make_cell, session):
    session.workspace.base(make_cell().config)
    loads = session.workspace.loads
    for method in ("lora", "vera", "osora"):
        assert attempt(make_cell(f"method={method}", "method.rank=4", *QUICK)) == "done"
    assert session.workspace.loads == loads


@pytest.mark.long
def test_training_lowers_the_loss(make_cell, session):
    cell = make_cell("method=lora", *QUICK, "trainer.max_steps=40", "trainer.learning_rate=3e-3")
    assert attempt(cell) == "done"
    curve = record.read_record(cell.record)["training"]["loss"]
    assert curve[-1][1] < 0.7 * curve[0][1]


def test_a_failure_is_kept_beside_the_run_and_stops_no_other_cell(
    make_cell, session, monkeypatch, capsys
):
    bad, good = make_cell("method=lora", *QUICK), make_cell("method=vera", *QUICK)
    real = peft.get_peft_model

    def get_peft_model(model, config):
        if config.peft_type == peft.PeftType.LORA:
            raise RuntimeError("no such luck")
        return real(model, config)

    monkeypatch.setattr(peft, "get_peft_model", get_peft_model)
    assert run.run_missing([bad, good]) == exits.FAILED
    assert (bad.state, good.state) == ("failed", "done")
    assert json.loads(bad.paths.failure.read_text())["error"] == "RuntimeError: no such luck"
    assert "FAILED, RuntimeError: no such luck" in capsys.readouterr().out
    monkeypatch.undo()
    assert run.run_missing([bad, good]) == exits.OK
    assert bad.state == "done"
    assert not bad.paths.failure.exists()


def test_what_is_done_is_not_run_again(make_cell, session, capsys, monkeypatch):
    cell = make_cell("method=osora", *QUICK)
    assert run.run_missing([cell]) == exits.OK
    before = cell.record.read_bytes()
    monkeypatch.setattr(attempts, "session", lambda: pytest.fail("nothing is left to run"))
    assert run.run_missing([cell]) == exits.OK
    assert cell.record.read_bytes() == before
    assert "1 cells: 1 done\n" in capsys.readouterr().out


def test_a_damaged_record_is_left_alone_and_said(make_cell, session, capsys):
    cell = make_cell("method=osora", *QUICK)
    cell.ledger.mkdir(parents=True)
    cell.record.write_text("{")
    assert run.run_missing([cell]) == exits.FAILED
    assert cell.record.read_text() == "{"
    assert "is damaged and left alone" in capsys.readouterr().out


def test_a_multirun_is_one_process_and_one_record_a_cell(tmp_path, monkeypatch, session):
    from osora_bench.sweep.multirun import main

    monkeypatch.chdir(tmp_path)
    loads = session.workspace.loads
    argv = ["-m", "method=lora,osora", "seed=0,1", "method.rank=4", *QUICK]
    assert main(argv) == exits.OK
    assert len(list((tmp_path / "runs" / "ledger").glob("*.json"))) == 4
    assert session.workspace.loads <= loads + 1


def test_a_cell_that_fails_in_a_multirun_stops_no_other(tmp_path, monkeypatch, session, capsys):
    from osora_bench.sweep.multirun import main

    monkeypatch.chdir(tmp_path)
    # the first one's package is not here: refused when the optimiser is made, not before
    optimizers = "trainer.optimizer=adamw_bnb_8bit,adamw_torch"
    assert main(["-m", "method=pissa,osora", "method.rank=8", optimizers, *QUICK]) == exits.FAILED
    assert len(list((tmp_path / "runs" / "ledger").glob("*.json"))) == 2
    assert capsys.readouterr().out.count("FAILED, ImportError") == 2


def test_a_tracked_cell_leaves_an_offline_run_and_the_same_record(make_cell, tmp_path, session):
    plain = make_cell("method=lora", *QUICK)
    assert attempt(plain) == "done"
    other = [f"ledger={tmp_path}/other", f"runs={tmp_path}/other"]
    tracked = make_cell("method=lora", *QUICK, "tracker=wandb", *other)
    assert tracked.run_id == plain.run_id
    assert attempt(tracked) == "done"
    assert numbers(tracked) == numbers(plain)
    until = time.monotonic() + 60  # the tracker has a process of its own
    while not (made := list(tracked.paths.folder.glob("wandb/offline-run-*"))):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert len(made) == 1


def test_nothing_is_left_in_the_current_folder(make_cell, tmp_path, session, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert attempt(make_cell("method=lora", *QUICK)) == "done"
    assert list(elsewhere.iterdir()) == []


@pytest.mark.long
def test_cells_share_one_decomposition_of_each_weight(make_cell, session, monkeypatch):
    from osora_bench.osora import store

    calls = []
    real = store.top_triplets
    monkeypatch.setattr(store, "top_triplets", lambda w, r: calls.append(r) or real(w, r))
    for method, rank in (("osora", 8), ("osora", 16), ("pissa", 8), ("osora_k", 4)):
        assert attempt(make_cell(f"method={method}", f"method.rank={rank}", *QUICK)) == "done"
    layers = 2 * session.workspace.base(make_cell().config).model.config.num_hidden_layers
    assert len(calls) == layers


def test_pissa_starts_as_peft_starts_it_and_closer_to_the_exact_residual(make_cell, session):
    cell = make_cell("method=pissa", "method.rank=8")
    base = {
        n: t.double() for n, t in models.Workspace().base(cell.config).model.state_dict().items()
    }
    ours = peft.get_peft_model(
        models.Workspace().base(cell.config).model, adapter_config.instantiate(cell.config.method)
    )
    adapter_config.start(cell.config.method)(ours)
    theirs = peft.get_peft_model(
        models.Workspace().base(cell.config).model,
        peft.LoraConfig(
            r=8, lora_alpha=8, init_lora_weights="pissa", target_modules=["q_proj", "v_proj"]
        ),
    )
    compared = 0
    for (name, one), (_, other) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        if not name.endswith(("q_proj", "v_proj")):
            continue
        weight = base[name.removeprefix("base_model.model.") + ".weight"]
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        exact = weight - (u[:, :8] * s[:8]) @ vh[:8]
        scale = float(s[0])
        assert (one.weight.double() - exact).abs().max() < 1e-6 * scale
        assert (other.weight.double() - exact).abs().max() < 1e-4 * scale  # its SVD is float32
        compared += 1
    assert compared == 8


def test_a_start_that_does_not_exist_is_refused(make_cell):
    with pytest.raises(UserError, match="method pissa: start=osora.*has no no_such_start"):
        preflight.check_cells(
            [make_cell("method=pissa", "method.start=osora_bench.osora.no_such_start")]
        )
