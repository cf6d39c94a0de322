"""The types of a composed configuration; every value lives in conf/.

A field whose metadata says `identity=False` cannot change a cell's numbers and stays out of
its run id (names shown in tables, places on disk, how the work is split up).
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


def shown(default: Any = MISSING) -> Any:
    """Declare a field that only names or places things: no part of a cell's identity."""
    return field(default=default, metadata={"identity": False})


def through() -> Any:
    """Declare a field that others interpolate: it counts as what they make of it."""
    return field(default=MISSING, metadata={"identity": False, "through": True})


def later(default: Any) -> Any:
    """Declare an option that came after the first records: part of a cell's identity only where it
    is not its default, so that the run ids of those who do not use it stay."""
    return field(default=default, metadata={"later": True})


@dataclass
class ModelConfig:
    """A base model: a hub id, a local folder, or `pkg://package/folder` inside a package.

    `architecture` is the part of config.json that fixes every weight's shape: parameters are
    counted from it without any file, and a folder that holds something else is refused.
    """

    name: str = shown()
    label: str = shown()
    licence: str | None = shown(None)
    gated: bool = shown(False)  # the hub hands the weights to those only who accepted the licence
    architecture: dict[str, Any] | None = field(default=None, metadata={"identity": False})
    path: str = MISSING
    revision: str | None = MISSING
    dtype: str = MISSING
    chat: bool = MISSING
    target_modules: Any = MISSING  # once it is resolved, a list of names (planning/targets.py)
    needs_gpu: bool = shown()
    quantization: str | None = later(None)  # nf4, int8: linear layers but the output's


@dataclass
class MethodConfig:
    """A fine-tuning method: any PEFT configuration class; without one (`peft: null`) nothing is
    trained, or with `full` every weight of the base model. `start` names a function that is given
    the fresh PEFT model, for a start that the configuration class does not offer, `start_on_rows`
    one that is given batches of the first training rows as well; `callbacks` names
    classes of transformers' TrainerCallback for what has to happen between steps; `optimizer` is
    the function (`_target_`) and its settings that make another optimiser than the recipe's."""

    name: str = shown()
    label: str = shown()
    rank: int | None = through()
    rank_bounded: bool = shown()
    peft: dict[str, Any] | None = MISSING
    full: bool = False
    start: str | None = None
    start_on_rows: str | None = None
    callbacks: list[str] | None = None
    optimizer: dict[str, Any] | None = None


@dataclass
class ExcludeConfig:
    """Rows to leave out: those whose `column` has a value that the same column of `path` has."""

    path: str = MISSING
    rows: int = MISSING
    column: str = MISSING


@dataclass
class KeyConfig:
    """Which of several answers is a row's: that which `answers` names for the value of `column`,
    a template like the others."""

    column: str = MISSING
    answers: dict[str, str] = MISSING


@dataclass
class SourceConfig:
    """One file of training rows (JSON lines, JSON list or CSV) and how a row becomes a dialogue.

    `prompt` and `response` are `str.format` templates over the row's columns. Where `options`
    names columns (the right answer first), they are shuffled by the seed into {A}, {B}, ... and
    {answer} is the letter of the right one; where there is a `key`, {answer} is the right answer's
    text. Lines of a file `labels` are the rows' column {label}. `rows` is what the file holds;
    `first` takes only its first so many. Rows with one value in the column `group` are re-wordings
    of one another: `validation_rows` take all of them or none.
    """

    path: str = MISSING
    rows: int = MISSING
    prompt: str = MISSING
    response: str = MISSING
    options: list[str] | None = None
    first: int | None = None
    exclude: ExcludeConfig | None = None
    group: str | None = None
    labels: str | None = None
    key: KeyConfig | None = None


@dataclass
class TaskConfig:
    """What a cell trains on: the sources together, `max_rows` of them drawn by the seed.

    `validation_rows` of them, the same for every seed, are kept out of training; the loss on them
    at its end is in the record, to choose settings by. `even`: both are drawn evenly over the
    sources, so that a large one does not crowd out the others. `plain`: rows are text as it is
    scored by perplexity, without a chat template or an end token, whatever the model is. The loss
    on `retained`, a file of plain text that no row is of, is in the record before and after
    training: what was forgotten. `warning` is said wherever the task is run or its results are
    shown.
    """

    name: str = shown()
    label: str = shown()
    sources: list[SourceConfig] = MISSING
    loss_on: str = MISSING
    max_length: int = MISSING
    max_rows: int | None = MISSING
    validation_rows: int | None = later(None)
    retained: str | None = later(None)
    even: bool = later(False)
    plain: bool = later(False)
    warning: str | None = shown(None)

    @property
    def row_files(self) -> list[str]:
        """What its rows are read from: the sources' files, their labels, what they leave out."""
        labels = [s.labels for s in self.sources if s.labels is not None]
        excluded = [s.exclude.path for s in self.sources if s.exclude is not None]
        return [*(s.path for s in self.sources), *labels, *excluded]


@dataclass
class DatasetConfig:
    """One OpenCompass dataset: `config` is the name of a configuration that OpenCompass ships
    (`gsm8k_gen_1d7fe4`), or a dotted path `module:variable` to a list of our own. `abbr` is what
    the dataset is called there, if not `name`: a suite may score one set in two ways. `metric` is
    the number in its evaluator's result that is 100 k / n.

    `questions` is the number that the full set has; `limit` asks for the first so many only.
    `files` are what must lie in the data folder before anything runs. `split` and `shots` (worked
    examples in the prompt) say what `config` does; a test holds `shots` against it.
    """

    name: str = MISSING
    label: str = shown()
    config: str = MISSING
    questions: int = MISSING
    files: list[str] = MISSING
    split: str | None = shown(None)
    shots: int | None = shown(None)
    max_out_len: int | None = None
    limit: int | None = None
    abbr: str | None = later(None)
    metric: str = later("accuracy")


@dataclass
class EvalConfig:
    """A suite of OpenCompass datasets.

    `max_out_len` bounds the new tokens of an answer, also where a dataset's configuration has more.
    `limit` asks for so many questions of each set, evenly spread over it (`asked`). `without` names
    sets that are not to be scored; they stay blank, and so does an average over them. `batch_size`
    is the most rows of a batch (null: as many as the memory holds). `merge` adds the adapter into
    the base weights before evaluating, which rounds it to their precision. `backend` is
    `transformers`, or `vllm` on a GPU where that is installed.
    """

    name: str = shown()
    label: str = shown()
    datasets: list[DatasetConfig] = MISSING
    max_out_len: int = MISSING
    limit: int | None = later(None)
    without: list[str] | None = later(None)  # noqa: RUF009 (a field is made anew at each call)
    batch_size: int | None = shown(None)
    merge: bool = later(False)
    backend: str = later("transformers")

    @property
    def chosen(self) -> list[DatasetConfig]:
        """The sets that are to be scored."""
        return [d for d in self.datasets if d.name not in (self.without or ())]

    def asked(self, dataset: DatasetConfig) -> range:
        """The positions of the questions that are asked of a set: all, the first so many (the set's
        own `limit`), or so many evenly spread over it (the suite's)."""
        positions = range(dataset.questions)
        if dataset.limit is not None:
            return positions[: dataset.limit]
        if self.limit is None or self.limit >= len(positions):
            return positions
        return positions[:: len(positions) // self.limit][: self.limit]


@dataclass
class TrainerConfig:
    """Optimisation. `batch_size` is the effective one; `micro_batch_size` rows fit in memory.
    `checkpoint_minutes` lie between two checkpoints; null: one is written on a signal only.
    `processes` share the weights, each on a GPU of its own (docs/fsdp.md); 1: nothing is shared.
    `attention` is one of transformers' implementations, or `auto`: the fastest that computes the
    same."""

    learning_rate: float = MISSING
    batch_size: int = MISSING
    epochs: float = MISSING
    max_steps: int | None = MISSING
    warmup_ratio: float = MISSING
    schedule: str = MISSING
    weight_decay: float = MISSING
    optimizer: str = MISSING
    max_grad_norm: float = MISSING
    precision: str = MISSING
    micro_batch_size: int = shown()
    gradient_checkpointing: bool = shown()
    checkpoint_minutes: float | None = shown(10.0)
    processes: int = shown(1)
    attention: str = shown("auto")


@dataclass
class TrackerConfig:
    """Where live curves go; a record never depends on it. `mode` `auto`: online where the user is
    logged in. Runs are grouped by `group`: an experiment's cells by its name."""

    report_to: str = MISSING
    project: str | None = None
    group: str | None = None
    mode: str = "auto"


@dataclass
class Config:
    """One cell: model x method x rank x task x seed, and where its results go."""

    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    seed: int = MISSING
    tuning: dict[str, Any] | None = None  # the settings that were tried, with losses and run ids
    device: str = MISSING
    ledger: str = MISSING
    runs: str = MISSING

    @classmethod
    def of(cls, data: Mapping[str, Any], like: "Like | None" = None) -> "Config":
        """A configuration from plain data, a record's too.

        Args:
            like: another one, as plain data and as made of it: what the two share as plain data,
                they share as made.
        """
        like_data, like_config = like or ({}, None)
        shared = {k: getattr(like_config, k) for k, v in data.items() if v is like_data.get(k, ...)}
        config: Config = _typed(cls, data, shared)
        return config

    @property
    def chat(self) -> bool:
        """Whether training rows are dialogues for the model's chat template."""
        return self.model.chat and not self.task.plain

    @property
    def trains(self) -> bool:
        """Whether the method changes the model at all (`none` evaluates it as it is)."""
        return self.method.peft is not None or self.method.full

    @property
    def processes(self) -> int:
        """How many processes share the training; 1 where nothing is trained."""
        return self.trainer.processes if self.trains else 1


Like = tuple[Mapping[str, Any], Config]
"""A configuration as plain data and as made of it."""
GROUPS = ("model", "method", "task", "eval", "trainer", "tracker")

ConfigStore.instance().store(name="schema", node=Config)


def identity_of(section: Any) -> dict[str, Any]:
    """The part of a section that can change a cell's numbers, as plain data."""
    kind: type = type(section)
    values = ((f, getattr(section, f.name)) for f in _counted(kind))
    return {
        f.name: plain(value)
        for f, value in values
        if not (f.metadata.get("later") and value == f.default)
    }


@cache
def _counted(cls: type) -> list[dataclasses.Field[Any]]:
    fields = (f for f in dataclasses.fields(cls) if f.metadata.get("identity", True))
    return sorted(fields, key=lambda f: f.name)


def plain(node: Any) -> Any:
    """A section, or what a field of one holds, as data that JSON knows; what is plain already is
    not copied."""
    if isinstance(node, list):
        return [plain(value) for value in node]
    if not dataclasses.is_dataclass(node):
        return node
    return {f.name: plain(getattr(node, f.name)) for f in dataclasses.fields(node)}


def _typed(cls: type, node: Mapping[str, Any], shared: Mapping[str, Any] | None = None) -> Any:
    """A section from plain data. What it lacks, as a record does from before an option was there,
    is the option's default.

    Args:
        shared: fields that are made already.
    """
    values = dict(shared or {})
    for name, make in _makers(cls).items():
        if name in node and name not in values:
            values[name] = make(node[name])
    return cls(**values)


@cache
def _makers(cls: type) -> dict[str, Callable[[Any], Any]]:
    """By field, what makes its value of plain data."""
    hints = get_type_hints(cls)
    return {f.name: _maker(hints[f.name]) for f in dataclasses.fields(cls)}


def _maker(hint: Any) -> Callable[[Any], Any]:
    classes: list[Any] = [a for a in (hint, *get_args(hint)) if dataclasses.is_dataclass(a)]
    if not classes:
        return lambda value: value
    make = partial(_typed, classes[0])
    if get_origin(hint) is list:
        return lambda values: [make(value) for value in values]
    return lambda value: None if value is None else make(value)
