"""Live curves, on request. A record never depends on them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from osora_bench.plan import Cell


@contextmanager
def tracking(cell: Cell) -> Iterator[dict[str, Any]]:
    """One Weights & Biases run for the cell if its tracker says so; the Trainer logs into it.

    Yields:
        A dictionary whose content, at the end, becomes the run's summary.
    """
    tracker = cell.config["tracker"]
    summary: dict[str, Any] = {}
    if tracker["report_to"] != "wandb":
        yield summary
        return
    import wandb

    run = wandb.init(
        project=tracker["project"],
        mode=tracker["mode"],
        name=cell.label,
        dir=str(cell.paths.folder),
        config={**cell.config, "run_id": cell.run_id},
        settings=wandb.Settings(silent=True),
        reinit="finish_previous",
    )
    try:
        yield summary
    finally:
        run.summary.update(summary)
        run.finish()


def log(entry: dict[str, Any]) -> None:
    """Log into the cell's run, if it has one, what the Trainer of another process said, as
    transformers does in its own."""
    if "wandb" not in sys.modules or sys.modules["wandb"].run is None:
        return
    from transformers.integrations.integration_utils import rewrite_logs

    values = {key: value for key, value in entry.items() if key != "step"}
    sys.modules["wandb"].log({**rewrite_logs(values), "train/global_step": entry["step"]})
