"""The cells of the experiments that tests name."""

from collections.abc import Sequence

from osora_bench.planning.cell import Cell
from osora_bench.planning.experiments import load_experiment
from osora_bench.planning.grid import Expansion, expansion


def expansion_of(name: str, overrides: Sequence[str] = ()) -> Expansion:
    """All cells of an experiment."""
    return expansion(load_experiment(name), overrides)


def cells_of(name: str, overrides: Sequence[str] = ()) -> list[Cell]:
    """Those that are known."""
    return expansion_of(name, overrides).cells
