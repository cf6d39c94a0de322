"""Answers are kept for exactly what would give them again."""

import copy
import gzip
from dataclasses import replace

import peft
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from osora_bench.common import paths
from osora_bench.evaluation import evaluate
from osora_bench.evaluation.answering import answerer
from osora_bench.evaluation.in_memory_model import InMemoryModel
from tests.evaluation.scoring import scored

TOY = str(paths.resolve("pkg://osora_bench.toy/model"))


@pytest.fixture
def toy():
    return LlamaForCausalLM.from_pretrained(TOY).eval(), AutoTokenizer.from_pretrained(TOY)


@pytest.fixture
def cfg(make_cell):
    return make_cell("method=none", "eval.datasets.0.limit=6", "eval.datasets.1.limit=6").config


def adapted(model, **settings):
    torch.manual_seed(0)
    target = {"target_modules": ["v_proj", "q_proj"], "r": 4, "init_lora_weights": False}
    return peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**target, **settings))


def test_the_same_again_goes_on(toy, cfg):
    again = LlamaForCausalLM.from_pretrained(TOY).eval(), AutoTokenizer.from_pretrained(TOY)
    assert answerer(*toy, cfg) == answerer(*again, cfg)
    one, other = adapted(toy[0]), adapted(toy[0])
    other.peft_config["default"].inference_mode = True  # as when it is loaded
    other.peft_config["default"].base_model_name_or_path = "/elsewhere"
    assert answerer(one, toy[1], cfg) == answerer(other, toy[1], cfg)


def end_token(model, tokenizer):
    model.generation_config.eos_token_id = 7


def penalty(model, tokenizer):
    model.generation_config.repetition_penalty = 1.05


def longest(model, tokenizer):
    model.config.max_position_embeddings = 200


def precision(model, tokenizer):
    model.to(torch.bfloat16)


def norms(model, tokenizer):
    model.config.rms_norm_eps = 1e-3


def template(model, tokenizer):
    tokenizer.chat_template += " "


def ending(model, tokenizer):
    tokenizer.eos_token = "<|pad|>"


def vocabulary(model, tokenizer):
    tokenizer.add_tokens(["forty-two"])


@pytest.mark.parametrize(
    "change", [end_token, penalty, longest, precision, norms, template, ending, vocabulary]
)
def test_what_changes_an_answer_changes_whose_it_is(change, toy, cfg):
    before = answerer(*toy, cfg)
    change(*toy)
    assert answerer(*toy, cfg) != before


def test_an_adapters_scale_counts_though_its_weights_are_the_same(toy, cfg):
    one, other = adapted(toy[0], lora_alpha=8), adapted(toy[0], lora_alpha=16)
    assert answerer(one, toy[1], cfg) != answerer(other, toy[1], cfg)


def test_configurations_count(toy, cfg):
    found = {
        answerer(*toy, one)
        for one in (
            cfg,
            replace(cfg, model=replace(cfg.model, chat=False)),
            replace(cfg, eval=replace(cfg.eval, backend="vllm")),
        )
    }
    assert len(found) == 3


def answers(folder):
    return {p.name: gzip.decompress(p.read_bytes()) for p in (folder / "answers").iterdir()}


def test_answers_of_before_generation_config_was_mended_are_not_served(
    toy, cfg, tmp_path, monkeypatch
):
    """An evaluation that died half-way with a wrong end token, and its next start."""
    scored(*toy, cfg, tmp_path / "right", "test")
    whole = toy[0].generation_config.eos_token_id
    toy[0].generation_config.eos_token_id = toy[1].encode("#", add_special_tokens=False)[0]
    scored(*toy, cfg, tmp_path / "other", "test")
    assert answers(tmp_path / "other") != answers(tmp_path / "right")
    toy[0].generation_config.eos_token_id = whole
    asked = []
    through = InMemoryModel._continue
    monkeypatch.setattr(
        InMemoryModel,
        "_continue",
        lambda self, prompts, *rest: asked.append(len(prompts)) or through(self, prompts, *rest),
    )
    for _ in range(2):
        scored(*toy, cfg, tmp_path / "other", "test")
        assert answers(tmp_path / "other") == answers(tmp_path / "right")
    assert asked == [6, 6], "all of them once, then none"
    evaluate.forget(tmp_path / "other")
