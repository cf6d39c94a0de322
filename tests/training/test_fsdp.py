"""Training shared by processes: the weights are in parts, and the numbers those of one process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file

from osora_bench.common import interruption
from osora_bench.common.errors import UserError
from osora_bench.models import adapters as models_adapters
from osora_bench.models import base as models
from osora_bench.models import counting, skeleton
from osora_bench.models.adapters import with_saved_adapter
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.planning import estimate
from osora_bench.planning.cell import cell_of
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.planning.config import plain
from osora_bench.records import record
from osora_bench.sweep import frozen_plan, workers
from osora_bench.sweep.options import RunOptions
from osora_bench.sweep.slurm import profile
from osora_bench.sweep.watch import Watch
from osora_bench.training import checkpoint, data, train
from osora_bench.training.fsdp import launch
from tests.conftest import QUICK
from tests.grids import cells_of

ROUND_OFF = 1e-5
"""Relative difference of two losses. Sums in another order differ by some 1e-7 in float32, which
ten steps at these rates grow to 3e-6; a row too many or a gradient scaled otherwise makes 1e-2."""
WEIGHTS = 1e-4
"""Of two trained tensors, in norm. AdamW moves a number whose gradient is itself round-off by as
much as any other, so this is larger."""
METHODS = {"lora": 3e-3, "dora": 3e-3, "osora": 1e-1, "full": 3e-4}
"""With rates at which ten steps teach something."""
# 33 rows are 17 batches of 2 for each of two epochs, so the fifth step has one row, for one process
ROWS = (
    "trainer.batch_size=8",
    "trainer.micro_batch_size=2",
    "trainer.max_steps=null",
    "trainer.epochs=2",
    "trainer.gradient_checkpointing=true",
    "task.max_rows=33",
    "task.validation_rows=9",
)
STEPS = 10


def composed(*overrides):
    with composer():
        return cell_of(resolve(compose(overrides, "test"), "test"), overrides)


def in_two_processes(folder, cells):
    """Run sharing.py; what each process tells of every cell."""
    (folder / "cells.json").write_text(json.dumps(cells))
    for cell in cells:
        (folder / cell["name"]).mkdir()
    started = []
    for rank in range(2):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        env = {**os.environ, **{k: str(v) for k, v in places.items()}, "OMP_NUM_THREADS": "1"}
        script = Path(__file__).with_name("sharing.py")
        started.append(subprocess.Popen([sys.executable, str(script), str(folder)], env=env))
    assert [process.wait() for process in started] == [0, 0]
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Every method in two processes, OSoRA a second time with two interruptions: by name, its
    cell, what a record says of its training, and what each process told."""
    folder = tmp_path_factory.mktemp("shared")
    cells, listed = {}, []
    for name, method in [*((m, m) for m in METHODS), ("interrupted", "osora")]:
        places = (f"ledger={folder}/{name}", f"runs={folder}/{name}")
        rate = f"trainer.learning_rate={METHODS[method]}"
        cells[name] = composed(f"method={method}", "trainer.processes=2", rate, *ROWS, *places)
        chance = random.Random(name)
        stops = [chance.randint(1, 4) for _ in range(2)] if name == "interrupted" else []
        one = {"name": name, "run_id": cells[name].run_id, "config": plain(cells[name].config)}
        listed.append({**one, "stops": stops})
    told = in_two_processes(folder, listed)
    return {
        name: SimpleNamespace(
            cell=cell,
            made=json.loads((folder / name / launch.TRAINING).read_text()),
            told=[rank[number] for rank in told],
        )
        for number, (name, cell) in enumerate(cells.items())
    }


def alone(cell, runs):
    """The same training in this process: its cell, and what a record says of it."""
    settings = replace(cell.config.trainer, processes=1)
    one = replace(cell, config=replace(cell.config, trainer=settings, runs=str(runs)))
    base = models.load_base(one.config.model, torch.device("cpu"))
    transformers.set_seed(one.config.seed)
    model = models_adapters.with_fresh_adapter(base.model, one)
    setup = train.TrainingSetup(
        one.config,
        rows=data.tokenised(one.config, base.tokenizer),
        held_out=data.held_out(one.config, base.tokenizer),
        pad_token_id=base.tokenizer.pad_token_id,
        checkpoints=one.paths.trainer,
        device=torch.device("cpu"),
        label="alone",
        log=lambda _: None,
    )
    made = train.train(model, setup)
    models_adapters.save(model, base, one)
    return one, made


def tensors(cell):
    (place,) = cell.paths.adapter.glob("*.safetensors")
    return load_file(place)


def settings(cell):
    """What lies beside the tensors; PEFT keeps names of modules in no order."""
    told = {p.name: json.loads(p.read_text()) for p in cell.paths.adapter.glob("*.json")}
    modules = told.get("adapter_config.json", {}).get("target_modules", [])
    return told, modules.sort()


def assert_close(ours, theirs):
    """Two saved models or adapters, tensor by tensor, to round-off."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).norm() <= WEIGHTS * tensor.norm(), name


def assert_loads(cell):
    """What was saved goes onto a fresh base model, every tensor in its place."""
    place = cell.paths.adapter
    if cell.config.method.full:
        _, found = transformers.AutoModelForCausalLM.from_pretrained(
            place, output_loading_info=True
        )
        assert not any(found.values())
        return
    base = models.load_base(cell.config.model, torch.device("cpu"))
    model = with_saved_adapter(base, place, cell.config)  # refuses tensors that do not match
    assert model.active_peft_config.inference_mode


@pytest.mark.sweep
@pytest.mark.parametrize("name", METHODS)
def test_each_of_two_processes_holds_half_of_every_weight(shared, name):
    first, second = (rank["parts"] for rank in shared[name].told)
    assert first.keys() == second.keys()
    assert sum("layers." in key for key in first) > 20
    for key, (sharded, here, in_all) in first.items():
        assert (sharded, second[key][0]) == (True, True), key
        assert here + second[key][1] == in_all, key
    for parts in (first, second):
        held, in_all = (sum(part[i] for part in parts.values()) for i in (1, 2))
        assert held == pytest.approx(in_all / 2, rel=0.01)


@pytest.mark.sweep
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one_does(shared, name, tmp_path):
    """The same rows and tokens a step, and the same losses and weights to round-off."""
    cell, told = shared[name].cell, shared[name].made
    one, expected = alone(cell, tmp_path)
    made = train.Training.of(told["training"])
    assert (made.validation.rows, made.validation.tokens) == (9, expected.validation.tokens)
    assert made.validation.loss == pytest.approx(expected.validation.loss, rel=ROUND_OFF)
    assert (made.steps, made.rows, made.tokens) == (STEPS, 33, expected.tokens)
    curves = zip(made.loss, expected.loss, strict=True)
    assert all(ours[1] == pytest.approx(theirs[1], rel=ROUND_OFF) for ours, theirs in curves)
    first, second = (sum(x for _, x in part) for part in (made.loss[:5], made.loss[5:]))
    assert second < 0.9 * first  # of the same rows: the training counts
    assert_close(tensors(cell), tensors(one))
    assert settings(cell) == settings(one)
    assert_loads(cell)


@pytest.mark.sweep
def test_interrupted_processes_give_bitwise_the_same_adapter(shared):
    """A signal that only rank 0 hears, twice at a random step: all stop at that step."""
    assert [rank["stopped"] for rank in shared["interrupted"].told] == [2, 2]
    ours, theirs = (
        (shared[name].cell.paths.adapter / "adapter_model.safetensors").read_bytes()
        for name in ("interrupted", "osora")
    )
    assert ours == theirs
    made, undisturbed = ({**shared[name].made} for name in ("interrupted", "osora"))
    costs, others = made.pop("costs"), undisturbed.pop("costs")
    assert made == undisturbed
    assert costs["seconds"] > 0
    assert costs["frozen_bytes"] == others["frozen_bytes"] > 0
    places = shared["interrupted"].cell.paths
    assert len(list(places.shards(2).glob("checkpoint-*/shards/*.distcp"))) == 2 * 2
    assert checkpoint.newest(places.shards(2)) is not None  # whole
    assert checkpoint.newest(places.trainer) is None  # one process does not go on from it


@pytest.mark.sweep
def test_a_shared_cell_is_interrupted_goes_on_and_leaves_a_record(
    shared, make_cell, session, monkeypatch
):
    """The signal comes while the processes start, and they stop at their first step."""
    rate = f"trainer.learning_rate={METHODS['osora']}"
    cell = make_cell("method=osora", "trainer=fsdp", "trainer.processes=2", rate, *ROWS, *QUICK[1:])
    started, processes = launch._started, []

    def start(*told):
        processes.append(started(*told))
        if len(processes) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return processes[-1]

    monkeypatch.setattr(launch, "_started", start)
    with pytest.raises(interruption.Interrupted, match="SIGTERM"):
        attempt(cell)
    assert len(processes) == 2
    assert all(process.poll() is not None for process in processes)
    assert checkpoint.newest(cell.paths.shards(2)).name == "checkpoint-1"
    assert attempt(cell) == "done"
    made, whole = record.read_record(cell.record), shared["osora"]
    assert made["measured"]["starts"] == 2
    assert made["config"]["trainer"]["processes"] == 2
    assert made["provenance"]["hardware"]["processes"] == 2
    assert made["training"] == whole.made["training"]
    adapters = [c.paths.adapter / "adapter_model.safetensors" for c in (cell, whole.cell)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    size = adapters[0].stat().st_size
    assert made["parameters"] == {"trainable": whole.made["trainable"], "adapter_bytes": size}
    assert {score["n"] for score in made["scores"].values()} == {6}
    costs = made["measured"]["training"]
    assert 0 < costs["seconds"] < 60
    speed = made["training"]["tokens"] / costs["seconds"]  # whole tokens
    assert costs["tokens_per_second"] == pytest.approx(speed, rel=0.01)
    assert costs["frozen_bytes"] == counting.count(cell.config).frozen_bytes  # not a part of them
    assert costs["memory_bytes"] > 0
    assert not cell.paths.trainer.exists()
    # another suite of the same training starts no process
    other = make_cell(*cell.overrides, "eval.datasets.0.limit=5")
    assert other.run_id != cell.run_id
    assert attempt(other) == "done"
    assert len(processes) == 4
    assert record.read_record(other.record)["training"] == made["training"]
    assert (other.paths.adapter / adapters[0].name).read_bytes() == adapters[0].read_bytes()


BEGIN = """
import json, os, pathlib, signal, sys, time
from osora_bench.training.fsdp import rank_process as rank
ear = rank.Ear()
folder = pathlib.Path(ear.work()["folder"])
me = int(os.environ["RANK"])
"""
"""How a process begins that stands in for a rank."""


@pytest.fixture
def stand_in(make_cell, monkeypatch):
    """Have other code run in the place of each rank; a function that trains a cell so."""

    def trained(code, asked=None, log=lambda _: None):
        monkeypatch.setattr(launch, "COMMAND", (sys.executable, "-c", BEGIN + code))
        cell = make_cell("trainer.processes=2", "trainer.micro_batch_size=16")
        return launch.train_in_parts(cell, asked or interruption.Interruption(), log)

    return trained


def test_a_killed_process_ends_the_others_and_is_named(stand_in):
    code = "if me == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)"
    started = time.monotonic()
    with pytest.raises(ChildProcessError, match=r"process 1 of 2 was killed by signal 9 \(out of"):
        stand_in(code)
    assert time.monotonic() - started < 30


def test_the_first_error_is_told_not_those_that_follow_from_it(stand_in):
    """Rank 0 misses rank 1 later, and ends earlier."""
    code = """
try:
    time.sleep(0 if me == 1 else 1)
    raise MemoryError("no room") if me == 1 else ConnectionError("rank 1 is gone")
except Exception as error:
    rank._leave(error, folder)
time.sleep(3 if me == 1 else 0)
sys.exit(1)
"""
    with pytest.raises(MemoryError, match="no room") as caught:
        stand_in(code)
    assert "in <module>" in caught.value.__notes__[0]


def test_signals_to_the_processes_are_left_to_the_cells_process(stand_in, monkeypatch):
    """They hear of one on standard input alone; and where it does not end the cell, as SLURM's
    SIGTERM does not, they are started again and go on."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    asked = interruption.Interruption()
    asked.number = signal.SIGTERM
    code = """
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
    os.kill(os.getpid(), number)
until = time.monotonic() + 1
while me == 0 and ear.number is None and time.monotonic() < until:
    time.sleep(0.01)
if me == 0 and ear.number is None:
    training = {"steps": 1, "rows": 2, "truncated_rows": 0, "tokens": 3, "loss": [[1, 0.5]]}
    training["validation"] = None
    made = {"training": training, "trainable": 4, "costs": {"seconds": 1.5}}
    (folder / "training.json").write_text(json.dumps(made))
"""
    assert stand_in(code, asked) == (
        train.Training(1, 2, 0, 3, [[1, 0.5]]), 4, {"seconds": 1.5},
    )  # fmt: skip
    assert asked.number is None


def test_a_process_ends_with_the_one_that_started_it():
    code = BEGIN + "print('here', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "RANK": "0"},
    )  # fmt: skip
    process.stdin.write(b'{"folder": "/"}\n')
    process.stdin.flush()
    assert process.stdout.readline() == b"here\n"
    process.stdin.close()
    assert process.wait(30) == 1
    process.stdout.close()


def test_a_changed_code_is_refused(monkeypatch):
    from osora_bench.records import code_state
    from osora_bench.training.fsdp import rank_process

    with pytest.raises(UserError, match="the code has changed since"):
        rank_process.run({"code": {**code_state.code(), "tree": "another"}}, lambda: None)


@pytest.mark.long
def test_the_live_tracker_hears_what_rank_0_logs(stand_in):
    heard = []
    code = """
from osora_bench.training.fsdp import part
log = part._log(folder)
for step in (1, 2):
    log({"loss": 2.0 / step, "step": step})
sys.exit(me)
"""
    with pytest.raises(ChildProcessError, match=r"statuses \[.*1\] and said nothing"):
        stand_in(code, log=heard.append)
    assert heard == [{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}]


@pytest.mark.parametrize("task", ["toy", "commonsense", "math", "gpqa"])
def test_trainer_fsdp_is_the_tasks_recipe_in_parts_and_the_same_cell(task):
    model = "toy" if task == "toy" else "qwen2.5-32b-instruct"
    both = [f"model={model}", f"task={task}", "trainer.batch_size=64"]
    whole, parts = (composed(*more, *both) for more in ((), ("trainer=fsdp",)))
    apart = {"processes": 4, "micro_batch_size": 1}
    assert parts.config.trainer == replace(whole.config.trainer, **apart)
    assert parts.run_id == whole.run_id


def test_an_experiment_is_shared_by_an_override_and_keeps_its_cells():
    plain, parts = (cells_of("figure3", more) for more in ((), ("trainer=fsdp",)))
    assert [cell.run_id for cell in parts] == [cell.run_id for cell in plain]
    assert {cell.config.trainer.processes for cell in parts} == {4}
    assert {cell.config.trainer.batch_size for cell in parts} == {128}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.processes=3"],
            "batch_size=32 is no multiple of trainer.micro_batch_size=32 x tra",
        ),
        (["trainer.processes=0"], "trainer.processes=0: must be at least 1"),
        (
            ["trainer=fsdp", "trainer.precision=float16"],
            "float16 cannot be shared by trainer.processes=4; what can: float32, bfloat16",
        ),
        (
            ["trainer=fsdp", "trainer.optimizer=adafactor"],
            "optimizer=adafactor cannot be shared by trainer.processes=4; what can: adamw_torch, ",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_by_the_configuration(overrides, message):
    with pytest.raises(UserError) as caught:
        composed(*overrides)
    assert message in str(caught.value)


def test_more_processes_than_gpus_are_refused(make_cell, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="processes=4: each takes a GPU of its own, and .* has 2"):
        preflight.check_cells([make_cell("trainer=fsdp")])
    preflight.check_cells([make_cell("trainer=fsdp", "trainer.processes=2")])
    preflight.check_cells([make_cell("trainer=fsdp", "method=none")])  # trains nothing


def test_methods_and_models_that_cannot_be_shared_are_refused(make_cell, monkeypatch):
    cell = make_cell("trainer=fsdp")

    def named(name, **peft):
        method = replace(cell.config.method, name=name, rank_bounded=False, peft=peft)
        return cell_of(replace(cell.config, method=method))

    adalora = named("adalora", _target_="peft.AdaLoraConfig", init_r=64, total_step=9)
    with pytest.raises(UserError, match="processes=4: method adalora moves ranks between layers"):
        preflight.check_cells([adalora])
    prompt = named("prompt", _target_="peft.PromptTuningConfig", num_virtual_tokens=64)
    with pytest.raises(UserError, match="processes=4: method prompt learns a prompt"):
        preflight.check_cells([prompt])
    monkeypatch.setattr(skeleton, "decoder_layers", lambda model: [])
    with pytest.raises(UserError, match="transformers names no layers of toy that could be shared"):
        preflight.check_cells([cell])


def test_a_slurm_job_must_ask_for_a_gpu_for_each_process(make_cell):
    cells = [make_cell(), make_cell("trainer=fsdp")]
    with pytest.raises(
        UserError, match="processes=4, but a job asks for .*gpus_per_node=1: set it"
    ):
        profile.check_gpus({"gpus_per_node": 1}, cells)
    for enough in (None, 4, 8):
        profile.check_gpus({"gpus_per_node": enough}, cells)


def test_workers_take_as_many_gpus_each_as_a_cell_has_processes(make_cell, monkeypatch):
    monkeypatch.setattr(workers, "gpus", lambda cells: list("01234"))
    cells = [make_cell(), make_cell("trainer=fsdp", "trainer.processes=2")]
    with pytest.raises(
        UserError, match="workers=3: there are 5 GPUs, and a cell takes trainer.pro"
    ):
        workers.run_in_workers(cells, RunOptions(workers=3))
    assert workers.devices(cells) == ["0,1", "2,3"]
    assert workers.devices(cells[:1]) == list("01234")
    # two starts of different slots do not share a GPU
    watch = Watch(frozen_plan.freeze(cells))
    one, two = (workers.Workers(watch, 2, False, slots) for slots in (["2", "4"], ["0,1", "2,3"]))
    with one._slot_lock(0):
        assert two._slot_lock(1) is None
        with two._slot_lock(0), one._slot_lock(1):
            pass
    with two._slot_lock(1):
        assert one._slot_lock(0) is None


def test_a_shared_training_is_estimated_to_take_less_of_each_process(make_cell):
    large = ["model=qwen2.5-32b-instruct", "task=math", "eval=math"]
    one, four = (
        estimate.estimate_of(make_cell(*large, *more), {}) for more in ((), ("trainer=fsdp",))
    )
    assert one.hours / 4 < four.hours < one.hours
    assert 65 < four.gigabytes < one.gigabytes  # one process evaluates the whole model
    full = estimate.estimate_of(make_cell(*large, "method=full", "trainer=fsdp"), {})
    assert four.gigabytes < full.gigabytes < 4 * 65
