"""The vLLM backend, on a stand-in: vLLM needs a GPU, and none is here.

The stand-in has the few names of vLLM that are used. It loads what it is given with plain
transformers and PEFT, so that an export that is not the model in memory shows in the answers.
"""

import sys
import types
from types import SimpleNamespace

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from osora_bench.benchdata.made_up import write_data
from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.evaluation import checks, suites, vllm_model
from osora_bench.evaluation.in_memory_model import InMemoryModel
from osora_bench.evaluation.vllm_model import VllmModel, lora_rank
from osora_bench.osora import OsoraConfig, start_pissa
from tests.evaluation.scoring import scored

TOY = str(paths.resolve("pkg://osora_bench.toy/model"))
TARGETS = ["q_proj", "v_proj"]
PROMPTS = [f"Add {10 + i} and {20 + i}." for i in range(12)]


class StandIn:
    """vllm.LLM: a model's folder, and for each call perhaps a LoRA adapter's."""

    made: list["StandIn"]

    def __init__(self, model, dtype, max_model_len, enable_prefix_caching, **lora):
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.lora = lora
        self.made.append(self)

    def generate(self, prompts, settings, lora_request, use_tqdm):
        model = self.model
        if lora_request is not None:
            assert self.lora["enable_lora"]
            model = peft.PeftModel.from_pretrained(model, lora_request.path).eval()
            assert model.active_peft_config.r <= self.lora["max_lora_rank"]
        outputs = []
        for prompt, setting in zip(prompts, settings, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            tokens = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                max_new_tokens=setting.max_tokens, eos_token_id=setting.stop_token_ids,
                pad_token_id=0, repetition_penalty=setting.repetition_penalty,
            )[0, ids.shape[1] :]  # fmt: skip
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens.tolist())]))
        return outputs


@pytest.fixture
def engines(monkeypatch):
    StandIn.made = []
    vllm, lora, request = (types.ModuleType(n) for n in ("vllm", "lora", "request"))
    vllm.LLM = StandIn
    vllm.SamplingParams = lambda temperature, **settings: SimpleNamespace(**settings)
    request.LoRARequest = lambda name, number, path: SimpleNamespace(path=path)
    modules = {"vllm": vllm, "vllm.lora": lora, "vllm.lora.request": request}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    return StandIn.made


def adapter(kind):
    """A trained-looking adapter on the toy model, and whether the base is as it was loaded."""
    torch.manual_seed(0)
    base = LlamaForCausalLM.from_pretrained(TOY)
    if kind == "none":
        return base.eval(), True
    if kind == "full":
        base.model.layers[0].mlp.up_proj.weight.data *= 1.5
        return base.eval(), False
    configs = {
        "osora": OsoraConfig(r=20, target_modules=TARGETS),
        "osora_dora": OsoraConfig(r=20, target_modules=TARGETS, use_dora=True),
        "lora": peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False),
        "pissa": peft.LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS),
        "vera": peft.VeraConfig(r=4, target_modules=TARGETS, init_weights=False),
    }
    model = peft.get_peft_model(base, configs[kind])
    if kind == "pissa":
        start_pissa(model)
    for name, parameter in model.named_parameters():
        if "osora_S" in name or "lora_A" in name:
            parameter.data *= 1.2
    return model.eval(), kind != "pissa"


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        ("none", None), ("full", None), ("lora", 8), ("osora", 32),
        ("osora_dora", None), ("pissa", None), ("vera", None),
    ],
)  # fmt: skip
def test_answers_are_those_of_the_model_in_memory(kind, rank, engines, tmp_path):
    """As LoRA where that is exact, else merged; the model in memory is left as it was."""
    model, untouched = adapter(kind)
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    ours = InMemoryModel(model, tokenizer, chat=True, label="test").generate(PROMPTS, 12)
    settings = {"source": TOY, "untouched": untouched, "folder": tmp_path}
    theirs = VllmModel(model, tokenizer, chat=True, label="test", **settings)
    assert theirs.generate(PROMPTS, 12) == ours
    assert engines[0].lora.get("max_lora_rank") == rank
    assert InMemoryModel(model, tokenizer, chat=True, label="test").generate(PROMPTS, 12) == ours
    stop = ours[0][1]
    cut = theirs.generate(PROMPTS[:1], 12, stopping_criteria=[stop])
    assert cut == [ours[0].split(stop)[0]]


@pytest.mark.parametrize("kind", [peft.LoraConfig, OsoraConfig])
def test_whole_modules_and_biases_go_into_the_merged_model(kind, engines, tmp_path):
    """vLLM takes neither with a LoRA adapter."""
    torch.manual_seed(0)
    options = {"r": 4, "target_modules": TARGETS}
    biased = peft.get_peft_model(LlamaForCausalLM.from_pretrained(TOY), kind(**options, bias="all"))
    assert lora_rank(biased) is None
    base = LlamaForCausalLM.from_pretrained(TOY)
    model = peft.get_peft_model(base, kind(**options, modules_to_save=["lm_head"])).eval()
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.normal_(std=0.3)
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    made = InMemoryModel(model, tokenizer, chat=True, label="test").generate(PROMPTS[:3], 6)
    settings = {"source": TOY, "untouched": True, "folder": tmp_path}
    theirs = VllmModel(model, tokenizer, chat=True, label="test", **settings)
    assert engines[0].lora == {}
    assert theirs.generate(PROMPTS[:3], 6) == made


def test_the_suite_names_the_backend(engines, make_cell):
    model, _ = adapter("lora")
    cell = make_cell("eval.backend=vllm", "eval.datasets.0.limit=4", "eval.datasets.1.limit=4")
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    scores = scored(model, tokenizer, cell.config, cell.paths.evaluation, "test")
    assert len(engines) == 1
    assert {score.n for score in scores.values()} == {4}
    assert make_cell("eval.backend=vllm").run_id != make_cell().run_id


def test_settings_of_generation_count_or_are_refused(engines, tmp_path):
    model, _ = adapter("none")
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    settings = {"chat": True, "label": "test"}
    place = {"source": TOY, "untouched": True, "folder": tmp_path}
    plain = InMemoryModel(model, tokenizer, **settings).generate(PROMPTS, 12)
    model.generation_config.repetition_penalty = 1.3
    made = VllmModel(model, tokenizer, **place, **settings).generate(PROMPTS, 12)
    assert made == InMemoryModel(model, tokenizer, **settings).generate(PROMPTS, 12) != plain
    model.generation_config.min_new_tokens = 2
    with pytest.raises(UserError, match="generation_config.json sets min_new_tokens"):
        VllmModel(model, tokenizer, **place, **settings)


def test_perplexities_are_refused_before_a_model_is_loaded(tmp_path, make_cell, monkeypatch):
    monkeypatch.setenv("OSORA_DATA", str(tmp_path / "data"))
    write_data(tmp_path / "data")
    chosen = ["eval=commonsenseqa-ppl", "eval.datasets.0.limit=2", "eval.backend=vllm"]
    cell = make_cell(*chosen)
    with pytest.raises(UserError, match="commonsense_qa: perplexities need eval.backend=transform"):
        suites.prepare(cell.config.eval, tmp_path)


def test_adapters_that_vllm_cannot_have(engines, tmp_path):
    prompt = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(TOY), prompt)
    with pytest.raises(
        UserError, match="serves no adapter .*: PromptTuningConfig cannot be merged"
    ):
        vllm_model.exported(model, TOY, tmp_path)
    large = peft.LoraConfig(r=600, target_modules=TARGETS)
    assert lora_rank(peft.get_peft_model(LlamaForCausalLM.from_pretrained(TOY), large)) is None


def test_without_vllm_it_says_so(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="vLLM is not installed here"):
        checks.check_installed()
