"""A cell that is interrupted ends with the record that it would have had without."""

import contextlib
import json
import os
import random
import signal
from types import SimpleNamespace

import peft
import pytest
import torch
from transformers import TrainerState

from osora_bench.common import interruption
from osora_bench.common.claim import claimed, holder, note
from osora_bench.pipeline.attempt import DeviceLost, attempt
from osora_bench.records import record
from osora_bench.training import callbacks, checkpoint, train
from osora_bench.training.hidden_state import ChangingState
from tests.more_methods import MORE, PAPER, more_methods  # noqa: F401
from tests.sweeps import numbers

STEPS = ["trainer.max_steps=12", "eval.datasets.0.limit=6", "eval.datasets.1.limit=6"]


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal in the middle of a training step."""
    computed = train.WholeTrainer.compute_loss
    calls = iter(range(1, 1000))

    def compute(self, *args, **kwargs):
        if next(calls) == step:
            os.kill(os.getpid(), number)
        return computed(self, *args, **kwargs)

    monkeypatch.setattr(train.WholeTrainer, "compute_loss", compute)


def run_to_the_end(cell, monkeypatch, steps):
    """Start a cell again until it is through, with a signal in each of its first starts."""
    for step in steps:
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(interruption.Interrupted, match="SIGTERM"):
                attempt(cell)
        assert cell.state == "missing"
        assert checkpoint.newest(cell.paths.trainer) is not None
    assert attempt(cell) == "done"


@pytest.mark.long
@pytest.mark.usefixtures("more_methods")
@pytest.mark.parametrize("method", ["full", *PAPER, *MORE])
def test_interrupted_cells_give_the_same_record_and_adapter(
    make_cell, method, session, tmp_path, monkeypatch
):
    """Five times, each at a random step of two and a half epochs: the adapter is bitwise that of
    an undisturbed run."""
    whole, broken = (
        make_cell(
            f"method={method}", "trainer.batch_size=8", "trainer.micro_batch_size=2",
            "task.max_rows=40", *STEPS, f"ledger={tmp_path}/{name}", f"runs={tmp_path}/{name}",
        )
        for name in ("whole", "broken")
    )  # fmt: skip
    assert attempt(whole) == "done"
    per_step = 4  # micro-batches
    chance = random.Random(method)
    # each start goes on from the last checkpoint: 2 to 11 micro-batches further, 12 steps in all
    run_to_the_end(broken, monkeypatch, [chance.randint(1, 2 * per_step) for _ in range(5)])
    assert numbers(broken) == numbers(whole)
    assert record.read_record(broken.record)["measured"]["starts"] == 6
    one, other = (
        {p.name: p.read_bytes() for p in c.paths.adapter.glob("*.safetensors")}
        for c in (whole, broken)
    )
    assert one == other
    assert one
    assert not broken.paths.trainer.exists()


@pytest.mark.long
@pytest.mark.usefixtures("more_methods")
@pytest.mark.parametrize("method", ["lora", "full", "p_tuning", "monteclora"])
def test_what_goes_on_is_the_same_in_bfloat16(make_cell, method, session, tmp_path, monkeypatch):
    """The training's precision and its checkpointed activations are put on anew by each start."""
    whole, broken = (
        make_cell(
            f"method={method}", "trainer.batch_size=8", "task.max_rows=40", *STEPS,
            "trainer.micro_batch_size=2", "trainer.precision=bfloat16",
            "trainer.gradient_checkpointing=true",
            f"ledger={tmp_path}/{name}", f"runs={tmp_path}/{name}",
        )
        for name in ("whole", "broken")
    )  # fmt: skip
    assert attempt(whole) == "done"
    run_to_the_end(broken, monkeypatch, [9, 6])
    assert numbers(broken) == numbers(whole)


def test_state_that_changes_is_taken_wherever_it_is_and_what_stays_is_not():
    """Buffers that are not saved, plain data in objects that a module holds."""

    class Held:
        def __init__(self):
            self.seen, self.fixed, self.itself = {"a": torch.zeros(2)}, [1, 2], self

    def made():
        layer = torch.nn.Linear(2, 2)
        with torch.no_grad():
            layer.weight.fill_(1)
            layer.bias.fill_(1)
        layer.bias.requires_grad_(False)
        layer.register_buffer("count", torch.zeros(1), persistent=False)
        layer.held = Held()
        return torch.nn.Sequential(layer)

    first, second = made(), made()
    changing, other = ChangingState(first), ChangingState(second)
    assert set(changing.take()) == {("", "0.weight")}
    with torch.no_grad():
        first[0].weight.fill_(3)
        first[0].bias.data.fill_(2)
    first[0].count = torch.ones(1)
    first[0].held.seen["b"] = torch.ones(3)
    taken = changing.take()
    assert set(taken) == {
        ("", "0.weight"), ("", "0.bias"), ("", "0.count"), ("0", "held", "seen"),
    }  # fmt: skip
    trained = second[0].weight
    other.put(taken)
    assert second[0].weight is trained  # which the optimiser holds
    assert second[0].weight.eq(3).all()
    assert second[0].bias.eq(2).all()
    assert second[0].count.item() == 1
    assert list(second[0].held.seen) == ["a", "b"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_kept_for_the_safe_point_unless_it_was_ignored(number):
    for ignored in (False, True):
        before = signal.signal(number, signal.SIG_IGN if ignored else signal.default_int_handler)
        try:
            with interruption.Interruption() as asked:
                os.kill(os.getpid(), number)
                assert asked.number == (None if ignored else number)
                if not ignored:
                    with pytest.raises(interruption.Interrupted, match=number.name):
                        asked.safe_point()
        finally:
            signal.signal(number, before)


def test_a_second_signal_acts_at_once():
    with interruption.Interruption() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_after_the_last_safe_point_ends_the_process_once_the_cell_is_done(
    make_cell, session, monkeypatch
):
    cell = make_cell("method=none", *STEPS)
    write = record.write_record

    def late(made, ledger):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(made, ledger)

    with monkeypatch.context() as patch:
        patch.setattr(record, "write_record", late)
        with pytest.raises(interruption.Interrupted, match="SIGTERM"):
            attempt(cell)
    assert cell.state == "done"
    interruption.current().safe_point()  # nothing is left of it


def test_under_slurm_a_termination_is_saved_and_the_work_goes_on(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with interruption.Interruption() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.number == signal.SIGTERM
        asked.safe_point()
        assert asked.number is None


def test_submitits_handler_is_called_at_the_safe_point():
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        with interruption.Interruption() as asked:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert not heard
            asked.safe_point()
            assert heard == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_an_evaluation_that_is_interrupted_goes_on(make_cell, session, tmp_path, monkeypatch):
    """After each of the answers; each is given once, and the record is that of one go."""
    from osora_bench.evaluation.journal import Journal

    cell, whole = (
        make_cell("method=none", *STEPS[1:], f"ledger={tmp_path}/{name}", f"runs={tmp_path}/{name}")
        for name in ("cell", "whole")
    )
    put, given = Journal.put, []

    def interrupting(self, question, answer):
        given.append(json.dumps(question))
        os.kill(os.getpid(), signal.SIGTERM)
        put(self, question, answer)

    kept = cell.paths.evaluation / "journal.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", interrupting)
        for answers in range(1, 13):
            with pytest.raises(interruption.Interrupted):
                attempt(cell)
            assert len(kept.read_text().splitlines()) == 1 + answers
        assert attempt(cell) == "done"
    assert len(set(given)) == len(given) == 12
    assert not kept.exists()
    assert attempt(whole) == "done"
    assert numbers(cell) == numbers(whole)


def test_only_whole_checkpoints_count(tmp_path, capsys):
    for step in (2, 10):
        place = tmp_path / f"checkpoint-{step}"
        place.mkdir()
        (place / checkpoint.STATE).write_bytes(b"w" * 100)
        checkpoint.seal(place)
    assert checkpoint.newest(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / checkpoint.STATE).write_bytes(b"w" * 99 + b"x")  # a damaged byte
    (tmp_path / "checkpoint-12").mkdir()  # killed before it was sealed
    assert checkpoint.newest(tmp_path).name == "checkpoint-2"
    assert capsys.readouterr().out.count("no whole checkpoint, removed") == 2
    assert not (tmp_path / "checkpoint-10").exists()
    (tmp_path / "checkpoint-2" / checkpoint.STATE).unlink()
    assert checkpoint.newest(tmp_path) is None


def test_a_checkpoint_of_what_peft_saves_alone_is_not_gone_on_from(tmp_path, capsys):
    place = tmp_path / "checkpoint-3"
    place.mkdir()
    (place / "adapter_model.safetensors").write_bytes(b"w")
    checkpoint.seal(place)
    assert checkpoint.newest(tmp_path) is None
    assert "no whole checkpoint, removed" in capsys.readouterr().out


def test_checkpoints_are_written_in_time_and_few_are_kept(make_cell, session, monkeypatch):
    cell = make_cell(*STEPS, "trainer.checkpoint_minutes=0")
    seen = []
    sealed = checkpoint.seal

    def seal(folder):
        sealed(folder)
        seen.append((folder.name, len(list(folder.parent.glob("checkpoint-*")))))

    monkeypatch.setattr(checkpoint, "seal", seal)
    assert attempt(cell) == "done"
    assert [name for name, _ in seen] == [f"checkpoint-{i}" for i in range(1, 13)]
    assert {count for _, count in seen[1:]} == {checkpoint.KEPT}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_cell_at_its_step(
    make_cell, session, monkeypatch, value
):
    from osora_bench.osora.layer import Linear

    steps = iter(range(1000))
    forward = Linear.forward

    def spoiled(self, x, *args, **kwargs):
        made = forward(self, x, *args, **kwargs)
        return made * value if self.training and next(steps) > 60 else made

    monkeypatch.setattr(Linear, "forward", spoiled)
    cell = make_cell("method=osora", *STEPS, "trainer.micro_batch_size=32")
    assert attempt(cell) == "failed"
    assert cell.state == "failed"
    assert "Diverged: the loss is nan at step" in cell.error
    assert "of 12; a smaller trainer.learning_rate" in cell.error


def test_gradients_that_are_no_numbers_stop_the_cell_at_its_step():
    """The weights are spoilt then, even if no loss comes after it to show that."""
    state = TrainerState(global_step=12, max_steps=12)
    logs = {"loss": 1.0, "grad_norm": float("inf")}
    with pytest.raises(callbacks.Diverged, match="norm of the gradients is inf at step 12 of 12"):
        callbacks.LossGuard().on_log(SimpleNamespace(fp16=False), state, None, logs=logs)
    callbacks.LossGuard().on_log(SimpleNamespace(fp16=True), state, None, logs=logs)


def test_out_of_memory_is_named_with_the_setting_to_change(make_cell, session, monkeypatch):
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
        ),
        ChildProcessError("process 1 of 2 was killed by signal 9 (out of memory?)"),
        RuntimeError(cublas),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(session, "_run", fail)
        cell = make_cell("method=lora", *STEPS)
        with contextlib.suppress(DeviceLost):  # after what CUDA says, a new process is needed
            assert attempt(cell) == "failed"
        assert cell.error.startswith("out of memory: trainer.micro_batch_size (now 32)")


def test_a_cell_that_runs_is_left_to_its_runner(make_cell, session):
    cell = make_cell("method=lora", *STEPS)
    with claimed(cell.paths.folder) as free:
        assert free
        assert cell.state == "running"
        told = holder(cell.paths.folder)
        assert (told["pid"], told["starts"], told["job"]) == (os.getpid(), 1, None)
        assert attempt(cell) == "running"  # another opening of the file: another holder
    assert cell.state == "missing"
    assert holder(cell.paths.folder) is None
    assert note(cell.paths.folder) == {}


def test_a_lock_dies_with_its_holder(make_cell, tmp_path):
    import subprocess
    import sys

    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from osora_bench.common.claim import claimed\n"
        f"with claimed(Path('{tmp_path}')):\n"
        "  print('claimed', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for starts in (1, 2):
        ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
        assert ended.returncode == -signal.SIGKILL
        assert holder(tmp_path) is None
        assert note(tmp_path)["starts"] == starts
    (tmp_path / "status.json").write_text(json.dumps(note(tmp_path))[:10])
    assert note(tmp_path) == {}


def test_adapters_of_peft_are_loaded_as_they_were_saved(make_cell, session):
    cell = make_cell("method=osora", *STEPS)
    assert attempt(cell) == "done"
    assert peft.load_peft_weights(str(cell.paths.adapter))
