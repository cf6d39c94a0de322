"""A cell's curves as TensorBoard's event files. Imported in the tracker's own process only."""

import json
from pathlib import Path
from typing import Any

from tensorboard.summary import Writer


class TensorBoardRun:
    """Event files in a folder of the cell's; one that is started again adds to them."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.folder = Path(arguments["folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        told = {key: arguments[key] for key in ("name", "id", "config")}
        (self.folder / "config.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        self.writer = Writer(str(self.folder))
        self.step = 0

    def log(self, values: dict[str, float]) -> None:
        """The values of a step."""
        self.step = int(values["step"])
        for name, value in values.items():
            if name != "step":
                self.writer.add_scalar(name, value, step=self.step)
        self.writer.flush()

    def end(self, summary: dict[str, Any], failed: bool) -> None:
        """The numbers of the whole cell, at its last step, and whether it failed."""
        for name, value in {**summary, "failed": int(failed)}.items():
            self.writer.add_scalar(name, float(value), step=self.step)
        self.writer.close()
