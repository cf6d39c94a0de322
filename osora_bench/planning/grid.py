"""experiment -> cells -> run ids -> state. Imports no torch, so that planning starts at once."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from osora_bench.common.errors import UserError, unknown
from osora_bench.planning import bounds, smoke
from osora_bench.planning.bounds import Bounds
from osora_bench.planning.cell import Cell, State, cell_of
from osora_bench.planning.compose import check_overrides, compose, composer, vary, written
from osora_bench.planning.experiments import Block, Experiment
from osora_bench.planning.search import RATE, Outcome, Point
from osora_bench.records import record


def _as_overrides(values: dict[str, Any]) -> list[str]:
    return [f"{key}={written(value)}" for key, value in values.items()]


RATES = "learning rates"


@dataclass(frozen=True)
class Waiting:
    """A cell whose settings are not chosen yet: here with the first that are tried."""

    cell: Cell
    trials: list[Cell]
    what: str = RATES

    @property
    def left(self) -> list[Cell]:
        """The trials that its choice lacks; if there are none, all have diverged."""
        return [trial for trial in self.trials if validation_loss(trial) is None]

    @property
    def why(self) -> str:
        """What it waits for."""
        count, remaining = len(self.trials), len(self.left)
        if not remaining:
            hint = "name smaller ones" if self.what == RATES else "name others"
            return f"all {count} {self.what} that were tried diverged: {hint}"
        return f"for the choice of one of {count} {self.what}, {remaining} not tried yet"


@dataclass(frozen=True)
class Expansion:
    """The cells of an experiment that are known, those that wait for some of them, and what must be
    known of how settings are chosen."""

    cells: list[Cell]
    waiting: list[Waiting]
    notes: list[str] = field(default_factory=list)

    @property
    def everything(self) -> list[Cell]:
        """All cells, for what shows them: those that wait have no record."""
        return [*self.cells, *(entry.cell for entry in self.waiting)]


def merged(expansions: Iterable[Expansion]) -> Expansion:
    """Several experiments as one, what they share once."""
    cells: dict[str, Cell] = {}
    waiting: dict[tuple[str, ...], Waiting] = {}
    notes: dict[str, None] = {}
    for part in expansions:
        notes |= dict.fromkeys(part.notes)
        for cell in part.cells:
            cells.setdefault(cell.run_id, cell)
        for entry in part.waiting:  # alike only if the same trials decide
            waiting.setdefault((entry.cell.run_id, *(t.run_id for t in entry.trials)), entry)
    return Expansion(list(cells.values()), list(waiting.values()), list(notes))


def expansion(experiment: Experiment, overrides: Sequence[str] = ()) -> Expansion:
    """All cells of an experiment in its order, each once, `overrides` on top of its settings.

    `scale=smoke` among the overrides makes each cell its tiny version (smoke.py), `scale=full` adds
    what the experiment sets under `full`, `methods=a,b` leaves the cells of its other methods out.
    Hydra composes each distinct choice once; values, ranks
    and seeds are set on copies of it before interpolations are resolved, which gives what composing
    every cell would. Cells share what they have in common: a configuration is read, never changed.

    Raises:
        UserError: anything wrong with the experiment, its grid or the overrides.
    """
    cells: dict[str, Cell] = {}
    waiting: dict[str, Waiting] = {}
    grid = _grid(experiment, overrides)
    with composer():
        for block in grid.blocks:
            for entry in grid.block(block):
                if isinstance(entry, Waiting):
                    waiting.setdefault(entry.cell.run_id, entry)
                else:
                    cells.setdefault(entry.run_id, entry)
    notes = dict.fromkeys(
        f"{key}: {block.search.space[key]} is not extended where the best is at its end"
        for block in grid.blocks
        if block.search is not None
        for key in block.search.fixed
    )
    return Expansion(list(cells.values()), list(waiting.values()), list(notes))


def made_up(experiment: Experiment, overrides: Sequence[str] = ()) -> smoke.MadeUp | None:
    """What the cells of an experiment read that `scale=smoke` makes up; None at another scale.

    Raises:
        UserError: as of `expansion`, whose cells have their run ids only once it is written.
    """
    grid = _grid(experiment, overrides)
    if grid.scale != "smoke":
        return None
    with composer():
        models = dict(tiny for block in grid.experiment.blocks for tiny in grid.tiny_models(block))
    return smoke.MadeUp(smoke.data_folder(grid.overrides), models)


def _grid(experiment: Experiment, overrides: Sequence[str]) -> "Grid":
    """The grid of an experiment, `overrides` checked; raises UserError."""
    scale, overrides = _scale(overrides)
    methods, overrides = _methods(experiment, overrides)
    check_overrides(overrides)
    for override in overrides:
        if override.split("=")[0] in ("model", "method", "seed", "method.rank"):
            raise UserError(
                f"{override}: experiments/{experiment.name}.yaml says which models, methods, ranks "
                "and seeds are run; `python -m osora_bench -m` runs a grid of your own"
            )
    _check_not_tuned(experiment, overrides)
    return Grid(experiment, overrides, scale, methods)


def _check_not_tuned(experiment: Experiment, overrides: Sequence[str]) -> None:
    """Raise UserError if an override names what the experiment chooses: the choice would win."""
    searches = (block.search for block in experiment.blocks)
    tuned = {key for search in searches if search is not None for key in search.space}
    for override in overrides:
        if (key := override.split("=")[0].lstrip("+~")) in tuned:
            raise UserError(
                f"{override}: experiments/{experiment.name}.yaml chooses {key} by the loss on "
                "held-out rows; change its `rates` or `tune`, in a copy of the file if records "
                "of it are to stay"
            )


def _scale(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    scale, others = _taken(overrides, "scale")
    if scale is not None and scale not in smoke.SCALES:
        raise UserError(unknown("scale", scale, smoke.SCALES))
    return scale, others


def _methods(experiment: Experiment, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which of an experiment's methods are meant: all, or those that `methods=a,b` names."""
    given, others = _taken(overrides, "methods")
    available = list(dict.fromkeys(m for block in experiment.blocks for m in block.method))
    if given is None:
        return available, others
    names = given.strip("[]").split(",")
    for name in names:
        if name not in available:
            raise UserError(unknown(f"method of experiment {experiment.name}", name, available))
        if names.count(name) > 1:
            raise UserError(f"methods={given}: {name} is named twice")
    return names, others


def _taken(overrides: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """What `name=` says, the last time that it stands there, and the other overrides."""
    values = [o.partition("=")[2] for o in overrides if o.startswith(f"{name}=")]
    return values[-1] if values else None, [o for o in overrides if not o.startswith(f"{name}=")]


Values = dict[str, Any]
"""Settings by dotted key."""


@dataclass
class Grid:
    """Makes the cells of one experiment's blocks. Used inside `composer()`."""

    experiment: Experiment
    overrides: Sequence[str]
    scale: str | None
    methods: Sequence[str]  # those of the experiment's that are meant
    content: dict[str, str] = field(default_factory=dict)  # of files, by path

    @property
    def blocks(self) -> Iterator[Block]:
        """The experiment's, with the methods that are meant."""
        for block in self.experiment.blocks:
            if names := [name for name in block.method if name in self.methods]:
                yield replace(block, method=names)

    def block(self, block: Block) -> Iterator[Cell | Waiting]:
        """The cells of a block; of one whose settings are chosen, first those that try them."""
        values = self._values(block)
        seeds = block.seed or self.experiment.seed
        ranks: Sequence[int | None] = [None] if block.rank is None else block.rank
        for choice in itertools.product(block.model, block.method):
            if block.search is None:
                yield from self.cells(choice, values, _variants(ranks, seeds))
            else:
                for rank in ranks:
                    yield from self._tuned(choice, values, block, rank, seeds)

    def tiny_models(self, block: Block) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The folder and the architecture of each tiny model that a block's smoke version names."""
        for choice in itertools.product(block.model, block.method):
            composed = self._composed(choice, self._values(block))
            largest = _largest_rank(self.experiment, choice[0])
            if tiny := smoke.tiny_model(composed.model, self.overrides, largest):
                yield tiny

    def _values(self, block: Block) -> Values:
        full = self.experiment.full if self.scale == "full" else {}
        return {"tracker.group": self.experiment.name, **self.experiment.set, **block.set, **full}

    def _tuned(
        self,
        choice: tuple[str, str],
        values: Values,
        block: Block,
        rank: int | None,
        seeds: Sequence[int],
    ) -> Iterator[Cell | Waiting]:
        """The cells that try a block's settings for one model, method and rank, and those that use
        the best: its loss on the held-out rows is the lowest. One that diverges is not taken."""
        trials, found = self._searched(choice, values, block, rank)
        yield from trials
        chosen = found.points[0] if found.best is None else found.best
        what = RATES if list(chosen) == [RATE] else "settings"
        for cell in self.cells(choice, values, _variants([rank], seeds, [chosen])):
            if found.best is None:
                planned = replace(cell, config=replace(cell.config, tuning={"tried": []}))
                yield Waiting(planned, trials, what)
            else:
                yield replace(cell, config=replace(cell.config, tuning=_tuning(trials, found)))

    def _searched(
        self, choice: tuple[str, str], values: Values, block: Block, rank: int | None
    ) -> tuple[list[Cell], Outcome]:
        """The cells that try a block's settings, and what is known of the best."""
        assert block.search is not None
        trial_values = {k: v for k, v in values.items() if k.partition(".")[0] != "eval"}
        trial_values["eval"] = "none"
        seed = self.experiment.seed[0] if block.tuned_seed is None else block.tuned_seed
        trial_rank = rank if block.tuned_rank is None else block.tuned_rank
        trials: list[Cell] = []

        def trials_of(points: Sequence[Point]) -> list[Cell]:
            for point in points:
                check_overrides(_as_overrides(point))
            variants = _variants([trial_rank], [seed], points)
            return list(self.cells(choice, trial_values, variants)) if points else []

        def losses_of(points: Sequence[Point]) -> list[float | None]:
            trials.extend(trials_of(points[len(trials) :]))
            if not trials[0].config.trains:
                raise UserError(f"{self._where(choice)}: it trains nothing, there is no choice")
            return [validation_loss(trial) for trial in trials]

        def refused(point: Point) -> str | None:
            try:
                trials_of([point])
            except UserError as error:
                return str(error).splitlines()[-1].strip()
            return None

        def bounds_of(key: str, point: Point) -> Bounds:
            if key not in bounds.IN_CONFIG:
                return bounds.of_key(key)
            (trial,) = trials_of([point])
            return bounds.in_config(key, trial.config)

        found = block.search.tried(seed, losses_of, refused, bounds_of)
        marked = [_marked(t, p, found) for t, p in zip(trials, found.points, strict=True)]
        return marked, found

    def cells(
        self, choice: tuple[str, str], values: Values, variants: Sequence[Values]
    ) -> Iterator[Cell]:
        """One cell for each variant of a model and a method."""
        own_overrides, user_overrides = self._chosen(choice, values)
        where = self._where(choice)
        composed = self._composed(choice, values)
        if self.scale is not None:
            largest = _largest_rank(self.experiment, choice[0])
            if additions := smoke.SCALES[self.scale](composed, user_overrides, largest):
                own_overrides += additions
                composed = compose([*own_overrides, *user_overrides], where)
        overrides = [*own_overrides, *user_overrides]
        for cfg, variant in zip(vary(composed, variants, where), variants, strict=True):
            yield cell_of(cfg, [*overrides, *_as_overrides(variant)], self.content)

    def _composed(self, choice: tuple[str, str], values: Values) -> DictConfig:
        """The configuration of a model and a method, at its own scale, unresolved."""
        own_overrides, user_overrides = self._chosen(choice, values)
        overrides, where = [*own_overrides, *user_overrides], self._where(choice)
        check_overrides(overrides, where=where)
        return compose(overrides, where)

    def _chosen(self, choice: tuple[str, str], values: Values) -> tuple[list[str], Sequence[str]]:
        """The overrides that are the experiment's own, and those given by hand on top of them."""
        model, method = choice
        user_overrides = self.overrides
        if values.get("eval") == "none":  # nothing is asked, however few questions were wanted
            user_overrides = [o for o in user_overrides if not o.startswith("eval.")]
        return [f"model={model}", f"method={method}", *_as_overrides(values)], user_overrides

    def _where(self, choice: tuple[str, str]) -> str:
        return f"experiments/{self.experiment.name}.yaml: {' '.join(choice)}"


def _variants(
    ranks: Sequence[int | None], seeds: Sequence[int], points: Sequence[Point] = ({},)
) -> list[Values]:
    """`points` are tuned settings, and may name a rank of their own."""
    return [
        {"seed": seed, **({} if rank is None else {"method.rank": rank}), **point}
        for rank in ranks
        for point in points
        for seed in seeds
    ]


def _marked(trial: Cell, point: Point, found: Outcome) -> Cell:
    """A trial with what it tries and, if it is chosen, whether that is at an end."""
    trial = replace(trial, tries=tuple(f"{_short(key)}={value}" for key, value in point.items()))
    if point is not found.best:
        return trial
    return replace(
        trial,
        edges=tuple(map(_short, found.edges)),
        ended=tuple(f"{_short(key)}={point[key]}: {why}" for key, why in found.ended),
        refused=tuple(f"{_short(key)}={value}: {why}" for key, value, why in found.refused),
    )


def _short(key: str) -> str:
    """`rate`, `lora_alpha`: the last part of a key."""
    return "rate" if key == RATE else key.rpartition(".")[2]


def _tuning(trials: Sequence[Cell], found: Outcome) -> dict[str, Any]:
    """What a record says of how its settings were chosen; the loss of what diverged is null. `edge`
    are the keys whose chosen value is the first or last tried, though there may be more beyond."""
    losses = [validation_loss(trial) for trial in trials]
    tried = [
        {**point, "loss": None if loss == math.inf else loss, "run": trial.run_id}
        for trial, point, loss in zip(trials, found.points, losses, strict=True)
    ]
    return {"tried": tried, **({"edge": list(found.edges)} if found.edges else {})}


def validation_loss(trial: Cell) -> float | None:
    """The loss on the held-out rows that a cell's record holds, infinite where the training
    diverged; None as long as there is no record."""
    if trial.state != State.DONE:
        return None
    validation = record.held_out_loss(record.read_record(trial.record))
    return validation["loss"] if validation and math.isfinite(validation["loss"]) else math.inf


def _largest_rank(experiment: Experiment, model: str) -> int:
    blocks = [block for block in experiment.blocks if model in block.model]
    return max((rank for block in blocks for rank in block.rank or ()), default=1)
