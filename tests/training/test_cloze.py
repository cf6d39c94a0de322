"""Rows with the answer written out: their tokens are those whose perplexity is asked for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.evaluation import evaluate, suites
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.planning.config import Config, KeyConfig, SourceConfig, TaskConfig
from osora_bench.training import data
from tests.evaluation.test_judging import gpt2  # noqa: F401

REAL = paths.data_root()
SETS = ("siqa", "piqa", "openbookqa", "commonsenseqa")
CHOICES = [
    {"label": "ABCDE"[i], "text": text} for i, text in enumerate(("a", "b c", "d", "e", "f"))
]
ROWS = {
    "siqa": [
        {"context": "Kim ran.", "question": "Why?",
         "answerA": "to win", "answerB": "x", "answerC": "y z"}
    ],
    "piqa": [{"id": "1", "goal": "To open it, you can", "sol1": "Turn the lid.", "sol2": "Pull"}],
    "openbookqa": [{"question": {"stem": "Frogs are", "choices": CHOICES[:4]}, "answerKey": "B"}],
    "commonsenseqa": [{"question": {"stem": "Where?", "choices": CHOICES}, "answerKey": "E"}],
}  # fmt: skip
LABELS = {"siqa": "3\n", "piqa": "0\n"}
SCORED_FILE = {
    "siqa": "siqa/dev.jsonl",
    "piqa": "piqa/dev.jsonl",
    "openbookqa": "openbookqa/Main/test.jsonl",
    "commonsenseqa": "commonsenseqa/dev_rand_split.jsonl",
}
FEW = 40


def configuration(name: str, folder: Path) -> Config:
    overrides = [f"task={name}-cloze", f"runs={folder}", "model=smollm2-135m"]
    with composer():
        return resolve(compose(overrides, "test"), "test")


def files_of(name: str, rows: list[str], labels: str | None) -> dict[str, str]:
    """A set's training files, and the same rows where its questions are looked for."""
    (source,) = configuration(name, Path()).task.sources
    made = dict.fromkeys((source.path, SCORED_FILE[name]), "".join(rows))
    if labels is not None:
        scored = SCORED_FILE[name].replace(".jsonl", "-labels.lst")
        made |= dict.fromkeys((source.labels, scored), labels)
    return made


@pytest.fixture(scope="module", params=["toy", "smollm2-135m"])
def tokenizer(request):
    place = {"toy": "pkg://osora_bench.toy/model", "smollm2-135m": "./models/smollm2-135m"}
    folder = paths.resolve(place[request.param])
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def both_forms(gpt2, tokenizer, tmp_path, monkeypatch):  # noqa: F811
    """The tokens of a set's training rows, and of its questions' right texts."""

    def made(name, files, count):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
        monkeypatch.setenv("OSORA_DATA", str(tmp_path))
        cfg = configuration(name, tmp_path / "runs")
        cfg.task.sources[0].rows = cfg.eval.datasets[0].questions = count
        trained = data.tokenised(cfg, tokenizer)
        (config,) = suites.prepare(cfg.eval, tmp_path / "runs").values()
        asked = []
        monkeypatch.setattr(
            InMemoryModel,
            "_perplexities",
            lambda self, texts: [float(asked.append(text) or 0) for text, _ in texts],
        )
        with evaluate._work(tmp_path / "work") as work:
            model = InMemoryModel(gpt2[0], tokenizer, chat=False, label="test")
            told = evaluate._run(model, config, 16, work)
        labels = list(config.infer_cfg.prompt_template.template)
        texts = {label: asked[i * count : (i + 1) * count] for i, label in enumerate(labels)}
        right = [texts[told[str(i)]["gold"]][i] for i in range(count)]
        return trained, [model._encode(text, followed=False) for text in right]

    return made


@pytest.mark.parametrize("name", SETS)
def test_a_training_row_is_token_for_token_the_text_that_is_scored(name, both_forms, tokenizer):
    rows = [json.dumps(row) + "\n" for row in ROWS[name]]
    files = files_of(name, rows, LABELS.get(name))
    trained, right = both_forms(name, files, 1)
    (row,) = trained.rows
    assert [row["input_ids"]] == right
    learnt = [label for label in row["labels"] if label != data.IGNORED_LABEL]
    assert row["input_ids"][-len(learnt) :] == learnt
    text = {"siqa": "y z", "piqa": "Turn the lid.", "openbookqa": "b c", "commonsenseqa": "f"}
    if tokenizer.convert_tokens_to_ids("lid") != tokenizer.unk_token_id:
        assert tokenizer.decode(learnt).strip() == text[name]


@pytest.mark.real_data
@pytest.mark.parametrize("name", SETS)
def test_so_are_real_rows(name, both_forms, tmp_path):
    (source,) = configuration(name, tmp_path).task.sources
    if not (REAL / source.path).is_file():
        pytest.skip(f"OSORA_DATA has no {source.path}")
    head = [
        "".join((REAL / file).read_text(encoding="utf-8").splitlines(keepends=True)[:FEW])
        for file in (source.path, source.labels)
        if file is not None
    ]
    files = files_of(name, [head[0]], head[1] if source.labels else None)
    trained, right = both_forms(name, files, FEW)
    assert [row["input_ids"] for row in trained.rows] == right


def test_a_set_alone_is_as_in_the_four_together(tmp_path):
    together = configuration("commonsense", tmp_path)
    alone = [configuration(name, tmp_path) for name in SETS]
    assert [cfg.task.sources[0] for cfg in alone] == together.task.sources
    assert [cfg.eval.datasets[0] for cfg in alone] == together.eval.datasets
    assert all(cfg.trainer == together.trainer for cfg in alone)
    assert not together.chat
    assert together.model.chat


def keyed(tmp_path: Path, **more) -> TaskConfig:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "1", "x": "one", "y": "two"}\n' * 2)
    key = KeyConfig("label", {"0": "{x}", "1": "{y}"})
    source = SourceConfig(
        path=str(rows), rows=2, prompt="{q}", response="{answer}", key=key,
        labels=str(tmp_path / "labels.lst"),
    )  # fmt: skip
    return TaskConfig(sources=[replace(source, **more)], max_rows=None)


def test_labels_of_a_file_of_their_own_choose_the_answer(tmp_path):
    task = keyed(tmp_path)
    (tmp_path / "labels.lst").write_text("1\n0\n")
    assert [pair.response for pair in data.dialogues(task, 0)] == ["two", "one"]


@pytest.mark.parametrize(
    ("labels", "more", "told"),
    [
        (None, {}, r"labels.lst: no such file. OSORA_DATA names"),
        ("1\n", {}, r"labels.lst: 1 labels, but .*rows.jsonl has 2 rows"),
        ("1\n\n", {}, r"labels.lst, line 2: no label"),
        ("1\n7\n", {}, r"rows.jsonl, line 2: label is '7'; there are answers for 0, 1"),
        ("1\n1\n", {"key": KeyConfig("lable", {"1": "{y}"})}, r"unknown column of the key 'lable'"),
        ("1\n1\n", {"key": KeyConfig("label", {"1": "{z}"})}, r"the template asks for 'z'"),
        ("1\n1\n", {"key": KeyConfig("label", {"1": "{0}"})}, r"key.answers.1: .* is no template"),
        ("1\n1\n", {"key": None}, r"the template asks for 'answer'"),
    ],
)
def test_labels_and_keys_that_do_not_fit_are_told(labels, more, told, tmp_path):
    if labels is not None:
        (tmp_path / "labels.lst").write_text(labels)
    with pytest.raises(UserError, match=told):
        data.dialogues(keyed(tmp_path, **more), 0)


def test_a_row_with_a_label_of_its_own_and_a_file_of_labels_is_refused(tmp_path):
    task = keyed(tmp_path)
    (tmp_path / "labels.lst").write_text("1\n1\n")
    (tmp_path / "rows.jsonl").write_text('{"q": "1", "x": "", "y": "", "label": 1}\n' * 2)
    with pytest.raises(UserError, match=r"row 1: has a column 'label' of its own beside"):
        data.dialogues(task, 0)


def counted(tmp_path: Path, sizes: list[int], **more) -> TaskConfig:
    sources = []
    for index, size in enumerate(sizes):
        rows = tmp_path / f"{index}.jsonl"
        rows.write_text("".join(f'{{"q": "{index}", "a": "{i}"}}\n' for i in range(size)))
        sources.append(SourceConfig(path=str(rows), rows=size, prompt="{q}", response="{a}"))
    return TaskConfig(sources=sources, **{"max_rows": None, "even": True, **more})


def shares(pairs) -> list[int]:
    return [sum(pair.source == source for pair in pairs) for source in range(3)]


@pytest.mark.parametrize(
    ("rows", "expected"), [(6, [2, 2, 2]), (30, [10, 10, 10]), (100, [20, 10, 70]), (7, [2, 2, 3])]
)
def test_rows_are_drawn_evenly_over_the_sources(rows, expected, tmp_path):
    task = counted(tmp_path, [20, 10, 100], max_rows=rows)
    drawn = data.dialogues(task, 0)
    assert shares(drawn) == expected
    assert len(set(drawn)) == len(drawn) == rows
    assert data.dialogues(task, 0) == drawn != data.dialogues(task, 1)
    assert shares(drawn[: rows // 2]) != [rows // 2, 0, 0]  # not one source after the other


def test_so_are_held_out_rows_and_no_seed_trains_on_them(tmp_path):
    task = counted(tmp_path, [20, 10, 100], max_rows=12, validation_rows=9)
    held_out = data.validation_dialogues(task)
    assert shares(held_out) == [3, 3, 3]
    for seed in range(5):
        drawn = data.dialogues(task, seed)
        assert shares(drawn) == [4, 4, 4]
        assert not {*drawn} & {*held_out}
