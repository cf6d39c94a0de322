"""The embedded model, and OpenCompass's own wrapper of it."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.evaluation.toy_model import TOY


@pytest.fixture(scope="module")
def toy():
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    model = LlamaForCausalLM.from_pretrained(TOY).eval()
    return model, tokenizer


@pytest.fixture
def stock(monkeypatch):
    """OpenCompass's own wrappers, with the method that they call and transformers 5 lacks."""
    from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
    from transformers import PreTrainedTokenizerBase

    monkeypatch.setattr(
        PreTrainedTokenizerBase,
        "batch_encode_plus",
        lambda self, texts, **settings: self(texts, **settings),
        raising=False,
    )

    def make(chat, folder=TOY):
        kind = HuggingFacewithChatTemplate if chat else HuggingFaceBaseModel
        return kind(path=str(folder), model_kwargs={"torch_dtype": torch.float32}, max_seq_len=256)

    return make
