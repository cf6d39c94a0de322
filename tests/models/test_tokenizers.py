"""Tokenizers and chat templates with which answers would not end, or are others than they seem."""

import json
import shutil

import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer, LlamaForCausalLM

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.models import dialogue, tokenizers
from osora_bench.models.base import load_base
from osora_bench.pipeline import preflight
from osora_bench.training import data
from tests.evaluation.scoring import scored

TOY = paths.resolve("pkg://osora_bench.toy/model")
TEMPLATE = (TOY / "chat_template.jinja").read_text(encoding="utf-8")
THINKING = TEMPLATE.replace("message['content'] }}{{ eos", "message['content'].split('</think>')[-1] }}{{ eos")  # fmt: skip  # noqa: E501
DATED = "{{ strftime_now('%d %B %Y') }}" + TEMPLATE
GUARDED = "{% if strftime_now is defined %}{{ strftime_now('%j') }}{% endif %}" + TEMPLATE


def folder(tmp_path, template=None, **settings):
    """The toy's model with another template and other settings of its tokenizer."""
    place = tmp_path / "model"
    shutil.copytree(TOY, place)
    if template is not None:
        (place / "chat_template.jinja").write_text(template, encoding="utf-8")
    told = json.loads((place / "tokenizer_config.json").read_text(encoding="utf-8"))
    told = {k: v for k, v in {**told, **settings}.items() if v is not None}
    (place / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    return place


def refused(make_cell, place, *overrides):
    cell = make_cell(f"model.path={place}", "model.architecture=null", *overrides)
    with pytest.raises(UserError) as told:
        preflight.check_cells([cell])
    return str(told.value)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (TEMPLATE.replace("{{ eos_token }}", ""), "writes no end token after an answer"),
        (TEMPLATE.replace("{{ eos_token }}", "{{ '\\n' }}"), "writes no end token"),
        (TEMPLATE.replace("{{ message['content'] }}{{ eos_token }}", "{{ eos_token }}"),
         "drops or rewrites the answer"),
        (DATED, "prints today's date"),
        (GUARDED, "prints today's date"),
        ("{{ raise_exception('never') }}", "cannot be filled: never"),
        (TEMPLATE.replace("{{ eos_token }}", "{{ message['content'] | upper }}<|end|>"),
         "writes no end token"),
    ],
)  # fmt: skip
def test_a_template_is_tried_before_anything_runs(template, why, make_cell, tmp_path):
    assert why in refused(make_cell, folder(tmp_path, template))


@pytest.mark.parametrize("answer", ["<think>hm</think> 42", "a</think>b"])
def test_a_template_that_drops_a_part_of_a_rows_answer_is_told(answer, make_cell, tmp_path):
    rows = [{"question": "Q", "answer": "4"}, {"question": "Q", "answer": answer}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    cell = make_cell(f"model.path={folder(tmp_path, THINKING)}", "model.architecture=null")
    one = cell.config.task.sources[0]
    one.path, one.rows = str(tmp_path / "rows.jsonl"), 2
    cell.config.task.sources = [one]
    with pytest.raises(UserError, match="the chat template rewrites the answer"):
        preflight.check_cells([cell])


def test_the_toys_own_template_passes(make_cell):
    preflight.check_cells([make_cell()])


@pytest.fixture
def turned(tmp_path):
    """A model whose template ends turns with a token that is not its tokenizer's own end, which it
    never writes: as base models with a chat template have it."""
    place = folder(tmp_path, TEMPLATE.replace("{{ eos_token }}", "<|eos|>"), eos_token="<|pad|>")
    told = json.loads((place / "generation_config.json").read_text(encoding="utf-8"))
    (place / "generation_config.json").write_text(json.dumps({**told, "eos_token_id": 2}))
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    (place / "config.json").write_text(json.dumps({**config, "eos_token_id": 2}))
    return place


def test_the_templates_own_end_ends_a_turn(turned, make_cell, tmp_path):
    moved = [f"model.path={turned}", "model.architecture=null"]
    plain, other = (make_cell("method=none", "eval.limit=20", *path) for path in ([], moved))
    found = []
    for cell in (plain, other):
        base = load_base(cell.config.model, torch.device("cpu"))
        where = tmp_path / cell.run_id
        scores = scored(base.model, base.tokenizer, cell.config, where, "test")
        found.append({name: (s.k, s.cut) for name, s in scores.items()})
    assert found[0] == found[1]


def test_a_plain_prompt_does_not_stop_at_a_templates_end(turned):
    model = LlamaForCausalLM.from_pretrained(turned)
    tokenizer = AutoTokenizer.from_pretrained(turned)
    asked = [
        InMemoryModel(model, tokenizer, chat=chat, label="test").eos_ids for chat in (True, False)
    ]
    assert asked == [[1, 2], [2]]


def test_a_tokenizer_that_adds_its_end_puts_none_between_prompt_and_answer():
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    pair = data.Dialogue("Add 12 and 30.", "12+30=42")
    settings = {"chat": False, "loss_on": "answer", "max_length": 99}
    expected = data.tokenise([pair], tokenizer, **settings).rows
    one = LlamaForCausalLM.from_pretrained(TOY)
    answer = InMemoryModel(one, tokenizer, chat=False, label="test").generate(["Add 1"], 8)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|eos|>", special_tokens=[("<|eos|>", 1)]
    )
    assert tokenizer("Add 1")["input_ids"][-1] == 1
    bos = tokenizer.bos_token_id
    (row,) = data.tokenise([pair], tokenizer, **settings).rows
    whole = [token for token in expected[0]["input_ids"] if token != bos]
    assert [token for token in row["input_ids"] if token != bos] == whole
    assert row["input_ids"].count(1) == 1
    wrapped = InMemoryModel(one, tokenizer, chat=False, label="test")
    assert wrapped._encode("Add 1")[-1] != 1
    assert answer


def test_a_prompt_that_ends_with_the_end_token_itself_keeps_it():
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    assert dialogue.prompt_ids(tokenizer, "Add 1<|eos|>")[-1] == 1


@pytest.mark.parametrize("chat", ["true", "false"])
def test_a_tokenizer_without_an_end_is_refused(chat, make_cell, tmp_path):
    place = folder(tmp_path, TEMPLATE.replace("{{ eos_token }}", "<|eos|>"), eos_token=None)
    found = refused(make_cell, place, f"model.chat={chat}")
    assert "has no end-of-sequence token" in found


def test_padding_that_the_model_has_no_embedding_of_is_the_end_token(make_cell, tmp_path):
    place = folder(tmp_path, pad_token="[PAD]")
    assert AutoTokenizer.from_pretrained(place).pad_token_id >= 922
    cell = make_cell(f"model.path={place}", "model.architecture=null")
    preflight.check_cells([cell])
    assert tokenizers.load_tokenizer(cell.config.model).pad_token_id == 1


@pytest.mark.parametrize(
    ("template", "settings", "why"),
    [
        (None, {"eos_token": "[END]"}, "'[END]' of the tokenizer"),
        (TEMPLATE.replace("<|user|>", "[NEW]"), {"extra_special_tokens": ["[NEW]"]},
         "its chat template writes '[NEW]', of which the model has no embedding"),
    ],
)  # fmt: skip
def test_tokens_that_the_model_has_no_embedding_of_are_refused(
    template, settings, why, make_cell, tmp_path
):
    assert why in refused(make_cell, folder(tmp_path, template, **settings))
