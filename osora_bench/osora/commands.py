"""The commands `osora-bench export` and `osora-bench svd`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.version import Version
from torch import Tensor, nn
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from .checkpoint import shortened
from .config import OsoraConfig
from .quantised import MISSING, backend_of, weight_of
from .store import DEFAULT_GB, SvdStore, size_limit
from .targets import layer_problems

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def export_main(argv: Sequence[str] | None = None) -> int:
    """Export an adapter folder as LoRA, or merged into its base model. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="osora-bench export",
        description="Write an OSoRA adapter as a LoRA adapter that plain PEFT and LoRA servers "
        "load, or merged into its base model.",
    )
    parser.add_argument("--adapter", required=True, type=Path, help="folder of the OSoRA adapter")
    parser.add_argument(
        "--model", required=True, type=Path,
        help="folder of its base model, quantised if it was trained on that",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, help="folder to write, new or empty")
    parser.add_argument(
        "--format", choices=("lora", "merged"), default="lora", help="default: lora"
    )
    args = parser.parse_args(argv)
    _need_folder(parser, args.adapter, "adapter_config.json")
    _need_folder(parser, args.model, "config.json")
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        parser.error(f"--output {args.output} exists and is not an empty folder")
    return _report(lambda: _export(args))


def svd_main(argv: Sequence[str] | None = None) -> int:
    """Build, list or clean the store of decompositions. Returns the exit status."""
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--store", type=Path, default=os.environ.get("OSORA_SVD_STORE") or None,
        help="folder of the store (default: the variable OSORA_SVD_STORE)",
    )  # fmt: skip
    where.add_argument(
        "--limit-gb", type=_gigabytes, default=os.environ.get("OSORA_SVD_STORE_GB", DEFAULT_GB),
        help=f"size limit (default: OSORA_SVD_STORE_GB, or {DEFAULT_GB:g})",
    )  # fmt: skip
    parser = argparse.ArgumentParser(
        prog="osora-bench svd", description="The store of singular value decompositions."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build", parents=[where], help="decompose the adapted layers of a model"
    )
    build.add_argument("--model", required=True, type=Path, help="folder of the model")
    build.add_argument("--modules", nargs="+", default=["q_proj", "v_proj"], help="layer names")
    build.add_argument("--rank", type=int, default=512, help="largest rank wanted (default 512)")
    commands.add_parser("list", parents=[where], help="show what is stored")
    clean = commands.add_parser(
        "clean", parents=[where], help="remove the least recently used down to --limit-gb, or all"
    )
    clean.add_argument("--all", action="store_true", help="remove everything")
    args = parser.parse_args(argv)
    if args.store is None:
        parser.error("name a folder: --store, or the variable OSORA_SVD_STORE")
    if args.command == "build":
        if args.rank < 1:
            parser.error(f"--rank must be at least 1, not {args.rank}")
        _need_folder(parser, args.model, "config.json")
    elif not args.store.exists():
        parser.error(f"there is no store {args.store}")
    action = {"build": _build, "list": _list, "clean": _clean}[args.command]
    return _report(lambda: action(SvdStore(args.store, args.limit_gb), args))


def _gigabytes(text: str) -> float:
    try:
        return size_limit(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _need_folder(parser: argparse.ArgumentParser, folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        parser.error(f"{folder} is no such folder: it holds no {name}")


def _report(action: Any) -> int:
    try:
        action()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _load(folder: Path) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    quantised = getattr(config, "quantization_config", None) or {}
    if quantised.get("quant_method") == "bitsandbytes" and not find_spec("bitsandbytes"):
        raise ValueError(f"{folder} is quantised, and {MISSING}")
    names = config.architectures or ["AutoModelForCausalLM"]
    kind = getattr(transformers, names[0], None)
    if kind is None:
        raise ValueError(f"{folder} is a {names[0]}, which transformers does not have")
    # the name since transformers 4.56
    dtype = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    return kind.from_pretrained(folder, local_files_only=True, **{dtype: "auto"})


def _export(args: argparse.Namespace) -> None:
    from peft import PeftModel

    from .export import save_lora, save_merged

    model = PeftModel.from_pretrained(_load(args.model), str(args.adapter))
    if args.format == "lora":
        save_lora(model, args.output)
    else:
        save_merged(model, args.output)
        for path in (args.model / name for name in TOKENIZER_FILES):
            if path.is_file():
                (args.output / path.name).write_bytes(path.read_bytes())
    print(f"wrote {args.output}")


def _name(key: str) -> str:
    """A layer's own name, without those of the modules that it is in."""
    return key.rpartition(".")[2]


def _weight(layer: Any) -> Tensor:
    """The weight (d_out, d_in) that an adapter decomposes; of a quantised layer as numbers."""
    backend = backend_of(layer)
    if backend is not None:
        return weight_of(layer, backend)
    weight: Tensor = layer.weight.data
    return weight.T if isinstance(layer, Conv1D) else weight


def _build(store: SvdStore, args: argparse.Namespace) -> None:
    layers = {
        key: module
        for key, module in _load(args.model).named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    chosen = {key: layer for key, layer in layers.items() if _name(key) in args.modules}
    unmatched = sorted(set(args.modules) - set(map(_name, chosen)))
    if unmatched:
        there = ", ".join(sorted(set(map(_name, layers))))
        raise ValueError(f"no layer is called {' or '.join(unmatched)}; there are {there}")
    smallest = OsoraConfig(r=1)
    problems = [p for key, layer in chosen.items() for p in layer_problems(smallest, key, layer)]
    if problems:
        raise ValueError(f"{args.model}: {shortened(problems)}")
    for layer in tqdm(chosen.values(), desc="SVD", unit="layer"):
        weight = _weight(layer)
        store.get(weight, min(args.rank, *weight.shape))
    _list(store, args)


def _list(store: SvdStore, _: argparse.Namespace) -> None:
    entries = store.entries()
    for entry in reversed(entries):
        shape = f"{entry.shape[0]}x{entry.shape[1]}"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        print(f"{entry.key[:12]}  {shape:>11}  rank {entry.rank:5d}  "
              f"{entry.size / 1e6:9.1f} MB  used {used}")  # fmt: skip
    total = sum(entry.size for entry in entries) / 1e9
    print(
        f"{len(entries)} decompositions, {total:.2f} GB of {store.limit / 1e9:g} GB in {store.root}"
    )


def _clean(store: SvdStore, args: argparse.Namespace) -> None:
    removed = store.evict(-1 if args.all else store.limit)
    print(f"removed {len(removed)} decompositions, {sum(e.size for e in removed) / 1e9:.2f} GB")
