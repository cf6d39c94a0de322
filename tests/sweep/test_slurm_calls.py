"""What is refused or told before anything is submitted to SLURM."""

import shutil

import pytest

from osora_bench.cli.main import main
from osora_bench.common import exits
from osora_bench.common.errors import UserError
from osora_bench.sweep import run
from osora_bench.sweep.options import RunOptions
from osora_bench.sweep.slurm import profile
from osora_bench.sweep.slurm import sweep as slurm
from tests.sweep.conftest import ON_SLURM, SHORT


@pytest.mark.parametrize("name", ["back\\slash", "50%x", "100%%", "a%4j", "${x}"])
def test_a_place_that_slurm_reads_otherwise_is_refused(name, grid, monkeypatch):
    monkeypatch.setattr(slurm, "check_cluster", lambda _: None)
    monkeypatch.setattr(slurm, "array_limit", lambda: 4)
    (cell,) = grid("slurm", ["none"], *SHORT)
    cell.config.runs = f"{cell.config.runs}/{name}"
    with pytest.raises(UserError, match=r"do not take .* as it stands.*take another folder"):
        run.run_missing([cell], RunOptions(launcher=ON_SLURM))


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
