"""All that can change a model's answer to given tokens, as one hash."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from osora_bench import NUMERICS_VERSION
from osora_bench.models import base
from osora_bench.planning.config import Config

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "opencompass", "vllm")
ROOMS = ("evaluation", "models", "osora")
"""Folders of this package whose code takes part in an answer."""
PLACES = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")
"""What an adapter's settings say of where it came from, or of being trained: other at the start
that trained it than at the next one, which loads it."""


def answerer(model: Any, tokenizer: Any, cfg: Config) -> str:
    """A hash of weights and settings, tokenizer, backend, and the code and libraries that answer.

    Weights alone do not tell: end tokens and penalties come from generation_config.json, an
    adapter's scale from its settings, an answer's text from the tokenizer.
    """
    inside = base.inside(model)
    told = {
        "weights": base.content(model),
        "dtype": str(inside.dtype),
        "device": next(model.parameters()).device.type,
        "model": _settings(inside.config.to_dict()),
        "attention": getattr(inside.config, "_attn_implementation", None),
        "generation": inside.generation_config.to_dict(),
        "adapters": {
            name: _settings(one.to_dict())
            for name, one in (getattr(model, "peft_config", None) or {}).items()
        },
        "tokenizer": _tokenizer(tokenizer),
        "chat": cfg.model.chat,
        "backend": cfg.eval.backend,
        "merge": cfg.eval.merge,
        "libraries": _libraries(),
        "code": [NUMERICS_VERSION, _code()],
    }
    return hashlib.sha256(_text(told).encode()).hexdigest()


def _settings(told: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in told.items() if not k.startswith("_") and k not in PLACES}


def _tokenizer(tokenizer: Any) -> list[Any]:
    """How text becomes tokens and tokens become text."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    whole = tokenizer.get_vocab() if fast is None else fast.to_str()
    return [
        type(tokenizer).__name__,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        sorted(tokenizer.all_special_ids),
        getattr(tokenizer, "clean_up_tokenization_spaces", None),
        hashlib.sha256(_text(whole).encode()).hexdigest(),
    ]


@cache
def _libraries() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def _code() -> str:
    """Of the files as they were when this process first asked."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(p for room in ROOMS for p in (package / room).rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _text(told: Any) -> str:
    """Canonical JSON; sets, of which adapters' settings have some, in order."""

    def plain(one: Any) -> Any:
        return sorted(map(str, one)) if isinstance(one, set | frozenset) else str(one)

    return json.dumps(told, sort_keys=True, default=plain)
