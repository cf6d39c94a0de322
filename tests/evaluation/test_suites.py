"""Suites say of OpenCompass's configurations what these say of themselves; sizes are the data's."""

import gzip
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from osora_bench.benchdata.made_up import ROWS, write_data
from osora_bench.cli.main import main
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.evaluation import suites
from osora_bench.pipeline import preflight
from osora_bench.pipeline.attempt import attempt
from osora_bench.planning.compose import compose, composer, group_choices, resolve
from osora_bench.planning.config import Config, DatasetConfig, EvalConfig, TaskConfig
from osora_bench.training import data
from tests.evaluation.scoring import scored

REAL = paths.data_root()
OWN_SETS = ("toy", "arithmetic", "none")
SUITES = [n for n in group_choices("eval") if not n.startswith(OWN_SETS)]
BY_PERPLEXITY = ("-ppl", "-cloze", "-transfer")


def composed(*overrides: str) -> Config:
    with composer():
        return resolve(compose([*overrides], "test"), "test")


def suite(name: str) -> EvalConfig:
    return composed(f"eval={name}").eval


def task(name: str) -> TaskConfig:
    return composed(f"task={name}", "eval=toy", "trainer=paper").task


def asking(suite: EvalConfig, folder: Path) -> Config:
    """A configuration that asks a chat model the questions of a suite."""
    cfg = composed("eval=toy", f"runs={folder}")
    return replace(cfg, eval=suite)


def shots(config) -> int:
    """Worked examples in a dataset's prompt: turns of the model's, or fixed retrieved rows."""
    fixed = config.infer_cfg.retriever.get("fix_id_list", [])
    if fixed or suites.by_perplexity(config):  # by perplexity: one template for each answer
        return len(fixed)
    turns = config.infer_cfg.prompt_template.template["round"]
    return sum(turn["role"] == "BOT" for turn in turns)


@pytest.mark.parametrize("name", SUITES)
def test_shots_and_answer_lengths_are_those_of_the_configuration(name):
    for dataset in suite(name).datasets:
        config = suites.dataset_config(dataset)
        assert shots(config) == dataset.shots, dataset.name
        length = config.infer_cfg.inferencer.get("max_out_len", suite(name).max_out_len)
        assert length == 512, "the authors' setting"
        assert suites.by_perplexity(config) == name.endswith(BY_PERPLEXITY)
        assert ("gen" in dataset.config) != name.endswith(BY_PERPLEXITY)


@pytest.mark.parametrize("name", [*SUITES, "toy", "arithmetic"])
def test_what_of_a_question_is_its_own_is_known_of_every_suite(name, monkeypatch):
    """Neither options nor passages, whatever a configuration calls them: of a set made of its
    columns' names."""
    expected = {
        "siqa": {"context", "question"}, "piqa": {"goal"}, "hellaswag": {"ctx"},
        "winogrande": {"prompt"}, "openbookqa": {"question_stem"}, "math": {"problem"},
    }  # fmt: skip
    for dataset in suite(name).datasets:
        config = suites.dataset_config(dataset)
        columns = config.reader_cfg.input_columns
        rows = SimpleNamespace(test=[{column: column for column in columns}])
        monkeypatch.setattr(suites, "build_dataset", lambda _, rows=rows: rows)
        (question,) = suites.questions(config)
        if "winogrande_ll" in dataset.config:
            assert question.wordings == (("opt1",), ("opt2",))
            continue
        (kind,) = [k for k in expected if dataset.name.lower().startswith(k)] or [None]
        assert [set(wording) for wording in question.wordings] == [expected.get(kind, {"question"})]
        assert {*question.wordings[0], *question.beside} == {*columns}


def test_maths_two_configurations_differ_in_the_scoring_only():
    older, newer = (
        suites.dataset_config(suite(name).datasets[0]) for name in ("math", "math-verify")
    )
    assert older.infer_cfg.prompt_template == newer.infer_cfg.prompt_template
    assert older.eval_cfg.evaluator.type is not newer.eval_cfg.evaluator.type


def test_the_clean_gpqa_rows_are_the_published_ones_without_diamond(tmp_path, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))
    write_data(tmp_path / "data")
    rows = {}
    for name in ("gpqa", "gpqa-clean"):
        sources = task(name).sources
        assert [s.rows for s in sources] == [448, 546]
        for source in sources:
            source.rows = ROWS
            if source.exclude is not None:
                assert source.exclude.rows == 198
                source.exclude.rows = ROWS // 2
        rows[name] = [{r["Record ID"] for _, r in data.source_rows(s)} for s in sources]
    diamond = {f"rec{i}" for i in range(ROWS // 2)}
    assert [leaky - diamond for leaky in rows["gpqa"]] == rows["gpqa-clean"]
    assert all(diamond <= leaky for leaky in rows["gpqa"])


def test_the_prompts_of_training_are_those_of_the_evaluation():
    """The model is trained on the words that OpenCompass asks with."""
    row = {"query": "Q?", "response": "R"}
    source = task("math").sources[0]
    asked = suites.dataset_config(suite("gsm8k").datasets[0])
    last = asked.infer_cfg.prompt_template.template["round"][-1]["prompt"]
    assert source.prompt.format(**row) == last.format(question="Q?")
    assert source.first == 100_000
    assert "{Question}" in task("gpqa").sources[0].prompt
    gpqa = suites.dataset_config(suite("gpqa").datasets[0])
    asked = gpqa.infer_cfg.prompt_template.template["round"][-1]["prompt"]
    assert task("gpqa").sources[0].prompt == asked.replace("{question}", "{Question}")


def written(files: dict[str, str], root: Path, monkeypatch) -> None:
    """Make-believe data files in a folder that OSORA_DATA names."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("OSORA_DATA", str(root))


def test_any_configuration_that_opencompass_ships_can_be_named(tiny, tmp_path, monkeypatch):
    """Two that no suite of ours has, by generation and by perplexity, one with another metric."""
    row = {"article": "1, 2.", "question": "What is next?", "options": [*"3456"], "answer": "A"}
    race = {f"race/{s}/{n}.jsonl": json.dumps(row) for s in ("test", "validation")
            for n in ("middle", "high")}  # fmt: skip
    trivia = {f"triviaqa/trivia-{s}.qa.csv": "What is 1\t['1']\n" * 2 for s in ("dev", "test")}
    written(race | trivia, tmp_path / "data", monkeypatch)
    sets = [
        {"name": "race-middle", "config": "race_gen_69ee4f", "questions": 1},
        {"name": "middle", "abbr": "race-middle", "config": "race_ppl_a138cd", "questions": 1},
        {"name": "triviaqa", "config": "triviaqa_gen_2121ce", "questions": 2, "metric": "score"},
    ]
    chosen = replace(
        suite("toy"), datasets=[DatasetConfig(files=[], **s) for s in sets], max_out_len=4
    )
    cfg = asking(chosen, tmp_path)
    scores = scored(*tiny, cfg, tmp_path / "evaluation", "test")
    assert {name: score.n for name, score in scores.items()} == {
        "race-middle": 1, "middle": 1, "triviaqa": 2,
    }  # fmt: skip
    chosen.datasets[0].abbr = "race-mid"
    with pytest.raises(UserError, match="Did you mean 'race-middle' or 'race-high'?"):
        scored(*tiny, cfg, tmp_path / "evaluation", "test")
    chosen.datasets[0].abbr, chosen.datasets[0].config = None, "race_gen_69ee4"
    with pytest.raises(UserError, match="Did you mean 'race_gen_69ee4f'") as told:
        scored(*tiny, cfg, tmp_path / "evaluation", "test")
    assert len(str(told.value)) < 600  # the nearest, not every one of a thousand


def test_gpqas_questions_stay_out_of_records(make_cell, tmp_path, monkeypatch):
    """Trained on the published rows and scored, with an answer that the model could repeat."""
    secrets = ["Whither zorbles?", "Northward", "Sideways", "Underground", "Upward", "By zorblance"]
    columns = ["Record ID", *"abcdef", "Question", "Correct Answer",
               *(f"Incorrect Answer {i}" for i in (1, 2, 3)), "Explanation"]  # fmt: skip
    text = f"{','.join(columns)}\n" + "".join(
        f"rec{i},,,,,,,{','.join(secrets)}\n" for i in range(4)
    )
    files = {f"gpqa/gpqa_{name}.csv": text for name in ("main", "extended", "diamond")}
    written(files, tmp_path / "data", monkeypatch)
    rows = ["task.sources.0.rows=4", "task.sources.1.rows=4", "eval.datasets.0.limit=4"]
    cell = make_cell(
        "task=gpqa", "trainer.max_steps=1", "trainer.batch_size=2", "trainer.micro_batch_size=2",
        "trainer.precision=float32", "method=lora", *rows, "eval.max_out_len=4",
    )  # fmt: skip
    preflight.check_cells([cell])
    assert attempt(cell) == "done"
    with gzip.open(cell.paths.evaluation / "answers" / "GPQA_diamond.jsonl.gz", "rt") as answers:
        assert answers.read().count(secrets[0]) == 4
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and "data" not in p.parts[-3:]]
    assert cell.record in kept
    for place in kept:
        content = place.read_bytes()
        assert not any(secret.encode() in content for secret in secrets), place


def test_gpqas_answers_are_not_written_where_git_would_commit_them(tmp_path, monkeypatch, capsys):
    written({"gpqa/gpqa_diamond.csv": "made up\n"}, tmp_path / "data", monkeypatch)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    output = ["--output", str(tmp_path / "answers")]
    assert main(["evaluate", "--model", "toy", "--suite", "gpqa", *output]) == 2
    assert "is inside a git repository that does not ignore it" in capsys.readouterr().err


def missing(name: str) -> list[str]:
    return [f for d in suite(name).datasets for f in d.files if not (REAL / f).is_file()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model with a long context, and a tokenizer that keeps prompts short."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from osora_bench.models.made_up import write_model

    architecture = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64}
    folder = tmp_path_factory.mktemp("tiny")
    write_model({**architecture, **heads}, folder)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def evaluated(name, tiny, folder, questions):
    """Every set of a suite, a few questions of it, through OpenCompass."""
    limited = suite(name)
    for dataset in limited.datasets:
        dataset.limit, dataset.max_out_len = questions, 4
    cfg = asking(limited, folder)
    return limited, scored(*tiny, cfg, folder / "evaluation", name)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_runs_on_made_up_files_of_its_sets_formats(name, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))
    write_data(tmp_path / "data")
    limited, scores = evaluated(name, tiny, tmp_path, 3)
    assert list(scores) == [d.name for d in limited.datasets]
    assert all((score.n, score.too_long) == (3, 0) for score in scores.values())


@pytest.mark.long
@pytest.mark.real_data
@pytest.mark.parametrize("name", SUITES)
def test_every_suite_runs_on_the_real_files(name, tiny, tmp_path):
    if missing(name):
        pytest.skip(f"OSORA_DATA has no {', '.join(missing(name))}")
    limited, scores = evaluated(name, tiny, tmp_path, 3)
    assert all((score.n, score.too_long) == (3, 0) for score in scores.values())
    assert [s.questions for s in scores.values()] == [d.questions for d in limited.datasets]


@pytest.mark.real_data
@pytest.mark.parametrize("name", SUITES)
def test_the_real_sets_have_the_expected_number_of_questions(name, tmp_path):
    if missing(name):
        pytest.skip(f"OSORA_DATA has no {', '.join(missing(name))}")
    suites.prepare(suite(name), tmp_path)  # raises where a number differs


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["math", "commonsense", "gsm8k", "gpqa", "gpqa-clean"])
def test_the_real_training_rows_fill_their_templates(name):
    absent = [s.path for s in task(name).sources if not (REAL / s.path).is_file()]
    if absent:
        pytest.skip(f"OSORA_DATA has no {', '.join(absent)}")
    pairs = data.dialogues(task(name), 0)
    assert all(pair.prompt and pair.response for pair in pairs)


@pytest.mark.real_data
def test_metamathqas_columns_are_the_ones_that_the_task_asks_for():
    sample = REAL / "metamathqa" / "schema_sample_2rows.jsonl"
    if not sample.is_file():
        pytest.skip("OSORA_DATA has no sample of MetaMathQA")
    source = task("math").sources[0]
    for line in sample.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row["query"] in source.prompt.format(**row)
        assert source.response.format(**row) == row["response"]
