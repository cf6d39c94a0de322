"""experiment -> cells -> run ids -> state. Imports no torch, so that planning starts at once."""

import copy
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osora_bench import NUMERICS_VERSION, claim, config, paths, record, smoke
from osora_bench.compose import check_overrides, compose, composer, resolve
from osora_bench.errors import UserError, unknown
from osora_bench.fingerprint import fingerprint

STATES = ("done", "running", "queued", "missing", "failed", "damaged")


@dataclass
class Block:
    """A product of choices; `set` overrides values for all its cells."""

    model: list[str]
    method: list[str]
    rank: list[int] | None = None
    seed: list[int] | None = None
    set: dict[str, Any] = field(default_factory=dict)


@dataclass
class Include:
    """The blocks of another experiment, or those cells of them that the lists name, as that
    experiment sets them, but for what `set` says otherwise."""

    experiment: str
    model: list[str] | None = None
    method: list[str] | None = None
    set: dict[str, Any] = field(default_factory=dict)


@dataclass
class TableSpec:
    """One table of an experiment; what the fields mean stands in tabulate.py."""

    layout: str
    title: str
    params: bool = False
    methods: list[str] | None = None
    select: list[dict[str, Any]] | None = None
    columns: list[str] | None = None
    headings: dict[str, str] = field(default_factory=dict)
    reference: str | None = None


@dataclass
class FigureSpec:
    """One figure of an experiment; what the kinds are stands in report.py."""

    kind: str
    title: str
    methods: list[str] | None = None
    reference: str | None = None


@dataclass
class Experiment:
    """One file of experiments/: the grid of one artefact and how it is shown.

    With `trains: false` the grid is only counted or listed: there is nothing to run.
    """

    title: str
    seed: list[int]
    include: list[Include] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, TableSpec] = field(default_factory=dict)
    figures: dict[str, FigureSpec] = field(default_factory=dict)
    trains: bool = True
    hint: str | None = None  # printed where the experiment cannot run on this machine


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
        told: dict[str, str] = json.loads(self.paths.failure.read_text(encoding="utf-8"))
        return told

    def fail(self, error: str, trace: str | None = None) -> None:
        """Write a failure beside the run."""
        when = datetime.now(UTC).isoformat(timespec="microseconds")
        told = json.dumps({"error": error, "time": when, "traceback": trace}, indent=1)
        temporary = self.paths.failure.with_suffix(".tmp")
        temporary.write_text(told, encoding="utf-8")
        temporary.replace(self.paths.failure)

    @property
    def label(self) -> str:
        """`toy lora r=8 seed=0`, for progress lines and messages."""
        rank = self.config["method"]["rank"]
        parts = [self.config["model"]["name"], self.config["method"]["name"]]
        parts += [] if rank is None else [f"r={rank}"]
        parts += [f"seed={self.config['seed']}"] if trains(self.config) else []
        return " ".join(parts)

    @property
    def state(self) -> str:
        """`done`, `damaged` (a record that cannot be read), `running`, `failed` or `missing`."""
        if self.record.exists():
            try:
                record.read(self.record)
            except record.DamagedRecord:
                return "damaged"
            return "done"
        if self.holder is not None:
            return "running"
        return "failed" if self.paths.failure.exists() else "missing"


def trains(cfg: dict[str, Any]) -> bool:
    """Whether the method changes the model at all (`none` evaluates it as it is)."""
    return cfg["method"]["peft"] is not None or bool(cfg["method"]["full"])


def processes(cfg: dict[str, Any]) -> int:
    """How many processes share the training of a cell; 1 where nothing is trained."""
    return int(cfg["trainer"]["processes"]) if trains(cfg) else 1


def identity(cfg: dict[str, Any]) -> dict[str, Any]:
    """All that can change the numbers of a cell, with the content that paths point to.

    A model or data file on disk counts by its bytes, wherever it lies; a hub repository by its
    pinned revision. Without training, task, trainer and seed cannot matter.
    """
    content = fingerprints(cfg)
    model = config.identity_of(cfg["model"], config.ModelConfig)
    if model["path"] in content:
        model = {**model, "path": content[model["path"]], "revision": None}
    suite = config.identity_of(cfg["eval"], config.EvalConfig)
    suite["datasets"] = [
        {**config.identity_of(d, config.DatasetConfig), "files": [content[f] for f in d["files"]]}
        for d in suite["datasets"]
    ]
    result = {"numerics_version": NUMERICS_VERSION, "model": model, "eval": suite}
    if trains(cfg):
        task = config.identity_of(cfg["task"], config.TaskConfig)
        task["sources"] = [_source(s, content) for s in task["sources"]]
        result |= {
            "method": _told(config.identity_of(cfg["method"], config.MethodConfig)),
            "task": task,
            "trainer": config.identity_of(cfg["trainer"], config.TrainerConfig),
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


def fingerprints(cfg: dict[str, Any]) -> dict[str, str]:
    """The content of every file and folder on disk that a configuration names, by its path.

    What is not there gets a mark that lets a plan be made; no cell can run under it, since the
    files are required before anything starts.
    """
    places = {f: paths.data_file(f) for d in cfg["eval"]["datasets"] for f in d["files"]}
    if trains(cfg):
        sources = cfg["task"]["sources"]
        sources = sources + [s["exclude"] for s in sources if s["exclude"] is not None]
        places |= {s["path"]: paths.data_file(s["path"]) for s in sources}
    model = paths.resolve(cfg["model"]["path"])
    if model is not None:
        places[cfg["model"]["path"]] = model
    return {
        path: fingerprint(place) if place.exists() else f"absent:{path}"
        for path, place in places.items()
    }


def run_id(cfg: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of the identity's sha256."""
    canonical = json.dumps(identity(cfg), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def cell(cfg: dict[str, Any], overrides: Sequence[str] = ()) -> Cell:
    """The cell of one resolved configuration."""
    return Cell(run_id(cfg), cfg, tuple(overrides))


def load_experiment(name: str) -> Experiment:
    """Read experiments/<name>.yaml with the blocks of those that it includes.

    Raises:
        UserError: no such file, or a key or value that the schema does not know.
    """
    place = paths.experiment_file(name)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Experiment), OmegaConf.load(place))
        loaded = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"experiments/{place.name}: {error}") from error
    assert isinstance(loaded, Experiment)
    included = [block for part in loaded.include for block in _included(part, place.name)]
    loaded.blocks = included + loaded.blocks
    return loaded


def _included(part: Include, where: str) -> list[Block]:
    """The blocks that an include brings, with all that their own experiment sets."""
    other = load_experiment(part.experiment)
    for kind, wanted in (("model", part.model), ("method", part.method)):
        there = {name for block in other.blocks for name in getattr(block, kind)}
        for name in set(wanted or ()) - there:
            raise UserError(f"experiments/{where}: {unknown(f'included {kind}', name, there)}")
    blocks = []
    for block in other.blocks:
        block.model = [m for m in block.model if part.model is None or m in part.model]
        block.method = [m for m in block.method if part.method is None or m in part.method]
        block.set = {**other.set, **block.set, **part.set}
        block.seed = block.seed or other.seed
        blocks += [block] if block.model and block.method else []
    return blocks


def _as_overrides(values: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def expand(name: str, overrides: Sequence[str] = ()) -> list[Cell]:
    """All cells of an experiment in its order, each once, `overrides` on top of its settings.

    `scale=smoke` among the overrides makes each cell its tiny version (smoke.py). Hydra composes
    each distinct choice once; ranks and seeds are set on copies of it before interpolations are
    resolved, which gives what composing every cell would.

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
    with composer():
        for block in experiment.blocks:
            for made in _block_cells(name, experiment, block, overrides, scale):
                cells.setdefault(made.run_id, made)
    return list(cells.values())


def _scale(overrides: Sequence[str]) -> tuple[str, list[str]]:
    scale = ([o.removeprefix("scale=") for o in overrides if o.startswith("scale=")] or ["full"])[
        -1
    ]
    if scale not in smoke.SCALES:
        raise UserError(unknown("scale", scale, smoke.SCALES))
    return scale, [o for o in overrides if not o.startswith("scale=")]


def _block_cells(
    name: str, experiment: Experiment, block: Block, overrides: Sequence[str], scale: str
) -> list[Cell]:
    cells = []
    for model, method in itertools.product(block.model, block.method):
        values = _as_overrides({**experiment.set, **block.set})
        chosen = [f"model={model}", f"method={method}", *values, *overrides]
        where = f"experiments/{name}.yaml: {model} {method}"
        check_overrides(chosen)
        composed = compose(chosen, where)
        if smaller := smoke.SCALES[scale](composed, overrides, _largest_rank(experiment, model)):
            chosen = [*chosen[: -len(overrides) or None], *smaller, *overrides]
            composed = compose(chosen, where)
        ranks: list[int | None] = [*block.rank] if block.rank is not None else [None]
        for rank, seed in itertools.product(ranks, block.seed or experiment.seed):
            varied, more = _vary(composed, rank, seed)
            cells.append(cell(resolve(varied, where), [*chosen, *more]))
    return cells


def _largest_rank(experiment: Experiment, model: str) -> int:
    blocks = [block for block in experiment.blocks if model in block.model]
    return max((rank for block in blocks for rank in block.rank or ()), default=1)


def _vary(composed: DictConfig, rank: int | None, seed: int) -> tuple[DictConfig, list[str]]:
    varied = copy.deepcopy(composed)
    more = [f"seed={seed}"]
    varied.seed = seed
    if rank is not None:
        varied.method.rank = rank
        more.append(f"method.rank={rank}")
    return varied, more
