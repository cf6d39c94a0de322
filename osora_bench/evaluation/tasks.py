"""OpenCompass's own tasks: their configuration, their data, the files that they leave."""

import contextlib
import hashlib
import json
import locale
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import evaluate.config
import opencompass.utils.datasets as opencompass_data
from mmengine.config import Config, ConfigDict
from opencompass.utils import build_dataset_from_cfg, get_logger

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.common.fingerprint import fingerprint

UTF8_LOCALES = ("C.UTF-8", "en_US.UTF-8", "UTF-8")
"""Names by which systems know a locale with this encoding; glibc and musl have the first."""
CONTENT = "content"
"""Key of a set's configuration: the fingerprints of its files. OpenCompass is not handed it."""

_built: dict[str, Any] = {}


def _no_download(data_path: str, *_: Any, **__: Any) -> str:
    raise UserError(f"{data_path}: no such file; what its suite does not list is not downloaded")


# what it fetched would be no file that was fingerprinted, and would lie in the user's data folder
opencompass_data.download_dataset = _no_download


def point_at_data(runs: Path) -> None:
    """Have OpenCompass read the files of the data folder, in UTF-8, whatever the environment says.

    It reads `$COMPASS_DATA_CACHE/data/...`: it is given a folder that links to ours, one for each
    data folder, so that starts on different data that share their runs do not share a link.
    """
    root = paths.data_root()
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    cache_dir = runs.absolute() / "opencompass-data" / name
    cache_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # as it was left, or another process was faster
        (cache_dir / "data").symlink_to(root)
    os.environ["COMPASS_DATA_CACHE"] = str(cache_dir)
    os.environ.pop("DATASET_SOURCE", None)  # would name a hub in place of files
    read_as_utf8()
    _metrics()


@cache
def _metrics() -> Any:
    """A folder where Hugging Face's evaluate keeps the code of its metrics, until this process
    ends: its own would be in a home that perhaps cannot be written, found out after all answers."""
    folder = tempfile.TemporaryDirectory(prefix="osora-metrics-")
    evaluate.config.HF_MODULES_CACHE = Path(folder.name) / "modules"
    evaluate.config.HF_METRICS_CACHE = Path(folder.name) / "metrics"
    return folder


def read_as_utf8() -> None:
    """Make UTF-8 what `open` takes where no encoding is named, as in several of OpenCompass's
    loaders: Python asks the process's locale each time.

    Raises:
        UserError: the system has no such locale.
    """
    if sys.flags.utf8_mode:
        return
    for name in UTF8_LOCALES:
        if locale.getencoding().lower().replace("-", "") == "utf8":
            return
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
    if locale.getencoding().lower().replace("-", "") != "utf8":
        raise UserError(
            f"text is read as {locale.getencoding()} here, and the benchmark sets are UTF-8: "
            "set PYTHONUTF8=1"
        )


def with_content(config: ConfigDict, files: Sequence[str]) -> ConfigDict:
    """A set's configuration that says what its data files hold now."""
    config[CONTENT] = [
        fingerprint(place) if (place := paths.data_file(file)).exists() else "absent"
        for file in files
    ]
    return config


def build_dataset(config: ConfigDict) -> Any:
    """OpenCompass's dataset object; its tasks ask for the same one for every cell, twice."""
    section = {k: v for k, v in config.items() if k not in ("infer_cfg", "eval_cfg")}
    key = json.dumps([section, str(paths.data_root())], sort_keys=True, default=str)
    if key not in _built:
        bare = ConfigDict({k: v for k, v in config.items() if k != CONTENT})
        with _no_cache():
            _built[key] = build_dataset_from_cfg(bare)
    return _built[key]


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Have Hugging Face's datasets read the files: its cache knows a file by path and time, and
    answers for one of before. Rows are kept in memory, since their folder is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="osora-datasets-") as folder,
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", folder),
        mock.patch.object(datasets.config, "IN_MEMORY_MAX_SIZE", sys.maxsize),
    ):
        yield


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
