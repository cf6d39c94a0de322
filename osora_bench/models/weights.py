"""Where a model's weights lie, and whether they are all there and fit its configuration."""

from collections.abc import Collection
from functools import cache
from pathlib import Path
from textwrap import shorten

import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.planning.blank import location
from osora_bench.planning.config import ModelConfig

WEIGHT_FILES = ("*.safetensors", "*.bin")


def _local_snapshot(model: ModelConfig) -> Path:
    """The folder with the model's files, which must be on this machine already."""
    folder = paths.resolve(model.path)
    if folder is not None:
        return Path(location(model))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(model.path, revision=model.revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        gate = f" (accept its licence there first: {model.licence})" if model.gated else ""
        pinned = f" --revision {model.revision}" if model.revision else ""
        raise UserError(
            f"model {model.name}: the weights of {model.path} are not on this machine. "
            f"`hf download {model.path}{pinned}` fetches them{gate}, "
            "or name a folder: model.path=/folder"
        ) from error
    return Path(snapshot)


def check_weights(model: ModelConfig) -> None:
    """Raise UserError unless weights of the model's architecture lie on this machine, those that
    the config.json beside them describes."""
    folder = _local_snapshot(model)
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise UserError(
            f"model {model.name}: {folder} holds no weights ({' or '.join(WEIGHT_FILES)})"
        )
    if model.architecture is not None:
        _check_architecture(model, folder)
    _check_fit(folder)


def _check_architecture(model: ModelConfig, folder: Path) -> None:
    """Raise UserError if config.json is not of the architecture that the model's file names."""
    assert model.architecture is not None
    config = AutoConfig.from_pretrained(folder)
    differences = [
        f"{key} {getattr(config, key, None)} in place of {expected}"
        for key, expected in model.architecture.items()
        if getattr(config, key, None) != expected
    ]
    if differences:
        raise UserError(
            f"model {model.name}: {folder} is another model than conf/model/"
            f"{model.name}.yaml says: {', '.join(differences)}. "
            "A model of your own takes a file of its own there"
        )


@cache
def _check_fit(folder: Path) -> None:
    """Raise UserError unless the weights are the tensors that config.json asks for: transformers
    starts missing ones at random and leaves out what has no place. Only shapes are read."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        _, report = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are counted below
            local_files_only=True,
        )
    except Exception as error:  # transformers, safetensors and pickle each raise their own
        raise UserError(f"{folder}: cannot be loaded: {shorten(str(error), 200)}") from error
    mismatched = [f"{key} {list(shape)}" for key, shape, _ in report["mismatched_keys"]]
    problems = {
        "missing": report["missing_keys"],
        "of another shape": mismatched,
        "without a place": report["unexpected_keys"],
    }
    messages = [
        f"{len(keys)} {problem} ({_some(keys)})" for problem, keys in problems.items() if keys
    ]
    if messages:
        raise UserError(
            f"{folder}: its weights are not those of the model that its config.json describes: "
            f"tensors {', '.join(messages)}"
        )


def _some(names: Collection[str]) -> str:
    examples = sorted(names)[:2]
    return ", ".join(examples + ["..."] * (len(names) > len(examples)))
