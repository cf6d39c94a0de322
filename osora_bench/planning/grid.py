"""experiment -> cells -> run ids -> state. Imports no torch, so that planning starts at once."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from osora_bench import NUMERICS_VERSION
from osora_bench.common import claim, files, paths
from osora_bench.common.errors import UserError, unknown
from osora_bench.common.fingerprint import fingerprint
from osora_bench.planning import smoke
from osora_bench.planning.compose import check_overrides, compose, composer, vary
from osora_bench.planning.config import (
    DatasetConfig,
    EvalConfig,
    MethodConfig,
    ModelConfig,
    TaskConfig,
    TrainerConfig,
    identity_of,
)
from osora_bench.planning.experiments import Block, Experiment, load_experiment
from osora_bench.records import record

WAITING = "waiting"
"""State of a cell whose learning rate is not chosen yet; it has no run id as long."""
STATES = ("done", "running", "queued", "missing", "failed", "damaged", WAITING)


@dataclass(frozen=True)
class Cell:
    """One cell of a plan: its identity, its resolved configuration, and how to compose it."""

    run_id: str
    config: dict[str, Any]
    overrides: tuple[str, ...]

    @property
    def paths(self) -> paths.RunPaths:
        return paths.RunPaths(Path(self.config["runs"]), self.run_id)

    @property
    def ledger(self) -> Path:
        return Path(self.config["ledger"])

    @property
    def record(self) -> Path:
        return self.ledger / f"{self.run_id}.json"

    @property
    def holder(self) -> dict[str, Any] | None:
        """Where it runs now and since when, or None."""
        return claim.holder(self.paths.folder)

    @property
    def error(self) -> str:
        """The first line of what made it fail."""
        return self._failure()["error"].partition("\n")[0]

    @property
    def failed(self) -> str:
        """When it failed (UTC, ISO 8601)."""
        return self._failure()["time"]

    def _failure(self) -> dict[str, str]:
        try:
            told: dict[str, str] = json.loads(self.paths.failure.read_text(encoding="utf-8"))
        except FileNotFoundError:  # it was started again just now
            return {"error": "why it failed is not known", "time": ""}
        except ValueError as error:
            return {"error": f"{self.paths.failure} cannot be read ({error})", "time": ""}
        if not isinstance(told, dict) or not {"error", "time"} <= told.keys():
            return {"error": f"{self.paths.failure} does not say why it failed", "time": ""}
        return told

    def fail(self, error: str, trace: str | None = None) -> None:
        """Write a failure beside the run."""
        when = datetime.now(UTC).isoformat(timespec="microseconds")
        told = json.dumps({"error": error, "time": when, "traceback": trace}, indent=1)
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        files.write(self.paths.failure, told)

    @property
    def label(self) -> str:
        """`toy lora r=8 seed=0`, for progress lines and messages."""
        rank = self.config["method"]["rank"]
        parts = [self.config["model"]["name"], self.config["method"]["name"]]
        parts += [] if rank is None else [f"r={rank}"]
        parts += [f"seed={self.config['seed']}"] if trains(self.config) else []
        if self.tries_rate:  # one of several
            parts.append(f"rate={self.config['trainer']['learning_rate']}")
        return " ".join(parts)

    @property
    def tries_rate(self) -> bool:
        """Whether all that is wanted of it is the loss on the held-out rows."""
        return not self.config["eval"]["datasets"]

    @property
    def state(self) -> str:
        """`done`, `damaged` (a record that cannot be read), `running`, `failed` or `missing`."""
        if self.record.exists():
            return "done" if record.is_whole(self.record) else "damaged"
        if self.holder is not None:
            return "running"
        return "failed" if self.paths.failure.exists() else "missing"


def trains(cfg: dict[str, Any]) -> bool:
    """Whether the method changes the model at all (`none` evaluates it as it is)."""
    return cfg["method"]["peft"] is not None or bool(cfg["method"]["full"])


def processes(cfg: dict[str, Any]) -> int:
    """How many processes share the training of a cell; 1 where nothing is trained."""
    return int(cfg["trainer"]["processes"]) if trains(cfg) else 1


def identity(cfg: dict[str, Any], content: dict[str, str] | None = None) -> dict[str, Any]:
    """All that can change the numbers of a cell, with the content that paths point to (`content`:
    what `fingerprints` has found before).

    A model or data file on disk counts by its bytes, wherever it lies; a hub repository by its
    pinned revision. Without training, task, trainer and seed cannot matter.
    """
    content = fingerprints(cfg, content)
    model = identity_of(cfg["model"], ModelConfig)
    if model["path"] in content:
        model = {**model, "path": content[model["path"]], "revision": None}
    suite = identity_of(cfg["eval"], EvalConfig)
    suite["datasets"] = [
        {**identity_of(d, DatasetConfig), "files": [content[f] for f in d["files"]]}
        for d in suite["datasets"]
    ]
    result = {"numerics_version": NUMERICS_VERSION, "model": model, "eval": suite}
    if trains(cfg):
        task = identity_of(cfg["task"], TaskConfig)
        task["sources"] = [_source(s, content) for s in task["sources"]]
        result |= {
            "method": _told(identity_of(cfg["method"], MethodConfig)),
            "task": task,
            "trainer": identity_of(cfg["trainer"], TrainerConfig),
            "seed": cfg["seed"],
        }
    return result


def _told(node: dict[str, Any]) -> dict[str, Any]:
    """What is set; so that an option added later leaves the run ids of those who do not use it."""
    return {key: value for key, value in node.items() if value is not None and value is not False}


def _source(source: dict[str, Any], content: dict[str, str]) -> dict[str, Any]:
    """A source with its files' content in place of their paths."""
    told = _told(source)
    told["path"] = content[source["path"]]
    if source["exclude"] is not None:
        told["exclude"] = {**source["exclude"], "path": content[source["exclude"]["path"]]}
    return told


def revision(cfg: dict[str, Any]) -> str:
    """The pinned revision of a hub repository, `local` for files on disk, or `UNPINNED`."""
    if paths.resolve(cfg["model"]["path"]) is not None:
        return "local"
    return cfg["model"]["revision"] or "UNPINNED"


def fingerprints(cfg: dict[str, Any], known: dict[str, str] | None = None) -> dict[str, str]:
    """The content of every file and folder on disk that a configuration names, by its path.

    What is not there is taken to be what the records of the ledger were made with: tables need no
    more than records. If there is none, it gets a mark that lets a plan be made; no cell can run
    under either, since the files are required before anything starts.

    Args:
        known: what is known already, and is not looked at again; what is found is added to it.
    """
    known = {} if known is None else known
    named = [f for d in cfg["eval"]["datasets"] for f in d["files"]]
    if trains(cfg):
        sources = cfg["task"]["sources"]
        named += [s["path"] for s in sources]
        named += [s["exclude"]["path"] for s in sources if s["exclude"] is not None]
    for path in named:
        if path not in known:
            known[path] = _content(path, paths.data_file(path), cfg["ledger"])
    model = cfg["model"]["path"]
    if model not in known and (place := paths.resolve(model)) is not None:
        known[model] = _content(model, place, cfg["ledger"])
    return {path: known[path] for path in (*named, model) if path in known}


def _content(path: str, place: Path, ledger: str) -> str:
    if place.exists():
        return fingerprint(place)
    return record.contents(Path(ledger)).get(record.portable(path), f"absent:{path}")


def run_id(cfg: dict[str, Any], content: dict[str, str] | None = None) -> str:
    """Twelve hexadecimal digits of the identity's sha256."""
    return _short(identity(cfg, content))


def training_id(cfg: dict[str, Any]) -> str:
    """The same for the training alone: cells that differ in their suite only have one."""
    return _short({key: value for key, value in identity(cfg).items() if key != "eval"})


def _short(identified: dict[str, Any]) -> str:
    canonical = json.dumps(identified, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def cell(
    cfg: dict[str, Any], overrides: Sequence[str] = (), content: dict[str, str] | None = None
) -> Cell:
    """The cell of one resolved configuration."""
    return Cell(run_id(cfg, content), cfg, tuple(overrides))


def _as_overrides(values: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@dataclass(frozen=True)
class Waiting:
    """A cell whose learning rate is not chosen yet: here with one of the rates that are tried."""

    cell: Cell
    trials: list[Cell]

    @property
    def left(self) -> list[Cell]:
        """The trials that its choice lacks; if there are none, all have diverged."""
        return [trial for trial in self.trials if validation_loss(trial) is None]

    @property
    def why(self) -> str:
        """What it waits for."""
        count, left = len(self.trials), len(self.left)
        if not left:
            return f"all {count} learning rates that were tried diverged: name smaller ones"
        return f"for the choice of one of {count} learning rates, {left} not tried yet"


@dataclass(frozen=True)
class Expansion:
    """The cells of an experiment that are known, and those that wait for some of them."""

    cells: list[Cell]
    waiting: list[Waiting]

    @property
    def everything(self) -> list[Cell]:
        """All cells, for what shows them: those that wait have no record."""
        return [*self.cells, *(one.cell for one in self.waiting)]


def together(expansions: Iterable[Expansion]) -> Expansion:
    """Several experiments as one, what they share once."""
    cells: dict[str, Cell] = {}
    waiting: dict[tuple[str, ...], Waiting] = {}
    for one in expansions:
        for cell in one.cells:
            cells.setdefault(cell.run_id, cell)
        for each in one.waiting:  # alike only if the same trials decide
            waiting.setdefault((each.cell.run_id, *(t.run_id for t in each.trials)), each)
    return Expansion(list(cells.values()), list(waiting.values()))


def expand(name: str, overrides: Sequence[str] = ()) -> list[Cell]:
    """The cells of an experiment that are known: `expansion` without what waits."""
    return expansion(name, overrides).cells


def expansion(name: str, overrides: Sequence[str] = ()) -> Expansion:
    """All cells of an experiment in its order, each once, `overrides` on top of its settings.

    `scale=smoke` among the overrides makes each cell its tiny version (smoke.py), `scale=full` adds
    what the experiment sets under `full`. Hydra composes each distinct choice once; values, ranks
    and seeds are set on copies of it before interpolations are resolved, which gives what composing
    every cell would. Cells share what they have in common: a configuration is read, never changed.

    Raises:
        UserError: anything wrong with the experiment, its grid or the overrides.
    """
    experiment = load_experiment(name)
    scale, overrides = _scale(overrides)
    check_overrides(overrides)
    for override in overrides:
        if override.split("=")[0] in ("model", "method", "seed", "method.rank"):
            raise UserError(
                f"{override}: experiments/{name}.yaml says which models, methods, ranks and seeds "
                "are run; `python -m osora_bench -m` runs a grid of your own"
            )
    cells: dict[str, Cell] = {}
    waiting: dict[str, Waiting] = {}
    grid = Grid(name, experiment, overrides, scale)
    with composer():
        for block in experiment.blocks:
            for made in grid.block(block):
                if isinstance(made, Waiting):
                    waiting.setdefault(made.cell.run_id, made)
                else:
                    cells.setdefault(made.run_id, made)
    return Expansion(list(cells.values()), list(waiting.values()))


def _scale(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    named = [o.removeprefix("scale=") for o in overrides if o.startswith("scale=")]
    if named and named[-1] not in smoke.SCALES:
        raise UserError(unknown("scale", named[-1], smoke.SCALES))
    return named[-1] if named else None, [o for o in overrides if not o.startswith("scale=")]


Values = dict[str, Any]
"""Settings by dotted key."""


@dataclass
class Grid:
    """Makes the cells of one experiment's blocks. Used inside `composer()`."""

    name: str
    experiment: Experiment
    overrides: Sequence[str]
    scale: str | None
    content: dict[str, str] = field(default_factory=dict)  # of files, by path

    def block(self, block: Block) -> Iterator[Cell | Waiting]:
        """The cells of a block; of one with `rates`, first those that try them."""
        full = self.experiment.full if self.scale == "full" else {}
        values = {"tracker.group": self.name, **self.experiment.set, **block.set, **full}
        seeds = block.seed or self.experiment.seed
        ranks: Sequence[int | None] = [None] if block.rank is None else block.rank
        for choice in itertools.product(block.model, block.method):
            if block.rates is None:
                yield from self.cells(choice, values, _variants(ranks, seeds))
            else:
                for rank in ranks:
                    yield from self._tuned(choice, values, block, rank, seeds)

    def _tuned(
        self,
        choice: tuple[str, str],
        values: Values,
        block: Block,
        rank: int | None,
        seeds: Sequence[int],
    ) -> Iterator[Cell | Waiting]:
        """The cells that try a block's rates for one model, method and rank, and those that use the
        best: its loss on the held-out rows is the lowest. One that diverges is not taken."""
        assert block.rates is not None
        unasked = {k: v for k, v in values.items() if k.partition(".")[0] != "eval"}
        first = self.experiment.seed[0] if block.tuned_seed is None else block.tuned_seed
        tried_at = rank if block.tuned_rank is None else block.tuned_rank
        trials = list(
            self.cells(
                choice, {**unasked, "eval": "none"}, _variants([tried_at], [first], block.rates)
            )
        )
        yield from trials
        losses = [validation_loss(trial) for trial in trials]
        known = [loss for loss in losses if loss is not None]
        done = len(known) == len(losses) and min(known) < math.inf
        best = block.rates[losses.index(min(known))] if done else block.rates[0]
        told = [None if loss == math.inf else loss for loss in losses]
        for made in self.cells(choice, values, _variants([rank], seeds, [best])):
            if done:
                tuning = {
                    "trainer.learning_rate": dict(zip(map(str, block.rates), told, strict=True)),
                    "runs": [trial.run_id for trial in trials],
                }
                yield replace(made, config={**made.config, "tuning": tuning})
            else:
                yield Waiting(made, trials)

    def cells(
        self, choice: tuple[str, str], values: Values, variants: Sequence[Values]
    ) -> Iterator[Cell]:
        """One cell for each variant of a model and a method."""
        model, method = choice
        overrides = self.overrides
        if values.get("eval") == "none":  # nothing is asked, however few questions were wanted
            overrides = [o for o in overrides if not o.startswith("eval.")]
        chosen = [f"model={model}", f"method={method}", *_as_overrides(values), *overrides]
        where = f"experiments/{self.name}.yaml: {model} {method}"
        check_overrides(chosen)
        composed = compose(chosen, where)
        if self.scale is not None:
            largest = _largest_rank(self.experiment, model)
            if smaller := smoke.SCALES[self.scale](composed, overrides, largest):
                chosen = [*chosen[: -len(overrides) or None], *smaller, *overrides]
                composed = compose(chosen, where)
        for resolved, variant in zip(vary(composed, variants, where), variants, strict=True):
            yield cell(resolved, [*chosen, *_as_overrides(variant)], self.content)


def _variants(
    ranks: Sequence[int | None], seeds: Sequence[int], rates: Sequence[float] | None = None
) -> list[Values]:
    return [
        {
            "seed": seed,
            **({} if rank is None else {"method.rank": rank}),
            **({} if rate is None else {"trainer.learning_rate": rate}),
        }
        for rank in ranks
        for rate in rates or (None,)
        for seed in seeds
    ]


def validation_loss(trial: Cell) -> float | None:
    """The loss on the held-out rows that a cell's record holds, infinite where the training
    diverged; None as long as there is no record."""
    if trial.state != "done":
        return None
    training = record.read(trial.record)["training"]
    return math.inf if "diverged" in training else float(training["validation"]["loss"])


def _largest_rank(experiment: Experiment, model: str) -> int:
    blocks = [block for block in experiment.blocks if model in block.model]
    return max((rank for block in blocks for rank in block.rank or ()), default=1)
