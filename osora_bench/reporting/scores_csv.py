"""Every answer of an experiment as one long CSV: a row a question, for pandas, R or rliable."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from osora_bench.records.record import unpack
from osora_bench.records.schema import Record
from osora_bench.reporting.rows import Row

COLUMNS = (
    "model", "method", "rank", "learning_rate", "seed", "run_id", "task", "suite",
    "set", "question", "right", "right_corrected",
)  # fmt: skip


def write_scores(rows: Sequence[Row], place: Path) -> int:
    """Write the answers of all finished runs; return how many. `question` counts those that were
    asked of a set, from 0; `right_corrected` is blank where a set has no correction, the learning
    rate where nothing is trained."""
    frames = [
        frame
        for row in rows
        for run in row.runs
        for frame in _frames(run, trains=row.cell.config.trains)
    ]
    place.parent.mkdir(parents=True, exist_ok=True)
    table = pd.concat(frames) if frames else pd.DataFrame(columns=COLUMNS)
    table.to_csv(place, index=False, columns=list(COLUMNS))
    return len(table)


def _frames(run: Record, *, trains: bool) -> list[pd.DataFrame]:
    config = run["config"]
    own = {
        "model": config["model"]["name"],
        "method": config["method"]["name"],
        "rank": config["method"]["rank"],
        "learning_rate": config["trainer"]["learning_rate"] if trains else None,
        "seed": config["seed"],
        "run_id": run["run_id"],
        "task": config["task"]["name"],
        "suite": config["eval"]["name"],
    }
    frames = []
    for name, score in run["scores"].items():
        count, corrected = score["n"], score.get("corrected")
        frame = pd.DataFrame({"question": range(count), "right": unpack(score["right"], count)})
        mended = unpack(corrected["right"], count) if corrected else [None] * count
        frame = frame.assign(**own, set=name, right_corrected=mended)
        frames.append(frame.astype({"right": "Int8", "right_corrected": "Int8"}))
    return frames
