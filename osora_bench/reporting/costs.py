"""What a method costs, from its records: one list for the table and the figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from osora_bench.records.schema import Record
from osora_bench.reporting.rows import Row


@dataclass(frozen=True)
class Cost:
    """One kind of cost: its heading, how a record tells it (None: it does not), how it is shown,
    and whether less of it is better."""

    heading: str
    of: Callable[[Record], float | None]
    form: str
    less: bool = True


def _parameter(key: str, unit: float = 1.0) -> Callable[[Record], float | None]:
    def of(record: Record) -> float | None:
        value = record["parameters"].get(key)
        return value / unit if isinstance(value, int) else None

    return of


def _measured(key: str, unit: float = 1.0) -> Callable[[Record], float | None]:
    def of(record: Record) -> float | None:
        value = dict(record["measured"].get("training", {})).get(key)
        return value / unit if isinstance(value, int | float) else None

    return of


def _memory(record: Record) -> float | None:
    """In MB (10^6 bytes), as all sizes here; the first records say it in 2^20 bytes."""
    if (own := _measured("memory_bytes", 1e6)(record)) is not None:
        return own
    return _measured("memory_mb", 1e6 / 2**20)(record)


def _forgotten(record: Record) -> float | None:
    found = record.get("forgetting")
    return None if found is None else found["after"] - found["before"]


COSTS = {
    "params": Cost("Params", _parameter("trainable"), "{:.0f}"),
    "adapter": Cost("Adapter, MB", _parameter("adapter_bytes", 1e6), "{:.3f}"),
    "frozen": Cost("Frozen, MB", _measured("frozen_bytes", 1e6), "{:.2f}"),
    "start": Cost("Start, s", _measured("start_seconds"), "{:.2f}"),
    "seconds": Cost("Training, s", _measured("seconds"), "{:.1f}"),
    "speed": Cost("Tokens/s", _measured("tokens_per_second"), "{:.0f}", less=False),
    "memory": Cost("Memory, MB", _memory, "{:.0f}"),
    "forgetting": Cost("Forgotten, nats", _forgotten, "{:+.3f}"),
}
"""By the name that an experiment gives it."""


def cost_of(row: Row, name: str) -> float | None:
    """The median over a method's runs; None where no record tells it, as old ones do not."""
    values = [value for run in row.runs if (value := COSTS[name].of(run)) is not None]
    return float(median(values)) if values else None


def pareto(points: Sequence[tuple[float, float]], *, less: bool = True) -> list[int]:
    """Positions of the (cost, score) pairs that no other matches at no more cost with a higher
    score, or at less cost with the same; `less`: whether less of the cost is better."""
    costs = [cost if less else -cost for cost, _ in points]
    scores = [score for _, score in points]
    return [
        i
        for i in range(len(points))
        if not any(
            costs[j] <= costs[i]
            and scores[j] >= scores[i]
            and (costs[j] < costs[i] or scores[j] > scores[i])
            for j in range(len(points))
        )
    ]
