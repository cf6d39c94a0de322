"""What a record holds. A part that came after the first records is not required: they lack it."""

from typing import Any, NotRequired, TypedDict


class Code(TypedDict):
    """The commit that ran, whether files differed from it, and a hash of how; None: not known."""

    commit: str | None
    dirty: bool | None
    diff: str | None


class Circumstances(TypedDict):
    """Under what a cell ran: its code, the versions of what computes, the hardware."""

    code: Code
    versions: dict[str, str]
    hardware: dict[str, Any]
    changed_since_plan: NotRequired[bool]


class Provenance(Circumstances):
    """Circumstances, and what was read: the model's revision, and each file's content by path."""

    revision: str
    fingerprints: dict[str, str]


class Parameters(TypedDict, total=False):
    """How many numbers were trained, and the bytes of the adapter's file; empty if it diverged."""

    trainable: int
    adapter_bytes: int


class ValidationRecord(TypedDict):
    """The mean loss (nats) of so many tokens in rows that were kept out of training."""

    rows: int
    tokens: int
    loss: float


class TrainingRecord(TypedDict, total=False):
    """What came of a training; of one that diverged, only why."""

    steps: int
    rows: int
    truncated_rows: int
    tokens: int
    loss: list[list[float]]  # [step, mean loss since the last one]
    validation: ValidationRecord | None
    diverged: str


class Corrected(TypedDict):
    """A score without a known mistake of OpenCompass's reading, and by which rule."""

    rule: str
    k: int
    right: str
    differ: int


class ScoreRecord(TypedDict):
    """One set's score: `k` of `n` asked questions right, of `questions` that the set has."""

    k: int
    n: int
    questions: int
    accuracy: float
    right: str  # the verdict of each question, as `record.pack` packs them
    unread: int
    too_long: int
    cut: NotRequired[int]
    unjudged: NotRequired[int]
    corrected: Corrected | None


class TrainingCosts(TypedDict):
    """Of a training: the adapter's last start, the loop over all its parts (None: an earlier one's
    seconds are not known), tokens without padding a second, the most memory above that of the base
    model, and the bytes that the adapter holds beside what is trained. Where processes share the
    model: seconds of the first, and its memory above its part of model and adapter; tokens and
    frozen bytes are the whole model's. The first records had `memory_mb`, in MiB."""

    start_seconds: float
    seconds: float | None
    tokens_per_second: float | None
    memory_bytes: int
    frozen_bytes: int


class ForgettingRecord(TypedDict):
    """The mean loss (nats) of so many tokens of plain text before and after training."""

    tokens: int
    before: float
    after: float


class LeakageRecord(TypedDict):
    """How many of a set's asked questions stand whole in a training row, and how many others share
    a stretch of words with one (benchdata/overlap.py)."""

    exact: int
    near: int
    questions: int


class Measured(TypedDict):
    """Costs: the only part in which two runs of a cell may differ."""

    seconds: dict[str, float]  # by stage; none if it diverged
    starts: int
    peak_memory_mb: int  # 2^20 bytes each
    finished: str  # UTC, ISO 8601
    training: NotRequired[TrainingCosts]


class Record(TypedDict):
    """One run of a cell. `config` is its configuration as plain data, without places."""

    run_id: str
    config: dict[str, Any]
    provenance: Provenance
    parameters: Parameters
    training: TrainingRecord | None  # None: nothing was trained
    scores: dict[str, ScoreRecord]  # by set
    not_run: NotRequired[dict[str, str]]  # by set, what was left out and why
    forgetting: NotRequired[ForgettingRecord]  # where the task names a text
    leakage: NotRequired[dict[str, LeakageRecord]]  # by set; of the others nothing was found
    measured: Measured
    schema: NotRequired[int]  # these two are added when it is written
    sha256: NotRequired[str]
