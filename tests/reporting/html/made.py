"""Ledgers that pages are made of: two methods at some ranks, two seeds each, whole records."""

from dataclasses import replace

from osora_bench.planning.cell import cell_of
from osora_bench.planning.experiments import Experiment, load_experiment
from osora_bench.records import record
from osora_bench.reporting.html.report import Part
from tests.grids import cells_of
from tests.reporting.test_tabulate import made

EXPERIMENT = """\
title: Two methods at three ranks
seed: [0, 1]
set: {task: toy, eval: toy, ledger: results/ledger}
blocks:
  - {model: [toy], method: [none]}
  - {model: [toy], method: [lora, osora], rank: [2, 4, 8]}
tables:
  scores: {layout: methods, title: Accuracy, columns: [method, rank, params, datasets, average]}
  ranks: {layout: ranks, title: By rank, methods: [lora, osora]}
"""
HOSTILE = "<script>alert(1)</script>"


def whole(cell, right, **measured):
    """A record with all that a page shows."""
    body = made(cell, right)
    for place in ("ledger", "runs", "device", "tracker"):
        del body["config"][place]
    body["provenance"] = {
        "code": {"commit": "0123456789abcdef", "dirty": False, "diff": None},
        "versions": {"torch": "2.13.0"},
        "hardware": {"device": "cpu", "threads": 1},
        "revision": "local",
        "fingerprints": dict(cell.fingerprints),
    }
    body["measured"] = {
        "finished": "2026-11-25T15:42:22+00:00", "peak_memory_mb": 100, "starts": 1,
        "seconds": {"train": 5.0, "evaluate": 1.0, "load": 0.5, "total": 6.5}, **measured,
    }  # fmt: skip
    if cell.config.trains:
        loss = [[step, 2.0 / step] for step in range(1, 50)]
        body["training"] = {"steps": 49, "rows": 100, "tokens": 500, "truncated_rows": 0,
                            "loss": loss, "validation": None}  # fmt: skip
    for score in body["scores"].values():
        score |= {"unread": 1, "too_long": 0, "corrected": None}
    return body


def part_of(folder, monkeypatch, paths, *, hostile=False) -> Part:
    """The experiment with a record of each cell but the last, in a ledger of its own."""
    experiments = folder / "experiments"
    experiments.mkdir(parents=True, exist_ok=True)
    (experiments / "two.yaml").write_text(EXPERIMENT)
    monkeypatch.setattr(paths, "EXPERIMENTS", experiments)
    experiment: Experiment = load_experiment("two")
    cells = cells_of("two", [f"ledger={folder}/ledger"])
    if hostile:
        experiment.title += HOSTILE
        cells = [renamed(cell) for cell in cells]
    for place, cell in enumerate(cells[:-1]):
        training = {"start_seconds": 0.5, "seconds": 10.0 + place, "tokens_per_second": 90.0,
                    "memory_mb": 12.0, "frozen_bytes": 2_000_000}  # fmt: skip
        extra = {"training": training} if cell.config.trains else {}
        finished = f"2026-11-{9 + 5 * place % 13:02}T15:42:22+00:00"
        body = whole(cell, (100 + 20 * place, 300 - 10 * place), finished=finished, **extra)
        record.write_record(body, folder / "ledger")
    return Part(experiment, cells)


def renamed(cell):
    """A cell whose labels would be a page's end."""
    config = cell.config
    model = replace(config.model, label=f"Model{HOSTILE}")
    method = replace(config.method, label=f"{config.method.label}</script>{HOSTILE}")
    return cell_of(replace(config, model=model, method=method), cell.overrides)
