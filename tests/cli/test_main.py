"""The commands as a person meets them: what they say, how they end, how fast they start."""

import errno
import json
import os
import stat
import subprocess
import sys

import pytest

from osora_bench.cli import run
from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.common.files import write_whole
from osora_bench.pipeline import messages
from osora_bench.pipeline.attempt import session
from osora_bench.records import code_state
from osora_bench.sweep.multirun import NoRecord
from osora_bench.sweep.multirun import main as cell_main


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own: relative places (runs/, data/) land there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plan_lists_every_cell_with_its_state(here, capsys):
    assert main(["plan", "experiment=demo"]) == 0
    out = capsys.readouterr().out
    assert "missing  toy osora r=64 seed=0" in out
    assert out.splitlines()[-1].startswith("17 cells: 17 missing; about ")


def test_plan_as_json(here, capsys):
    assert main(["plan", "experiment=table3", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == 14
    assert listed[0]["label"] == "qwen2-7b lora r=2 seed=42"


def test_tables_without_records_render(here, capsys):
    assert main(["tables", "experiment=demo", "out=shown"]) == 0
    assert "No run has finished yet." in capsys.readouterr().out
    assert {p.suffix for p in (here / "shown").iterdir()} == {".md", ".csv", ".tex"}


def test_parameter_counts_are_a_column_on_request(here, capsys, monkeypatch):
    monkeypatch.setattr(paths, "EXPERIMENTS", here)
    (here / "mine.yaml").write_text(
        "{title: x, seed: [0], blocks: [{model: [toy], method: [none, lora]}],"
        " tables: {t: {layout: methods, title: x}}}"
    )
    heads = []
    for more in ([], ["params=true"]):
        assert main(["tables", "experiment=mine", "out=shown", *more]) == 0
        heads.append((here / "shown" / "t.csv").read_text().splitlines()[0])
    assert heads == [
        "Model,Method,GSM8K-toy,CSQA-toy,Avg.",
        "Model,Method,Params,GSM8K-toy,CSQA-toy,Avg.",
    ]


def test_a_full_disk_is_refused(make_cell, monkeypatch):
    import shutil

    from osora_bench.common.errors import UserError
    from osora_bench.pipeline import preflight

    usage = shutil.disk_usage("/")._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(UserError, match="5 MiB free on its disk, at least 200 needed"):
        preflight.check_cells([make_cell()])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pln"], "unknown verb 'pln'. Did you mean 'plan'"),
        (["plan", "experiment=demo", "--bogus"], "unknown option --bogus"),
        (["tables", "experiment=demo", "out=/proc/x"], "/proc/x"),
        (["plan"], "name one experiment: experiment=NAME. Valid: demo"),
        (["plan", "experiment=tabel3"], "Did you mean 'table3'"),
        (["run", "experiment=demo", "trainer.lr=1"], "unknown key 'trainer.lr'"),
        (["tables", "experiment=demo", "seed=1"], "says which models, methods, ranks and seeds"),
        (["tables", "experiment=table7", "compare=paper"], "no results to stand beside"),
        (["params", "method=loar"], "unknown method 'loar'. Did you mean 'lora'"),
        (["params", "rank=8,0"], "rank=8,0: a rank is at least 1"),
        (["params", "config=/proc/no/config.json"], "config.json: No such file or directory"),
        (["params", "model=toy", "method=lora", "modules=q_prj"], "'q_prj' matches no module"),
    ],
)
def test_mistakes_end_with_status_2_and_a_message(here, capsys, argv, message):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_table3_says_what_is_missing_before_doing_anything(here, capsys, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(here / "data"))
    monkeypatch.setenv("HF_HOME", str(here / "hub"))
    assert main(["run", "experiment=table3", f"ledger={here}/ledger"]) == 2
    error = capsys.readouterr().err
    assert "cannot run:" in error
    assert "model qwen2-7b: needs a GPU and torch sees none" in error
    assert "the weights of Qwen/Qwen2-7B are not on this machine" in error
    assert "gpqa_main.csv: no such file" in error
    assert "make sweep-rank MODEL=toy" in error
    assert not (here / "runs" / "cells").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.rank=65"], "the largest rank for osora here is 64"),
        (["method=pissa", "method.rank=65"], "the largest rank for pissa here is 64"),
        (["model.target_modules=[q_prj]"], "'q_prj' matches no module. Linear layers here:"),
        (["model.target_modules=[embed]"], "'embed' matches no module"),
        (["model.target_modules=[embed_tokens]"], "model.embed_tokens is no linear layer"),
        (["method=lora", "method.peft.lora_alpa=3"], "lora_alpa"),
        (["method.peft._target_=peft.NoConfig"], "NoConfig"),
        (["model.path=./nowhere"], "model toy: no folder"),
        (["task.sources.0.rows=7"], "1500 rows, but the configuration says 7"),
        (["task.sources.0.path=toy.jsonl"], "toy.jsonl: no such file"),
        (["eval.datasets.0.questions=7"], "gsm8k-toy has 500 questions, expected 7"),
        (["eval.datasets.0.config=gsm8k_gem_1d7fe4"], "Did you mean 'gsm8k_gen_1d7fe4'"),
        (["eval.datasets.0.name=gsm"], "unknown dataset 'gsm'"),
        (["runs=/proc/nowhere"], "/proc/nowhere: cannot write there"),
        (["eval.datasets.0.limit=501"], "limit=501: the set has 500 questions"),
        (["task.sources.0.prompt='{no_column}'"], "line 1: the template asks for 'no_column'"),
        (["ledger="], "ledger: is empty, name a folder"),
        (["trainer.optimizer=adamv"], "unknown trainer.optimizer 'adamv'"),
        (["trainer.schedule=cosin"], "unknown trainer.schedule 'cosin'. Did you mean 'cosine'"),
        (["seed=x"], "osora-bench: seed=x: seed takes a whole number\n"),
        (["trainer.max_steps=abc"], "trainer.max_steps takes a whole number or null\n"),
        (["device=cuda"], "device=cuda, but torch sees no CUDA device"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(here, capsys, overrides, message, session):
    loads = session.workspace.loads
    assert cell_main(overrides) == 2
    assert message in capsys.readouterr().err
    assert session.workspace.loads == loads
    assert not (here / "runs" / "cells").exists()


def test_a_damaged_record_is_refused_before_anything_is_trained(make_cell, capsys, session):
    cell = make_cell()
    cell.ledger.mkdir(parents=True)
    cell.record.write_text("{")
    loads = session.workspace.loads
    assert cell_main(list(cell.overrides)) == 2
    assert "is damaged and left alone: move it away" in capsys.readouterr().err
    assert session.workspace.loads == loads
    assert cell.record.read_text() == "{"


def test_help_is_no_mistake(capsys):
    assert cell_main(["--help"]) == 0


def test_a_rank_above_the_layer_is_fine_where_the_method_allows_it(make_cell):
    from osora_bench.pipeline import preflight

    preflight.check_cells([make_cell("method=lora", "method.rank=200")])
    preflight.check_cells([make_cell("method=vera", "method.rank=200")])


def test_a_rank_is_refused_also_where_the_weights_are_missing(here, capsys):
    overrides = ["model=mistral-7b-instruct-v0.3", "method=osora", "method.rank=1025", "device=cpu"]
    assert cell_main(overrides) == 2
    told = capsys.readouterr().err
    assert "are not on this machine" in told
    assert "rank 1025 is above min(d_out, d_in) of" in told
    assert "the largest rank for osora here is 1024" in told


@pytest.mark.parametrize("how", ["workers=2", "workers=auto", "hydra/launcher=slurm", "retries=0"])
def test_a_plan_takes_what_its_run_takes(here, how, capsys):
    assert main(["plan", "experiment=demo"]) == 0
    expected = capsys.readouterr().out
    assert main(["plan", "experiment=demo", how]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("verb", "option"), [("run", "workers"), ("tables", "out"), ("params", "rank")]
)
def test_an_option_without_a_value_is_told(here, verb, option, capsys):
    assert main([verb, *(["experiment=demo"] if verb != "params" else []), option]) == 2
    assert f"{option}: needs a value, {option}=..." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("wrokers=2", "unknown key 'wrokers'. Did you mean 'workers'?"),
        ("workers=some", "workers=some: a whole number of at least 1 or auto"),
        ("trainer.max_steps=abc", "trainer.max_steps takes a whole number or null"),
        ("trainer.epochs=[1", "'trainer.epochs=[1' is not KEY=VALUE as Hydra reads it: "),
        ("lora", "'lora' is not KEY=VALUE"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_what_is_no_setting_is_told(here, verb, given, told, capsys):
    assert main([verb, "experiment=demo", given]) == 2
    assert told in capsys.readouterr().err


def test_scores_are_told_in_the_suites_order(make_cell):
    names = ["commonsenseqa-toy", "gsm8k-toy"]  # as a record sorts them
    made = {
        "scores": {name: {"accuracy": 50.0} for name in names},
        "training": None,
        "measured": {"seconds": {"train": 0.0, "evaluate": 1.0}},
    }
    told = messages.summary_of_cell(make_cell("method=none"), made)
    assert told.index("gsm8k-toy 50.00") < told.index("commonsenseqa-toy 50.00")


def test_a_jobs_failure_is_one_line():
    assert str(NoRecord("toy: it diverged", 1)) == "toy: it diverged"


def test_an_option_given_twice_is_told(here, capsys):
    assert main(["run", "experiment=demo", "workers=2", "workers=3"]) == 2
    assert "workers= is given twice" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_mistake(here):
    plan = f"{sys.executable} -m osora_bench.cli.main plan experiment=demo; echo $? >&2"
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["sh", "-c", f"({plan}) | true"], capture_output=True, text=True, check=True, env=plain
    )
    assert done.stderr.strip() == "141"


@pytest.mark.parametrize(
    ("call", "closed", "status"),
    [
        ("plan experiment=demo", ">&-", 0),
        ("data list", "<&- >&- 2>&-", 0),
        ("plan experiment=nowhere", ">&- 2>&-", 2),
        ("--help", ">&-", 0),
    ],
)
def test_outputs_that_are_closed_are_no_mistake(call, closed, status, here):
    given = f"{sys.executable} -m osora_bench.cli.main {call} {closed}"
    done = subprocess.run(["sh", "-c", given], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, "")


def test_what_is_printed_to_a_closed_output_is_in_no_file(here):
    code = (
        "from osora_bench.common.process import open_what_is_closed as o; o()\n"
        "import os; file = open('file', 'w'); print('lost', flush=True); os.write(1, b'lost')"
    )
    given = f'{sys.executable} -c "$1" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", given, "sh", code], check=True)
    assert (here / "file").read_text() == ""


@pytest.mark.parametrize("number", ["EINVAL", "ENOTSUP", "ENOSYS", "EIO", "ENOSPC"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_place_without_fsync_takes_whole_files(what, number, here, monkeypatch):
    whole = os.fsync

    def failing(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode) == (what == "folder"):
            raise OSError(getattr(errno, number), "not here")
        whole(handle)

    (here / "x").write_text("old")
    monkeypatch.setattr(os, "fsync", failing)
    if what == "file" and number in ("EIO", "ENOSPC"):  # what was to be written is not there
        with pytest.raises(OSError, match="not here"):
            write_whole(here / "x", "new")
        assert (here / "x").read_text() == "old"
        return
    write_whole(here / "x", "new")
    assert [p.name for p in here.iterdir()] == ["x"]
    assert (here / "x").read_text() == "new"


def test_a_folder_that_is_not_for_reading_takes_whole_files(here, monkeypatch):
    whole = os.open

    def refusing(path, *args, **kw):
        if path == here:
            raise PermissionError(errno.EACCES, "not for you")
        return whole(path, *args, **kw)

    monkeypatch.setattr(os, "open", refusing)
    write_whole(here / "x", "new")
    assert (here / "x").read_text() == "new"


def test_a_run_looks_at_the_code_before_anything_else(here, monkeypatch):
    known = []
    monkeypatch.setattr(
        run, "run_experiment", lambda *_, **__: known.append(code_state.code.cache_info())
    )
    code_state.code.cache_clear()
    main(["run", "experiment=demo"])
    assert known[0].currsize == 1


def test_code_that_changes_while_it_is_loaded_stops_the_start(monkeypatch):
    monkeypatch.setattr(code_state, "look", lambda: {"tree": "another", "diff": None})
    with pytest.raises(UserError, match="the code was changed while it was loaded"):
        session.__wrapped__()


@pytest.mark.parametrize(
    ("validation", "told"),
    [
        ({"rows": 8, "tokens": 16, "loss": 3.42317}, "held-out loss 3.4232"),
        (None, "  loss 1.250"),
    ],
)
def test_the_loss_that_is_told_is_the_one_that_settings_are_chosen_by(make_cell, validation, told):
    training = {"loss": [[1, 2.0], [2, 1.25]], "validation": validation}
    seconds = {"train": 1.0, "evaluate": 2.0}
    made = {"training": training, "measured": {"seconds": seconds}}
    cell = make_cell("eval=none", "task.validation_rows=8")
    line = messages.summary_of_cell(cell, {**made, "scores": {}})
    assert line.endswith(f"{told}  (train 1.0 s, evaluate 2.0 s)")
    assert line.count("loss") == 1


@pytest.mark.parametrize("verb", ["plan", "tables"])
def test_planning_and_tables_import_no_torch(here, verb):
    code = (
        "import sys; from osora_bench.cli.main import main; "
        f"status = main(['{verb}', 'experiment=demo']); "
        "heavy = {'torch', 'transformers', 'peft', 'opencompass'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
