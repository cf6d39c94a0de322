"""Where an evaluated model's chat template may lie."""

import gzip
import json
import shutil

import peft
import pytest
from transformers import LlamaForCausalLM

from osora_bench.cli.main import main
from osora_bench.common import paths

TOY = paths.resolve("pkg://osora_bench.toy/model")


@pytest.fixture
def bare(tmp_path):
    """The toy without its template, and an adapter on it that does nothing."""
    place = tmp_path / "bare"
    shutil.copytree(TOY, place)
    (place / "chat_template.jinja").unlink()
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=str(place))
    peft.get_peft_model(LlamaForCausalLM.from_pretrained(TOY), settings).save_pretrained(
        tmp_path / "adapter"
    )
    return place, tmp_path / "adapter"


def outputs(model, output, *more):
    arguments = ["--model", str(model), "--suite", "toy", "--limit", "4", "--output", str(output)]
    assert main(["evaluate", *arguments, *more]) == 0
    found = []
    for place in sorted((output / "answers").iterdir()):
        with gzip.open(place, "rt") as lines:
            found += [json.loads(line)["output"] for line in lines]
    return found


@pytest.mark.long
@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_that_was_saved_with_an_adapter_is_used(place, bare, tmp_path):
    model, adapter = bare
    template = (TOY / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY / name, adapter)
    if place == "chat_template.jinja":
        (adapter / place).write_text(template, encoding="utf-8")
    else:
        settings = json.loads((adapter / place).read_text(encoding="utf-8"))
        told = json.dumps({**settings, "chat_template": template})
        (adapter / place).write_text(told, encoding="utf-8")
    asked = outputs(model, tmp_path / "one", "--adapter", str(adapter))
    assert asked == outputs(TOY, tmp_path / "two")
    assert asked != outputs(model, tmp_path / "three", "--adapter", str(adapter), "--plain")


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        ("model", "chat_template.json"),
        ("adapter", "chat_template.json"),
        ("adapter", "chat_template.jinja"),  # without a tokenizer, PEFT reads none there
    ],
)
def test_a_template_that_no_tokenizer_would_read_is_told(beside, name, bare, capsys):
    model, adapter = bare
    place = (model if beside == "model" else adapter) / name
    place.write_text("{}", encoding="utf-8")
    arguments = ["--model", str(model), "--adapter", str(adapter), "--suite", "toy"]
    assert main(["evaluate", *arguments]) == 2
    said = capsys.readouterr().err
    assert f"{place}: transformers' tokenizers do not read it there" in said
    assert "--plain" in said
