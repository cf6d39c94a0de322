"""Random models: the tiny ones that scale=smoke runs, large ones for trials at a real one's size.
Imports no torch before one is written: every verb asks for them, and most find them there."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHARD = "2GB"
"""Files of at most this much: while one is written, its tensors are in memory twice."""


def write_models(models: Mapping[Path, dict[str, Any]], *, whole: bool = False) -> None:
    """Write the models, architectures by folder, that are not there, each whole or not at all.

    Args:
        whole: with the architecture's own vocabulary, of which the tokenizer knows the first words;
            otherwise with the tokenizer's alone.
    """
    for folder, architecture in models.items():
        if not folder.is_dir():
            from osora_bench.osora.saving import as_new_files

            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
                temporary = Path(scratch) / folder.name  # the other is for its owner alone
                with as_new_files(temporary):
                    write_model(architecture, temporary, whole=whole)
                temporary.rename(folder)


def write_model(architecture: dict[str, Any], folder: Path, *, whole: bool = False) -> None:
    """Write a random model of the architecture with a tokenizer of its own; `whole`: as above."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = _tokenizer()
    size = architecture["vocab_size"] if whole else len(tokenizer)
    config = AutoConfig.for_model(
        **{**architecture, "vocab_size": size},
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    """Whole words, most of them unknown: long real prompts stay short."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>"]
    words = [*special, *"ABCDE", *"0123456789", ".", ":", "Answer", "Question", "The", "the"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    fast.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )
    return fast
