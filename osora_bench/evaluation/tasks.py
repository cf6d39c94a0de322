"""OpenCompass's own tasks: their configuration, their data, the files that they leave."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from mmengine.config import Config, ConfigDict
from opencompass.utils import build_dataset_from_cfg, get_logger

from osora_bench.common import paths

_built: dict[str, Any] = {}


def point_at_data(runs: Path) -> None:
    """OpenCompass reads `$COMPASS_DATA_CACHE/data/...`: give it a folder that links to ours."""
    cache_dir = runs.absolute() / "opencompass-data"
    cache_dir.mkdir(parents=True, exist_ok=True)
    link = cache_dir / "data"
    if link.is_symlink() and link.readlink() != paths.data_root():
        link.unlink()
    with contextlib.suppress(FileExistsError):  # another process linked it just now
        link.symlink_to(paths.data_root())
    os.environ["COMPASS_DATA_CACHE"] = str(cache_dir)


def build_dataset(config: ConfigDict) -> Any:
    """OpenCompass's dataset object; its tasks ask for the same one for every cell, twice."""
    section = {k: v for k, v in config.items() if k not in ("infer_cfg", "eval_cfg")}
    key = json.dumps([section, str(paths.data_root())], sort_keys=True, default=str)
    if key not in _built:
        _built[key] = build_dataset_from_cfg(config)
    return _built[key]


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send what OpenCompass and datasets print to a log file beside the run."""
    log.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    get_logger().setLevel(logging.WARNING)
    for name in list(logging.root.manager.loggerDict):  # these keep a handle of the terminal
        if name.startswith(("opencompass", "datasets")):
            logging.getLogger(name).setLevel(logging.ERROR)
    with (
        log.open("a", encoding="utf-8") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        yield


def task(config: ConfigDict, work: Path, settings: dict[str, Any]) -> Config:
    """The configuration of an OpenCompass task on one dataset, with its files in `work`."""
    model = {"type": "InMemoryModel", "abbr": "cell", "run_cfg": {"num_gpus": 0}, **settings}
    return Config(
        {
            "models": [model],
            "datasets": [[config]],
            "work_dir": str(work),
            "eval": {"runner": {"task": {"dump_details": True}}},
        }
    )


def _place(folder: Path, config: ConfigDict) -> Path:
    return folder / "cell" / f"{config['abbr']}.json"


def read_results(folder: Path, config: ConfigDict) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_place(folder, config).read_text(encoding="utf-8"))
    return content


def predictions(config: ConfigDict, work: Path) -> dict[str, Any]:
    """What OpenCompass's inference has left in a work folder."""
    return read_results(work / "predictions", config)


def rewrite(outputs: dict[str, Any], config: ConfigDict, work: Path) -> None:
    """Put other predictions into a work folder."""
    path = _place(work / "predictions", config)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(outputs), encoding="utf-8")
