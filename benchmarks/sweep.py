"""The whole sweep beside the plain way, cell by cell.

    python -m benchmarks.sweep cells=all

The plain way is a process a cell that trains with transformers and PEFT, and an `opencompass`
command that scores it, in its own debug mode, which starts no further processes: `sides/` holds
both as a competent user would write them. The harness runs the cells in one process. Both take the
same recipe, and the scores are printed beside each other; where an adapter starts from random
numbers, they may be others, and the scores differ by what seeds do. The limit are the products with
the weights, of training and of reading the questions once, and nothing else.
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config as OpenCompassConfig
from transformers import AutoModelForCausalLM

from benchmarks.rows import (
    ROOT,
    Row,
    cost_of,
    faster_precision,
    need_data,
    need_smollm2,
    quartiles,
    run,
)
from benchmarks.training import floor
from osora_bench.common import paths
from osora_bench.evaluation import suites
from osora_bench.models.weights import location
from osora_bench.planning.cell import Cell, cell_of
from osora_bench.planning.compose import compose, composer, resolve
from osora_bench.planning.config import plain
from osora_bench.planning.experiments import load_experiment
from osora_bench.planning.grid import expansion

DEMO = ("none", "lora r=16", "osora r=64", "pissa r=16")
"""What stands for the demo's cells: each of the others is of one of these methods or like one."""
LIKE = {"vera": "osora", "dora": "lora"}
SMOLLM2 = [
    "model=smollm2-135m", "task=commonsense", "trainer=commonsense",
    "task.loss_on=answer", "task.max_rows=128", "trainer.batch_size=8",
    "trainer.micro_batch_size=8", "trainer.learning_rate=1e-3",
    "trainer.gradient_checkpointing=false",
    "eval=commonsense-0shot", "eval.limit=24", "eval.max_out_len=16",
    "eval.without=[BoolQ,piqa,siqa,hellaswag,winogrande,ARC-e]",
]  # fmt: skip
"""A cell of experiments/smollm2-commonsense.yaml with fewer rows, sets and questions."""
SHARED_BY = 17
"""Cells that share the harness's start: those of the demo."""
STOCK_BATCH = {"toy": 64, "smollm2-135m": 16}
"""Of the sizes 8 to 128 that with which OpenCompass's wrapper is fastest here."""


TOKENS_A_QUESTION = 60
GOAL = 3


@dataclass
class Ran:
    """What became of a cell: processor seconds, of training and of all, and its scores by set."""

    training: float
    total: float
    scores: dict[str, float]


def run_plain(cell: Cell, folder: Path) -> Ran:
    """Train and score a cell the plain way."""
    folder.mkdir()
    training, adapter = 0.0, None
    if cell.config.trains:
        adapter = folder / "adapter"
        place = folder / "cell.json"
        place.write_text(json.dumps(recipe(cell)), encoding="utf-8")
        training = _cost("plain_training", [place, adapter], folder / "training.log")
    config = folder / "to_score.py"
    opencompass_config(cell, adapter).dump(str(config))
    scoring = _cost(
        "plain_opencompass", [config, "--debug", "-w", folder / "scored"], folder / "scoring.log"
    )
    found = (folder / "scored").glob("*/results/*/*.json")
    scores = {one.stem: json.loads(one.read_text())["accuracy"] for one in found}
    return Ran(training, training + scoring, scores)


def _cost(module: str, arguments: Sequence[Any], log: Path) -> float:
    command = [sys.executable, "-m", f"benchmarks.sides.{module}", *map(str, arguments)]
    # OpenCompass leaves a cache in the folder where it is started
    folder = log.parent if module == "plain_opencompass" else ROOT
    return cost_of(command, log, folder=folder).processor


def recipe(cell: Cell) -> dict[str, Any]:
    """A cell's configuration for the plain training: files by their places, PiSSA by PEFT's."""
    told = plain(cell.config)
    told["model"]["path"] = location(cell.config.model)
    for source in told["task"]["sources"]:
        source["path"] = str(paths.data_file(source["path"]))
    if cell.config.method.name == "pissa":
        told["method"]["peft"]["init_lora_weights"] = "pissa"
    return told


def opencompass_config(cell: Cell, adapter: Path | None) -> OpenCompassConfig:
    """What a user of OpenCompass writes for a model with an adapter."""
    cfg = cell.config
    model = {
        "type": "opencompass.models.HuggingFacewithChatTemplate",
        "abbr": "model",
        "path": location(cfg.model),
        "model_kwargs": {"device_map": "cpu", "torch_dtype": f"torch.{cfg.model.dtype}"},
        "max_out_len": cfg.eval.max_out_len,
        "batch_size": STOCK_BATCH[cfg.model.name],
        "run_cfg": {"num_gpus": 0},
    }
    if adapter is not None:
        model["peft_path"] = str(adapter)
    sets = suites.prepare(cfg.eval, Path(cfg.runs)).values()
    asked = [{k: by_name(v) for k, v in one.items() if k != "content"} for one in sets]
    return OpenCompassConfig({"datasets": asked, "models": [model]})


def by_name(value: Any) -> Any:
    """A part of a configuration with classes and functions by their names, as a file has them."""
    if isinstance(value, dict):
        return {k: by_name(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [by_name(v) for v in value]
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else value


def run_harness(cells: Sequence[Cell], folder: Path) -> tuple[float, dict[str, Ran]]:
    """Run cells in one process: seconds of its start, and each cell by its run id."""
    todo, costs = folder / "cells.json", folder / "costs.json"
    todo.write_text(json.dumps([list(cell.overrides) for cell in cells]), encoding="utf-8")
    total = _cost("harness", [todo, costs], folder / "harness.log")
    spent = json.loads(costs.read_text(encoding="utf-8"))
    ran = {}
    for cell in cells:
        record = json.loads(cell.record.read_text(encoding="utf-8"))
        scores = {name: one["accuracy"] for name, one in record["scores"].items()}
        ran[cell.run_id] = Ran(0.0, spent[cell.run_id], scores)
    return total - sum(spent.values()), ran


def demo_cells(which: str, places: Sequence[str]) -> tuple[list[Cell], list[float]]:
    """Cells of the demo to run, and how many of its cells each stands for."""
    everything = expansion(load_experiment("demo"), places).cells
    if which == "all":
        return everything, [1.0] * len(everything)
    by_label = {_short(cell): cell for cell in everything}
    kinds = Counter(LIKE.get(name := cell.config.method.name, name) for cell in everything)
    return [by_label[label] for label in DEMO], [kinds[label.split()[0]] for label in DEMO]


def smollm2_cells(places: Sequence[str]) -> tuple[list[Cell], list[float]]:
    """Two cells of a real model; each stands for as many."""
    precision = faster_precision()
    chosen = [*SMOLLM2, f"model.dtype={precision}", f"trainer.precision={precision}", *places]
    told = [[*chosen, f"method={m}", f"method.rank={r}"] for m, r in
            (("lora", 16), ("osora", 64))]  # fmt: skip
    with composer():
        cells = [cell_of(resolve(compose(one, "sweep"), "sweep"), one) for one in told]
    return cells, [SHARED_BY / len(cells)] * len(cells)


def _short(cell: Cell) -> str:
    rank = cell.config.method.rank
    return cell.config.method.name + ("" if rank is None else f" r={rank}")


def least(cell: Cell, rate: float) -> float:
    """Seconds of the products alone, at `rate` tokens of training a second; a question is as long
    as a training row and read forward only."""
    training = json.loads(cell.record.read_text(encoding="utf-8")).get("training")
    asked = sum(len(cell.config.eval.asked(one)) for one in cell.config.eval.chosen)
    if training is None:
        return asked * TOKENS_A_QUESTION / (2 * rate)
    steps = cell.config.trainer.batch_size * training["steps"]
    return training["tokens"] / rate + asked * training["tokens"] / steps / (2 * rate)


def compare(name: str, cells: Sequence[Cell], weights: Sequence[float], folder: Path) -> Row:
    """Run the cells both ways; print each, and return the row of them all."""
    start, ours = run_harness(cells, folder)
    base = AutoModelForCausalLM.from_pretrained(location(cells[0].config.model))
    base.lm_head = torch.nn.Identity()  # of few tokens only
    rate = floor(base, getattr(torch, cells[0].config.model.dtype))
    sums, ratios, apart = [0.0, 0.0, 0.0], [], 0.0
    for cell, weight in zip(cells, weights, strict=True):
        theirs, here = run_plain(cell, folder / cell.run_id), ours[cell.run_id]
        mine = here.total + start / SHARED_BY
        ratios.append(theirs.total / mine)
        apart = max(apart, *(abs(theirs.scores[k] - here.scores[k]) for k in here.scores))
        for i, spent in enumerate((theirs.total, mine, least(cell, rate))):
            sums[i] += weight * spent
        print(f"    {cell.label}: plain {theirs.training:.1f} s of training, {theirs.total:.1f} in "
              f"all; here {mine:.1f}; {ratios[-1]:.2f} times; points, plain {told(theirs)}, here "
              f"{told(here)}", flush=True)  # fmt: skip
    low, _, high = quartiles(ratios)
    ratio, count = sums[0] / sums[1], sum(weights)
    return Row(
        name, (low, ratio, high), sums[0] / sums[2], f"≥ {GOAL}",
        f"{sums[0] / count:.1f} / {sums[1] / count:.1f} s a cell, start of {start:.1f} s shared by "
        f"{SHARED_BY}; points differ by at most {apart:.1f}",
        ratio < GOAL,
    )  # fmt: skip


def told(ran: Ran) -> str:
    """Its scores."""
    return " and ".join(f"{score:.1f}" for _, score in sorted(ran.scores.items()))


def rows(*, cells: str = "some", smollm2: bool = True) -> Iterator[Row]:
    """`cells=all`: each of the demo's; `smollm2=False`: without the real model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "toy"
        folder.mkdir()
        chosen = demo_cells(cells, [f"runs={folder}/runs", f"ledger={folder}/ledger"])
        yield compare("sweep, demo: the plain way / here, all cells (quartiles of cells)",
                      *chosen, folder)  # fmt: skip
    if not smollm2:
        return
    need_smollm2()
    need_data("commonsenseqa", "ARC", "openbookqa")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = smollm2_cells([f"runs={folder}/runs", f"ledger={folder}/ledger"])
        yield compare("sweep, SmolLM2-135M, LoRA and OSoRA, "
                      f"{chosen[0][0].config.model.dtype}: the plain way / here",
                      *chosen, folder)  # fmt: skip


if __name__ == "__main__":
    run(rows)
