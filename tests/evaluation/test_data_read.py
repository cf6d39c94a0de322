"""What is scored is what was fingerprinted, whatever the environment says."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from mmengine.config import ConfigDict

from osora_bench.benchdata.made_up import ROWS, write_data
from osora_bench.common.errors import UserError
from osora_bench.evaluation import suites, tasks
from osora_bench.pipeline.session import Session
from osora_bench.planning.compose import compose, composer, resolve

ARC = "ARC/ARC-c/ARC-Challenge-Dev.jsonl"
READ = f"""
import sys
from pathlib import Path
from osora_bench.evaluation import suites, tasks
from tests.evaluation.test_data_read import arc
runs = Path(sys.argv[1])
config = suites.prepare(arc(runs), runs)["ARC-c"]
print(ascii([row["question"] for row in tasks.build_dataset(config).test][0]))
print(ascii(Path({__file__!r}).parent.joinpath(sys.argv[2]).open().read()))
"""


def arc(runs):
    """The commonsense suite, of which ARC-c alone is asked, on made-up rows."""
    chosen = ["eval=commonsense", f"runs={runs}"]
    with composer():
        suite = resolve(compose(chosen, "test"), "test").eval
    kept = [replace(d, questions=ROWS) for d in suite.datasets if d.name == "ARC-c"]
    return replace(suite, datasets=kept)


def with_question(root, text):
    write_data(root)
    rows = [json.loads(line) for line in (root / ARC).read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["question"]["stem"] = text
    told = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (root / ARC).write_text(told, encoding="utf-8")


def asked(config):
    return {row["question"] for row in tasks.build_dataset(config).test}


def test_starts_on_different_data_that_share_their_runs_read_their_own(tmp_path, monkeypatch):
    """The second start's data come between the first one's start and its reading."""
    folders = []
    for name in ("one", "two"):
        with_question(tmp_path / name, f"Which is {name}?")
        monkeypatch.setenv("OSORA_DATA", str(tmp_path / name))
        tasks.point_at_data(tmp_path / "runs")
        folders.append(os.environ["COMPASS_DATA_CACHE"])
    for name, folder in zip(("one", "two"), folders, strict=True):
        with open(f"{folder}/data/{ARC}", encoding="utf-8") as stream:  # noqa: PTH123
            assert f"Which is {name}?" in stream.readline()
        monkeypatch.setenv("OSORA_DATA", str(tmp_path / name))
        made = suites.prepare(arc(tmp_path / "runs"), tmp_path / "runs")
        assert asked(made["ARC-c"]) == {f"Which is {name}?"}


def replaced(place, text):
    """Another file of the same path, size and time."""
    before = place.stat()
    assert len(text.encode()) == before.st_size
    place.write_text(text, encoding="utf-8")
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_replaced_by_one_of_the_same_time_is_read_anew(tmp_path, monkeypatch):
    """By OpenCompass's loaders, in one process."""
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))
    for text in ("Which is 5?", "Which is 6?"):
        if text == "Which is 5?":
            with_question(tmp_path / "data", text)
        else:
            place = tmp_path / "data" / ARC
            replaced(place, place.read_text(encoding="utf-8").replace("is 5?", "is 6?"))
        made = suites.prepare(arc(tmp_path), tmp_path)
        assert asked(made["ARC-c"]) == {text}


def test_a_session_asks_what_lies_there_now(make_cell, tmp_path, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))
    with_question(tmp_path / "data", "Which is 5?")
    session, place = Session(), tmp_path / "data" / ARC
    found = []
    for _ in range(2):
        cell = make_cell("method=none", "eval=commonsense")
        cell.config.eval.datasets = arc(tmp_path).datasets
        found.append(asked(session.sets(cell)["ARC-c"]))
        replaced(place, place.read_text(encoding="utf-8").replace("is 5?", "is 6?"))
    assert found == [{"Which is 5?"}, {"Which is 6?"}]


@pytest.mark.parametrize(("kind", "suffix"), [("json", "jsonl"), ("text", "txt")])
def test_hugging_faces_cache_gives_no_rows_of_before(tmp_path, kind, suffix):
    place = tmp_path / f"rows.{suffix}"
    place.write_text('{"text": "old"}\n', encoding="utf-8")
    config = ConfigDict(
        abbr="rows", type="HFDataset", path=kind, data_files=str(place),
        reader_cfg={"input_columns": ["text"], "output_column": "text",
                    "train_split": "train", "test_split": "train"},
    )  # fmt: skip
    found = []
    for text in ("old", "new"):
        replaced(place, f'{{"text": "{text}"}}\n')
        tasks._built.clear()
        found.append(tasks.build_dataset(config).test[0]["text"])
    assert "old" in found[0]
    assert "new" in found[1]


@pytest.mark.parametrize("source", ["ModelScope", "HF"])
def test_the_environment_sends_opencompass_nowhere_else(source, tmp_path, monkeypatch):
    monkeypatch.setenv("DATASET_SOURCE", source)
    monkeypatch.setenv("COMPASS_DATA_CACHE", "/nowhere")
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))
    with_question(tmp_path / "data", f"From {source}?")
    made = suites.prepare(arc(tmp_path), tmp_path)
    assert asked(made["ARC-c"]) == {f"From {source}?"}


def test_what_is_not_there_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="OpenCompass cannot read.*is not downloaded"):
        suites.prepare(arc(tmp_path), tmp_path)
    assert not list((tmp_path / "data").iterdir())


def latin(folder):
    """The environment of a locale whose encoding is ISO-8859-1, made here."""
    if shutil.which("localedef") is None:
        pytest.skip("no localedef")
    folder.mkdir()
    make = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")]
    if subprocess.run(make, check=False, capture_output=True).returncode > 1:
        pytest.skip("localedef makes no locale here")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ISO-8859-1", "C", "POSIX"])
def test_files_are_read_as_utf8_in_every_locale(kind, tmp_path):
    with_question(tmp_path / "data", "Is 37 °C, “warm” in São Tomé?")
    own = {"LC_ALL": kind} if kind in ("C", "POSIX") else latin(tmp_path / "locales")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    env |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OSORA_DATA": str(tmp_path / "data")}
    place = tmp_path / "note"
    place.write_text("ü", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), str(place)],
        env=env | own, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [ascii("Is 37 °C, “warm” in São Tomé?"), ascii("ü")]
