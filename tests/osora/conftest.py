"""Tiny random models of six families, made from configurations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

from osora_bench.osora.older_peft import BEFORE_20, BEFORE_21

needs_20 = pytest.mark.skipif(BEFORE_20, reason="with PEFT 0.20 only")
needs_21 = pytest.mark.skipif(BEFORE_21, reason="with PEFT 0.21 only")
VOCABULARY = 64
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
LLAMA = {
    **SIZES, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "llama": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)), ["q_proj", "v_proj"]),
    "qwen2": (lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**LLAMA)), ["q_proj", "v_proj"]),
    "mistral": (lambda: tf.MistralForCausalLM(tf.MistralConfig(**LLAMA)), ["q_proj", "v_proj"]),
    "gpt2": (
        lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(
                vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **SPECIAL,
            )
        ),
        ["c_attn"],
    ),
    "t5": (
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(
                vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
            )
        ),
        ["q", "v"],
    ),
    "opt": (
        lambda: tf.OPTForCausalLM(
            tf.OPTConfig(
                vocab_size=VOCABULARY, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48,
                num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
                dropout=0.0, **SPECIAL,
            )
        ),
        ["q_proj", "v_proj"],
    ),
}  # fmt: skip

# every variant of the paper, and the combinations of options that are no simple sum of them
VARIANTS: dict[str, dict[str, Any]] = {
    "osora": {},
    "osora_star": {"train_s": False},
    "osora_star_star": {"train_o": False},
    "osora_g": {"o_init": "gaussian", "o_init_std": 0.5},
    "osora_k": {"o_side": "input"},
    "osora_dora": {"use_dora": True},
    "dora_with_norm_gradient": {"use_dora": True, "dora_detach_norm": False},
    "dora_k": {"use_dora": True, "o_side": "input"},
    "dora_k_g": {
        "use_dora": True, "dora_detach_norm": False, "o_side": "input", "o_init": "gaussian",
    },
    "dora_g": {"use_dora": True, "dora_detach_norm": False, "o_init": "gaussian"},
}  # fmt: skip


def make_base(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A model of `family` with random biases as well, in evaluation mode."""
    torch.manual_seed(seed)
    model = FAMILIES[family][0]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "layernorm" not in name.lower() and parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model.to(dtype).eval()


def make_inputs(family: str, seed: int = 0, rows: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, 7), generator=generator)
    inputs = {"input_ids": ids, "labels": ids}
    if family == "t5":
        inputs["decoder_input_ids"] = ids.flip(1)
        del inputs["labels"]
    return inputs


def logits(model: Any, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    """The model's logits without gradients, for the inputs without their labels."""
    with torch.no_grad():
        return model(**{k: v for k, v in inputs.items() if k != "labels"}, **kwargs).logits


def disturb(model: Any, adapter: str = "default", seed: int = 1, size: float = 0.3) -> None:
    """Move an adapter's trained tensors away from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".osora_" in name and name.endswith(f".{adapter}") and parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.mul_(1 + size * noise)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Small matrices are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
