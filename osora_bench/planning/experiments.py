"""The files of experiments/: what they may say, and reading them with what they include."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from osora_bench.common import paths
from osora_bench.common.errors import UserError, tell, unknown
from osora_bench.planning.search import MOST_EXTENSIONS, RATE, Search


@dataclass
class Block:
    """A product of choices; `set` overrides values for all its cells.

    Of the settings in `tune` (with `draws` and `extend`: search.py) each model, method and rank
    takes those that give the lowest loss on the task's `validation_rows`, tried with the
    experiment's first seed (`tuned_seed`: with that one) at its own rank (`tuned_rank`: at that
    one). `rates` are learning rates to tune.
    """

    model: list[str]
    method: list[str]
    rank: list[int] | None = None
    seed: list[int] | None = None
    rates: list[float] | None = None
    tune: dict[str, Any] | None = None
    draws: int | None = None
    extend: int = MOST_EXTENSIONS
    tuned_rank: int | None = None
    tuned_seed: int | None = None
    set: dict[str, Any] = field(default_factory=dict)

    @property
    def search(self) -> Search | None:
        """What is tried to choose settings, if any are chosen."""
        if self.rates is None and self.tune is None:
            return None
        rates = {} if self.rates is None else {RATE: self.rates}
        return Search({**rates, **(self.tune or {})}, self.draws, self.extend)


@dataclass
class Include:
    """The blocks of another experiment, or those cells of them that the lists name, as that
    experiment sets them, but for the ranks and seeds given here and what `set` says otherwise.
    Learning rates stay those that it chooses, at its own rank and seed."""

    experiment: str
    model: list[str] | None = None
    method: list[str] | None = None
    rank: list[int] | None = None
    seed: list[int] | None = None
    set: dict[str, Any] = field(default_factory=dict)


@dataclass
class TableSpec:
    """One table of an experiment; what the fields mean stands in reporting/tabulate.py."""

    layout: str
    title: str
    params: bool = False
    methods: list[str] | None = None
    select: list[dict[str, Any]] | None = None
    eval: str | None = None  # the suite whose cells are shown, where there are several
    baseline: str | None = None
    columns: list[str] | None = None
    headings: dict[str, str] = field(default_factory=dict)
    reference: str | None = None
    budget: int | None = None  # trainable parameters that the ranks were chosen for


@dataclass
class FigureSpec:
    """One figure of an experiment; what the kinds are stands in reporting/figures.py."""

    kind: str
    title: str
    methods: list[str] | None = None
    select: list[dict[str, Any]] | None = None  # as in TableSpec
    reference: str | None = None
    eval: str | None = None  # as in TableSpec
    cost: str | None = None  # of kind `costs`: which
    baseline: str | None = None  # of kind `forest`


@dataclass
class Experiment:
    """One file of experiments/: the grid of one artefact and how it is shown.

    With `trains: false` the grid is only counted or listed: there is nothing to run.
    """

    title: str
    seed: list[int]
    name: str = ""  # its file's
    include: list[Include] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)
    full: dict[str, Any] = field(default_factory=dict)  # set by scale=full, on top of `set`
    tables: dict[str, TableSpec] = field(default_factory=dict)
    figures: dict[str, FigureSpec] = field(default_factory=dict)
    trains: bool = True
    hint: str | None = None  # printed where the experiment cannot run on this machine


def load_experiment(name: str) -> Experiment:
    """Read experiments/<name>.yaml with the blocks of those that it includes.

    Raises:
        UserError: no such file, a key or value that the schema does not know, or nothing in it.
    """
    place = paths.experiment_file(name)
    try:
        experiment = OmegaConf.to_object(_read(place, place.read_bytes()))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"experiments/{place.name}: {error}") from error
    assert isinstance(experiment, Experiment)
    if experiment.name not in ("", name):
        raise UserError(f"experiments/{place.name}: is called {name}, not {experiment.name}")
    experiment.name = name
    blocks = [block for include in experiment.include for block in _included(include, place.name)]
    experiment.blocks = blocks + experiment.blocks
    if not any(block.model and block.method for block in experiment.blocks):
        raise UserError(f"experiments/{place.name}: no blocks with a model and a method: no cells")
    for block in experiment.blocks:
        _check_search(block, f"experiments/{place.name}")
    for include in reversed(experiment.include):
        experiment.full = {**load_experiment(include.experiment).full, **experiment.full}
    return experiment


def readable_experiments() -> list[Experiment]:
    """Every experiment, for what names none; those whose files are wrong are told and left out."""
    experiments = []
    for name in paths.experiment_files():
        try:
            experiments.append(load_experiment(name))
        except UserError as error:
            tell(f"left out, {error}")
    return experiments


@lru_cache(maxsize=64)
def _read(place: Path, content: bytes) -> Any:
    """The file while its bytes are `content`: others include it, and parsing it takes 20 ms."""
    return OmegaConf.merge(OmegaConf.structured(Experiment), OmegaConf.load(place))


def _included(include: Include, where: str) -> list[Block]:
    """The blocks that an include brings, with all that their own experiment sets."""
    other = load_experiment(include.experiment)
    for kind, selection in (("model", include.model), ("method", include.method)):
        available = {name for block in other.blocks for name in getattr(block, kind)}
        for name in set(selection or ()) - available:
            raise UserError(f"experiments/{where}: {unknown(f'included {kind}', name, available)}")
    blocks = []
    for block in other.blocks:
        block.model = [m for m in block.model if include.model is None or m in include.model]
        block.method = [m for m in block.method if include.method is None or m in include.method]
        block.set = {**other.set, **block.set, **include.set}
        if block.search is not None:
            block.tuned_seed = other.seed[0] if block.tuned_seed is None else block.tuned_seed
            if include.rank is not None and block.tuned_rank is None:
                block.tuned_rank = _only_rank(block, include.experiment)
        block.seed = include.seed or block.seed or other.seed
        block.rank = include.rank or block.rank
        blocks += [block] if block.model and block.method else []
    return blocks


def _check_search(block: Block, where: str) -> None:
    if block.rates is not None and block.tune is not None and RATE in block.tune:
        raise UserError(f"{where}: rates and tune both name {RATE}")
    if block.search is not None:
        block.search.check(where)
    elif block.draws is not None:
        raise UserError(f"{where}: draws={block.draws}, and nothing to draw from (tune)")


def _only_rank(block: Block, experiment: str) -> int:
    if block.rank is None or len(block.rank) != 1:
        raise UserError(
            f"experiments/{experiment}.yaml: settings are chosen at one rank where another "
            f"experiment takes them for its own ranks; {block.method} has {block.rank}"
        )
    return block.rank[0]
