"""scale=smoke: the files that it makes up are written before the cells are planned."""

import os
from collections.abc import Sequence

from osora_bench.benchdata.made_up import write_data
from osora_bench.common import paths
from osora_bench.models.made_up import write_models
from osora_bench.planning.experiments import Experiment
from osora_bench.planning.grid import Expansion, expansion, made_up


def planned(experiment: Experiment, overrides: Sequence[str]) -> Expansion:
    """An experiment's cells, what they read at smoke scale written first; raises as `make_up`."""
    make_up(experiment, overrides)
    return expansion(experiment, overrides)


def make_up(experiment: Experiment, overrides: Sequence[str]) -> None:
    """Write what an experiment's smoke version reads, and have it read here and in every process
    that is started from here; at another scale nothing is done.

    Raises:
        UserError: anything wrong with the experiment, its grid or the overrides.
    """
    inputs = made_up(experiment, overrides)
    if inputs is None:
        return
    write_data(inputs.data)
    os.environ[paths.DATA] = str(inputs.data)
    write_models(inputs.models)
