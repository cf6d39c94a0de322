"""A cell's run in MLflow. Imported in the tracker's own process only."""

from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

TAG = "osora_bench.run_id"
LONGEST = 500
"""Characters of a parameter that every version of a server takes."""
BATCH = 100
"""Parameters that a server takes at once."""


class MlflowRun:
    """A run of the cell's id; one that is started again goes on in the run of its first start."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.client = MlflowClient(arguments["uri"])
        experiment = self._experiment(arguments["project"])
        found = self.client.search_runs([experiment], f"tags.`{TAG}` = '{arguments['id']}'")
        if found:
            self.run = found[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
        else:
            tags = {TAG: arguments["id"], "group": arguments["group"] or ""}
            made = self.client.create_run(experiment, tags=tags, run_name=arguments["name"])
            self.run = made.info.run_id
            self._tell(arguments["config"])
        self.step = 0

    def _experiment(self, name: str) -> str:
        """The id of an experiment, which another cell may be making at this moment."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _tell(self, config: dict[str, Any]) -> None:
        params = [Param(key, value[:LONGEST]) for key, value in flat(config).items()]
        for first in range(0, len(params), BATCH):
            self.client.log_batch(self.run, params=params[first : first + BATCH])

    def log(self, values: dict[str, float]) -> None:
        """The values of a step."""
        self.step = int(values["step"])
        self._metrics({name: value for name, value in values.items() if name != "step"})

    def _metrics(self, values: dict[str, float]) -> None:
        metrics = [Metric(name, float(value), 0, self.step) for name, value in values.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def end(self, summary: dict[str, Any], failed: bool) -> None:
        """The numbers of the whole cell, at its last step, and whether it failed."""
        if summary:
            self._metrics(summary)
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


def flat(config: Any, prefix: str = "") -> dict[str, str]:
    """A configuration by dotted key: `method.peft.r`."""
    items = config.items() if isinstance(config, dict) else enumerate(config)
    found: dict[str, str] = {}
    for key, value in items:
        name = f"{prefix}{key}"
        if isinstance(value, dict | list) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = str(value)
    return found
