"""What can change a cell's numbers, and the run id that is a hash of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from osora_bench import NUMERICS_VERSION
from osora_bench.common import paths
from osora_bench.common.fingerprint import fingerprint
from osora_bench.planning.config import Config, SourceConfig, identity_of, plain
from osora_bench.records import record

PROMPT_CLASSES = ("Prompt", "Prefix", "CPT", "Cartridge")
"""In the names of PEFT's configurations that adapt the model's input, not its layers."""


def identity(cfg: Config, content: dict[str, str] | None = None) -> dict[str, Any]:
    """All that can change the numbers of a cell, with the content that paths point to (`content`:
    what `fingerprints` has found before).

    A model or data file on disk counts by its bytes, wherever it lies; a hub repository by its
    pinned revision. Without training, task, trainer and seed cannot matter.
    """
    content = fingerprints(cfg, content)
    model = identity_of(cfg.model)
    if cfg.model.path in content:
        model |= {"path": content[cfg.model.path], "revision": None}
    suite = identity_of(cfg.eval)
    suite["datasets"] = [
        {**identity_of(d), "files": [content[f] for f in d.files]} for d in cfg.eval.datasets
    ]
    result = {"numerics_version": numerics_version(cfg), "model": model, "eval": suite}
    if cfg.trains:
        task = identity_of(cfg.task)
        held_out = cfg.task.validation_rows is not None
        if cfg.task.retained is not None:
            task["retained"] = content[cfg.task.retained]
        task["sources"] = [_source(s, content, held_out=held_out) for s in cfg.task.sources]
        result |= {
            "method": _told(identity_of(cfg.method)),
            "task": task,
            "trainer": identity_of(cfg.trainer),
            "seed": cfg.seed,
        }
    return result


def _told(node: dict[str, Any]) -> dict[str, Any]:
    """What is set; so that an option added later leaves the run ids of those who do not use it."""
    return {key: value for key, value in node.items() if value is not None and value is not False}


def _source(source: SourceConfig, content: dict[str, str], *, held_out: bool) -> dict[str, Any]:
    """A source with its files' content in place of their paths. Which rows belong together matters
    where some are held out."""
    settings = _told(plain(source))
    if not held_out:
        settings.pop("group", None)
    settings["path"] = content[source.path]
    if source.labels is not None:
        settings["labels"] = content[source.labels]
    if source.exclude is not None:
        settings["exclude"] = {**settings["exclude"], "path": content[source.exclude.path]}
    return settings


def numerics_version(cfg: Config) -> int:
    """The newest version that changed numbers of this kind of cell.

    2: scores are in the model's own precision; before, accelerate's autocast stayed on a model that
    was trained in another one, or whose outermost forward pass gives the answers.
    """
    if not cfg.trains or cfg.trainer.precision == "float32":
        return 1
    target = str((cfg.method.peft or {}).get("_target_", ""))
    outermost = cfg.method.full or any(name in target for name in PROMPT_CLASSES)
    return NUMERICS_VERSION if outermost or cfg.model.dtype != cfg.trainer.precision else 1


def revision(cfg: Config) -> str:
    """The pinned revision of a hub repository, `local` for files on disk, or `UNPINNED`."""
    if paths.resolve(cfg.model.path) is not None:
        return "local"
    return cfg.model.revision or "UNPINNED"


def fingerprints(cfg: Config, content: dict[str, str] | None = None) -> dict[str, str]:
    """The content of every file and folder on disk that a configuration names, by its path.

    What is not there is taken to be what the records of the ledger were made with: tables need no
    more than records. If there is none, it gets a mark that lets a plan be made; no cell can run
    under either, since the files are required before anything starts.

    Args:
        content: what is known already, and is not looked at again; what is found is added to it.
    """
    content = {} if content is None else content
    names = [f for d in cfg.eval.datasets for f in d.files]
    if cfg.trains:
        names += cfg.task.row_files
        names += [] if cfg.task.retained is None else [cfg.task.retained]
    for path in names:
        if path not in content:
            content[path] = _content(path, paths.data_file(path), cfg.ledger)
    model = cfg.model.path
    if model not in content and (place := paths.resolve(model)) is not None:
        content[model] = _content(model, place, cfg.ledger)
    return {path: content[path] for path in (*names, model) if path in content}


def _content(path: str, place: Path, ledger: str) -> str:
    if place.exists():
        return fingerprint(place)
    return record.contents(Path(ledger)).get(record.portable(path), f"absent:{path}")


def run_id(cfg: Config, content: dict[str, str] | None = None) -> str:
    """Twelve hexadecimal digits of the identity's sha256."""
    return _short(identity(cfg, content))


def training_id(cfg: Config, content: dict[str, str] | None = None) -> str:
    """The same for the training alone: cells that differ in their suite only have one."""
    parts = identity(cfg, content)
    return _short({key: value for key, value in parts.items() if key != "eval"})


def _short(parts: dict[str, Any]) -> str:
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
