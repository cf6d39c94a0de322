"""Model cards: the hub's metadata as the hub's own library reads it, and whose card is kept."""

import ast
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from osora_bench.cli.main import main
from osora_bench.planning.cell import cell_of
from osora_bench.records import record
from osora_bench.reporting import model_card
from tests.grids import cells_of
from tests.reporting.html import made


def body_of(name="table2", method="osora", **model):
    """A whole record of a cell of an experiment."""
    cell = next(c for c in cells_of(name) if c.config.method.name == method)
    if model:
        cell = cell_of(replace(cell.config, model=replace(cell.config.model, **model)))
    sizes = [d.questions for d in cell.config.eval.datasets]
    body = made.whole(cell, tuple(size // 4 for size in sizes))
    for score, size in zip(body["scores"].values(), sizes, strict=True):
        score |= {"k": size // 4, "n": size, "questions": size}
    return cell, body


def read(body):
    return ModelCard(model_card.card(body))


def test_the_hub_reads_base_model_licence_library_and_results():
    cell, body = body_of()
    card = read(body)
    assert card.data.base_model == cell.config.model.path
    assert card.data.license == cell.config.model.licence == "apache-2.0"
    assert card.data.library_name == "peft"
    results = {r.dataset_name: r for r in card.data.eval_results}
    assert set(results) == {"MATH", "GSM8K"}
    gsm8k = body["scores"]["gsm8k"]
    assert results["GSM8K"].metric_value == round(100 * gsm8k["k"] / gsm8k["n"], 2)
    assert results["GSM8K"].metric_type == "accuracy"
    assert f'revision="{cell.config.model.revision}"' in card.text
    assert "import osora_bench.osora" in card.text
    assert body["run_id"] in card.text
    assert "0123456789abcdef" in card.text


def test_methods_of_pefts_own_need_no_import_and_other_licences_their_name():
    _, body = body_of(method="lora", licence="llama-of-mine")
    card = read(body)
    assert "import osora_bench" not in card.text
    assert (card.data.license, card.data.license_name) == ("other", "llama-of-mine")


def test_a_base_model_from_a_folder_is_no_name_on_the_hub():
    _, body = body_of("demo", "osora")
    card = read(body)
    assert card.data.base_model is None
    assert "name its place on the hub" in card.text
    compile(card.text.split("```python\n")[1].split("```")[0], "card", "exec")


def test_nothing_in_a_record_is_taken_for_markdown_or_code():
    hostile = "<script>alert(1)</script> | `x`\n# Heading"
    path = 'a/b", trust_remote_code=True) #```'
    _, body = body_of(method="lora", label=hostile, path=path, revision='`r`"', licence=hostile)
    body["config"]["method"]["label"] = hostile
    text = model_card.card(body).split("---\n", 2)[2]
    assert "<script>" not in re.sub(r"\\.", "", text)
    assert "\n# Heading" not in text
    assert text.count("```") == 2
    code = text.split("```python\n")[1].split("```")[0]
    (call_,) = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)
                and ast.unparse(n.func).startswith("transformers.")]  # fmt: skip
    assert [ast.literal_eval(argument) for argument in call_.args] == [path]
    told = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call_.keywords}
    assert told == {"revision": '`r`"', "dtype": "bfloat16"}
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.sub(r"\\.", "", line).split("|")) in (4, 6) for line in table)


@pytest.fixture
def run(tmp_path):
    cell = next(
        c for c in cells_of("demo", [f"ledger={tmp_path}/ledger", f"runs={tmp_path}/runs"])
        if c.config.method.name == "osora"
    )  # fmt: skip
    record.write_record(made.whole(cell, (100, 100)), tmp_path / "ledger")
    cell.paths.adapter.mkdir(parents=True)
    return cell


def call(tmp_path, *arguments):
    return main(["card", *arguments, f"ledger={tmp_path}/ledger", f"runs={tmp_path}/runs"])


def test_pefts_template_and_our_own_are_replaced_and_no_other(run, tmp_path, capsys):
    place = run.paths.adapter / "README.md"
    place.write_text("# Model Card for Model ID\n")
    assert call(tmp_path, run.run_id) == 0
    assert model_card.MARK in place.read_text()
    assert call(tmp_path, run.run_id) == 0
    place.write_text("mine")
    assert call(tmp_path, run.run_id) == 2
    assert "somebody wrote it" in capsys.readouterr().err
    assert place.read_text() == "mine"


def test_what_has_no_adapter_is_told(run, tmp_path, capsys):
    run.paths.adapter.rmdir()
    assert call(tmp_path, run.run_id) == 2
    assert "is not there (any more)" in capsys.readouterr().err
    untrained = next(c for c in cells_of("demo") if c.config.method.name == "none")
    record.write_record(made.whole(untrained, (1, 1)), tmp_path / "ledger")
    assert call(tmp_path, untrained.run_id) == 2
    assert "trained nothing" in capsys.readouterr().err
    assert call(tmp_path) == 2
    assert "name one run" in capsys.readouterr().err
    assert call(tmp_path, "0" * 12) == 2
    assert "no record of a run '000000000000'" in capsys.readouterr().err
