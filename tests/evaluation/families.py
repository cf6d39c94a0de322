"""Tiny models of several architectures, with random weights."""

import torch
import transformers as tf

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SHAPE)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SHAPE)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**SHAPE, sliding_window=None)),
    "window": lambda: tf.MistralForCausalLM(tf.MistralConfig(**SHAPE, sliding_window=6)),
    "capped": lambda: tf.Gemma2ForCausalLM(
        tf.Gemma2Config(**SHAPE, head_dim=8, sliding_window=5, attn_logit_softcapping=2.0)
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    ),
}


def family(name, seed=4):
    """A model whose weights are far from uniform, so that ties are rare; with this seed, all of
    them end some answers early."""
    torch.manual_seed(seed)
    made = FAMILIES[name]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return made
