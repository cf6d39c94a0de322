"""`osora-bench evaluate`: the scores of a cell again, from the folder that it left."""

import errno
import json
import os
import shutil
import signal

import pytest

from osora_bench.cli.evaluate import configuration, parsed, parser
from osora_bench.cli.main import main
from osora_bench.common.errors import UserError
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.evaluation.journal import Journal
from osora_bench.models.adapters import ORIGIN

LIMITS = ["eval.datasets.0.limit=20", "eval.datasets.1.limit=20"]


def evaluated(capsys, *arguments):
    """The scores that a call writes."""
    assert main(["evaluate", *arguments]) == 0
    folder = capsys.readouterr().out.rsplit("written to ", 1)[1].strip()
    with open(f"{folder}/scores.json", encoding="utf-8") as file:  # noqa: PTH123
        return json.load(file)["scores"]


@pytest.fixture(scope="module")
def trained(session, tmp_path_factory):
    """Records and folders: an adapter, one whose start changes the base, and a whole model."""
    from osora_bench.planning.cell import cell_of
    from osora_bench.planning.compose import compose, composer, resolve

    made = {}
    for method in ("osora", "pissa", "full"):
        place = tmp_path_factory.mktemp(method)
        chosen = [f"method={method}", f"ledger={place}/ledger", f"runs={place}/runs", *LIMITS]
        chosen.append("trainer.max_steps=8")
        with composer():
            cell = cell_of(resolve(compose(chosen, "test"), "test"), chosen)
        made[method] = (session.run(cell), cell.paths.adapter, place)
    return made


@pytest.mark.parametrize("method", ["osora", "pissa"])
def test_an_adapters_scores_are_those_of_its_record(method, trained, capsys):
    record, adapter, place = trained[method]
    found = evaluated(
        capsys, "--model", "toy", "--adapter", str(adapter), "--suite", "toy", "--limit", "20",
        f"runs={place}/runs",
    )  # fmt: skip
    assert found == record["scores"]
    assert any(score["unread"] < score["n"] for score in found.values())


def test_a_whole_models_scores_are_those_of_its_record(trained, capsys):
    record, folder, place = trained["full"]
    arguments = ["--model", str(folder), "--suite", "toy", "--limit", "20", f"runs={place}/runs"]
    assert evaluated(capsys, *arguments) == record["scores"]
    output = ["--output", str(place / "chosen"), "--sets", "gsm8k-toy"]
    assert list(evaluated(capsys, *arguments, *output)) == ["gsm8k-toy"]
    written = json.loads((place / "chosen" / "scores.json").read_text())
    assert [d["name"] for d in written["eval"]["datasets"]] == ["gsm8k-toy", "commonsenseqa-toy"]
    assert written["not_run"] == {
        "gsm8k-toy": "480 of 500 questions: limited",
        "commonsenseqa-toy": "left out by eval.without",
    }
    assert (place / "chosen" / "answers" / "gsm8k-toy.jsonl.gz").is_file()


def test_an_adapter_for_other_weights_is_refused(trained, tmp_path, capsys):
    _, adapter, _ = trained["osora"]
    _, other, place = trained["full"]
    arguments = ["--model", str(other), "--suite", "toy", "--limit", "2", f"runs={place}/runs"]
    assert main(["evaluate", *arguments, "--adapter", str(adapter)]) == 2
    assert "was trained on other weights than those of adapter" in capsys.readouterr().err
    # also without what this project writes beside an adapter: OSoRA knows its weights
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    (foreign / ORIGIN).unlink()
    assert main(["evaluate", *arguments, "--adapter", str(foreign)]) == 2
    assert "trained on other base weights" in capsys.readouterr().err


def test_an_adapter_of_another_shape_is_refused(tmp_path, capsys):
    import peft
    from transformers import AutoModelForCausalLM

    from osora_bench.common import paths

    base = AutoModelForCausalLM.from_pretrained(paths.resolve("pkg://osora_bench.toy/model"))
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0])
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "lora")
    place = tmp_path / "lora" / "adapter_config.json"
    told = json.loads(place.read_text())
    place.write_text(json.dumps({**told, "layers_to_transform": [1]}))
    arguments = ["--model", "toy", "--suite", "toy", "--limit", "2", f"runs={tmp_path}"]
    assert main(["evaluate", *arguments, "--adapter", str(tmp_path / "lora")]) == 2
    assert "4 tensors do not match" in capsys.readouterr().err
    place.write_text(json.dumps({**told, "r": 3}))
    assert main(["evaluate", *arguments, "--adapter", str(tmp_path / "lora")]) == 2
    assert "is not for toy" in capsys.readouterr().err


@pytest.fixture
def broken(trained, tmp_path):
    """Makes a copy of a trained folder with one file of it written anew, or removed."""

    def make(method, name, content):
        place = shutil.copytree(trained[method][1], tmp_path / "copy")
        (place / "chat_template.jinja").unlink(missing_ok=True)
        (place / name).unlink()
        if content is not None:
            (place / name).write_bytes(content)
        return str(place)

    return make


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("adapter_config.json", b"{}", "adapter_config.json: names no peft_type"),
        ("adapter_config.json", b"{", "adapter_config.json: is no JSON"),
        ("adapter_config.json", b"[]", "adapter_config.json: holds no settings by name"),
        ("adapter_model.safetensors", None, "lacks its tensors, adapter_model.safetensors or"),
        ("adapter_model.safetensors", b"\0" * 99, "its tensors cannot be read"),
        (ORIGIN, b"half", "osora_bench.json: is no JSON"),
    ],
)
def test_what_is_wrong_with_an_adapters_files_is_told(name, content, told, broken, capsys):
    folder = broken("pissa", name, content)
    arguments = ["--model", "toy", "--suite", "toy", "--limit", "2", f"runs={folder}/runs"]
    assert main(["evaluate", *arguments, "--adapter", folder]) == 2
    assert told in capsys.readouterr().err


def test_an_adapter_that_is_no_number_is_refused(trained, tmp_path, capsys):
    import safetensors.torch as st

    place = shutil.copytree(trained["pissa"][1], tmp_path / "copy")
    file = place / "adapter_model.safetensors"
    tensors = st.load_file(file)
    spoilt = next(iter(tensors))
    tensors[spoilt].view(-1)[0] = float("nan")
    st.save_file(tensors, file)
    arguments = ["--model", "toy", "--suite", "toy", "--limit", "2", f"runs={tmp_path}"]
    assert main(["evaluate", *arguments, "--adapter", str(place)]) == 2
    assert "1 tensors hold NaN or infinite numbers" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_is_refused(trained, tmp_path, capsys):
    place = shutil.copytree(trained["full"][1], tmp_path / "copy")
    for file in place.glob("tokenizer*"):
        file.unlink()
    arguments = ["--plain", "--suite", "toy", "--limit", "2", f"runs={tmp_path}"]
    assert main(["evaluate", "--model", str(place), *arguments]) == 2
    assert f"no tokenizer can be had of {place}: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_what_is_wrong_with_a_models_settings_is_told(name, broken, capsys):
    folder = broken("full", name, b"{")
    assert main(["evaluate", "--model", folder, "--suite", "toy", f"runs={folder}/runs"]) == 2
    assert f"{name}: is no JSON" in capsys.readouterr().err


def test_an_output_that_cannot_be_a_folder_is_told_before_a_model_is_loaded(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    output = ["--output", str(tmp_path / "file")]
    assert main(["evaluate", "--model", "toy", "--suite", "toy", *output]) == 2
    told = capsys.readouterr()
    assert f"{tmp_path}/file: cannot write there" in told.err
    assert "loading torch" not in told.out


@pytest.mark.parametrize("what", ["scores", "answers"])
def test_a_disk_that_is_full_in_the_end_loses_no_answer(what, trained, capsys, monkeypatch):
    from osora_bench.cli import evaluate as command
    from osora_bench.evaluation import evaluate

    _, _, place = trained["osora"]
    runs = place / f"full-{what}"
    arguments = ["evaluate", "--model", "toy", "--suite", "toy", "--limit", "5", f"runs={runs}"]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if what == "scores":
            patch.setattr(command, "write_whole", full)
        else:
            patch.setattr(evaluate, "write_answers", full)
        assert main(arguments) == 2
    assert "No space left on device); the answers so far are kept" in capsys.readouterr().err
    (journal,) = runs.rglob("journal.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + (10 if what == "scores" else 5)
    asked = []
    whole = InMemoryModel._continue
    monkeypatch.setattr(
        InMemoryModel, "_continue", lambda self, p, *r: asked.append(len(p)) or whole(self, p, *r)
    )
    assert main(arguments) == 0
    assert asked == ([] if what == "scores" else [5])  # the second set was not asked then
    assert not journal.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--model toyy --suite toy", "unknown model 'toyy'. Did you mean 'toy'"),
        ("--model toy --suite toi", "unknown eval 'toi'. Did you mean 'toy'"),
        ("--model toy --suite toy(b)", "unknown eval 'toy(b)'. Did you mean 'toy'"),
        ("--model toy --suite toy --dtype a(b", "unknown model.dtype 'a(b'"),
        ("--model toy --suite toy --backend {a", "unknown eval.backend '{a'"),
        ("--model toy --suite toy --sets runs=/tmp/x", "--sets: name a set of the suite"),
        ("--model toy --suite toy --sets gsm8k", "Did you mean 'gsm8k-toy'"),
        ("--model toy --suite toy --adapter /tmp/nowhere", "no folder with an adapter_config.json"),
        ("--model toy --suite toy --merge", "--merge has no effect without --adapter"),
        ("--model toy --suite toy --limit 0", "--limit 0: must be at least 1"),
        ("--model toy --suite toy seed", "seed: neither an option nor KEY=VALUE"),
        ("--model toy --suite toy --backend vlm", "unknown eval.backend 'vlm'"),
        ("--model toy --suite toy --backend vllm", "vLLM is not installed here"),
        ("--model toy --suite toy eval.batch=3", "unknown key 'eval.batch'"),
        ("--model toy --suite toy eval.without=[gsm8k]", "Did you mean 'gsm8k-toy'"),
        ("--model toy --suite toy eval.without=[]", "eval.without=[]: name a set, or leave it"),
        ("--model toy --suite gsm8k eval.without=[gsm8k]", "leaves no set to score"),
        ("--model toy --suite gsm8k", "`osora-bench data fetch gsm8k` gets it"),
    ],
)
def test_mistakes(arguments, told, capsys, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", "/nowhere")
    assert main(["evaluate", *arguments.split()]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "called",
    ["lr=0.001,method=lora", "a(b)", "josé", "1e-3", "null", "${seed}", "it's [so] \\", "a b: {c}"],
)
def test_a_models_folder_may_have_any_name(called, tmp_path):
    folder = tmp_path / called
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    cfg = configuration(parsed(["--model", str(folder), "--suite", "toy"]))
    assert (cfg.model.path, cfg.model.name, cfg.model.label) == (str(folder), called, called)


def test_the_folder_that_one_is_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    cfg = configuration(parsed(["--model", ".", "--suite", "toy"]))
    assert (cfg.model.path, cfg.model.name) == (str(tmp_path), tmp_path.name)


@pytest.mark.parametrize(
    "given",
    [
        ["--sets", "gsm8k-toy", "runs=x"],
        ["--sets", "gsm8k-toy", "runs=y", "runs=x", "--limit", "3"],
        ["runs=x", "--sets", "gsm8k-toy"],
    ],
)
def test_sets_leave_the_overrides_that_follow_them(given):
    cfg = configuration(parsed(["--model", "toy", "--suite", "toy", *given]))
    assert (cfg.runs, [d.name for d in cfg.eval.chosen]) == ("x", ["gsm8k-toy"])


def test_an_output_belongs_to_one_evaluation(trained, tmp_path, capsys):
    _, adapter, _ = trained["osora"]
    _, other, _ = trained["full"]
    given = ["--suite", "toy", "--limit", "2", f"runs={tmp_path}", "--output", f"{tmp_path}/out"]
    first = evaluated(capsys, "--model", "toy", *given)
    assert evaluated(capsys, "--model", "toy", *given, "eval.batch_size=1") == first
    for arguments, told in (
        (["--model", "toy", *given, "--limit", "3"], "(another suite, sets or questions)"),
        (["--model", "toy", *given, "--sets", "gsm8k-toy"], "(another suite, sets or questions)"),
        (["--model", "toy", *given, "--plain"], "(another chat template)"),
        (["--model", "toy", *given, "--adapter", str(adapter)], "(another adapter)"),
        (["--model", str(other), *given], "(another model"),
    ):
        assert main(["evaluate", *arguments]) == 2
        said = capsys.readouterr()
        assert "holds the answers of another evaluation" in said.err
        assert told in said.err
        assert "loading torch" not in said.out
    scores = tmp_path / "out" / "scores.json"
    assert json.loads(scores.read_text())["scores"] == first


def test_an_output_that_does_not_say_whose_it_is_and_one_of_other_weights(tmp_path, capsys):
    (tmp_path / "answers").mkdir()
    given = ["evaluate", "--model", "toy", "--suite", "toy", "--limit", "2", f"runs={tmp_path}"]
    assert main([*given, "--output", str(tmp_path)]) == 2
    assert "holds the answers of another evaluation" in capsys.readouterr().err
    place = tmp_path / "out"
    assert main([*given, "--output", str(place)]) == 0
    assert main([*given, "--output", str(place), "--dtype", "bfloat16"]) == 2
    assert "(another set of weights)" in capsys.readouterr().err


def test_two_sets_of_one_name_are_refused():
    args = parser().parse_args(["--model=toy", "--suite=toy", "eval.datasets.1.name=gsm8k-toy"])
    with pytest.raises(UserError, match="two sets are called 'gsm8k-toy'"):
        configuration(args)


def test_every_file_that_a_suite_lacks_is_told_and_how_to_do_without(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path))
    (tmp_path / "math").mkdir()
    (tmp_path / "math" / "math.json").write_text("{}")
    assert main(["evaluate", "--model", "toy", "--suite", "math"]) == 2
    told = capsys.readouterr().err
    assert all(
        f"gsm8k: {tmp_path}/gsm8k/{name}.jsonl: no such" in told for name in ("train", "test")
    )
    assert "eval.without=[gsm8k] scores the others" in told
    assert main(["evaluate", "--model", "toy", "--suite", "math", "eval.without=[gsm8k]"]) == 2
    assert "math has 0 questions, expected 5000" in capsys.readouterr().err


def test_a_damaged_file_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    for name in ("train", "test"):
        (tmp_path / "gsm8k" / f"{name}.jsonl").write_text('{"question": "half a l')
    assert main(["evaluate", "--model", "toy", "--suite", "gsm8k"]) == 2
    told = capsys.readouterr().err
    assert f"gsm8k: OpenCompass cannot read {tmp_path}/gsm8k/train.jsonl" in told
    assert "`osora-bench data verify gsm8k` says what is wrong" in told


def test_a_check_that_would_find_nothing_is_not_advised(tmp_path, monkeypatch):
    from osora_bench.benchdata.sets import checking, registry

    monkeypatch.setenv("OSORA_DATA", str(tmp_path))
    files = [f.path for f in registry()["gsm8k"].files]
    (tmp_path / "mine.jsonl").write_text("half a l")
    assert checking(["mine.jsonl"]) == ""
    assert checking(["pkg://osora_bench.toy/data/train.jsonl"]) == ""
    assert checking(["mine.jsonl", *files]).startswith("; `osora-bench data verify gsm8k` says")


def test_files_that_are_right_are_not_to_be_verified(tmp_path, monkeypatch):
    from osora_bench.benchdata import sets

    monkeypatch.setattr(sets, "examine", lambda file: sets.Finding("right", "right"))
    assert sets.checking([f.path for f in sets.registry()["gsm8k"].files]) == ""


def test_help_is_the_commands_own(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--help"])
    assert ended.value.code == 0
    assert "--adapter" in capsys.readouterr().out


def test_an_evaluation_that_is_stopped_says_so_and_goes_on(trained, capsys, monkeypatch):
    _, _, place = trained["osora"]
    arguments = [
        "evaluate",
        "--model",
        "toy",
        "--suite",
        "toy",
        "--limit",
        "9",
        f"runs={place}/stop",
    ]
    put = Journal.put

    def interrupting(self, question, answer):
        if len(self._answers) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        put(self, question, answer)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", interrupting)
        assert main(arguments) == 128 + signal.SIGTERM
    assert "the next start goes on from it" in capsys.readouterr().out
    (journal,) = (place / "stop").rglob("journal.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + 5
    asked = []
    whole = InMemoryModel._continue
    monkeypatch.setattr(
        InMemoryModel, "_continue", lambda self, p, *r: asked.append(len(p)) or whole(self, p, *r)
    )
    assert main(arguments) == 0
    assert sum(asked) == 18 - 5
