"""A fair comparison of methods as an experiment: equal searches for each, several seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256

from osora_bench.planning.experiments import Block, Experiment, FigureSpec, TableSpec

LONGEST = 100
"""Characters of a folder's name."""
COLUMNS = ("method", "rank", "learning_rate", "params", "datasets", "average")
"""Of the table of accuracies."""
FACTORS = (1 / 3, 1.0, 3.0)
"""Of the trainer's own learning rate, where no rates are given: a grid that grows where it ends."""


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Args:
        ranks: by method, where it is not the method's own.
        rates: learning rates that each method is tried at.
        held_out: rows that no run trains on, which choose the rate.
        budget: trainable parameters that the ranks were chosen for.
        settings: what else is set, `key=value`, that changes the cells.
    """

    model: str
    task: str
    suite: str
    methods: Sequence[str]
    baseline: str
    seeds: int
    rates: Sequence[float]
    held_out: int
    ranks: Mapping[str, int]
    budget: int | None = None
    settings: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Of its tables and figures: what was compared on what, and a mark of all else that was
        asked for, so that another comparison has another name and the same one its own again."""
        asked = {**asdict(self), "settings": sorted(self.settings)}
        mark = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
        parts = [self.model, self.task, *([] if self.suite == self.task else [self.suite])]
        matched = [] if self.budget is None else [f"{self.budget}-parameters"]
        name = "-".join([*parts, *self.methods, *matched, mark])
        if len(name) <= LONGEST:
            return name
        return f"{'-'.join(parts)}-{len(self.methods)}-methods-{mark}"

    @property
    def title(self) -> str:
        """What was compared on what, and what was asked for besides."""
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        rates = f"rates {', '.join(f'{rate:g}' for rate in self.rates)}"
        budget = [] if self.budget is None else [f"near {self.budget:,} parameters"]
        on = [self.model, self.task, *([] if self.suite == self.task else [self.suite])]
        asked = [*on, seeds, rates, f"{self.held_out} rows held out", *budget, *self.settings]
        return f"{', '.join(self.methods)} on {', '.join(asked)}"

    def experiment(self) -> Experiment:
        """Its cells and tables."""
        return Experiment(
            title=self.title,
            name=self.name,
            seed=list(range(self.seeds)),
            set={"task": self.task, "eval": self.suite, "task.validation_rows": self.held_out},
            blocks=[Block([self.model], ["none"]), *(self._block(m) for m in self.methods)],
            tables=self._tables(),
            figures=self._figures(),
        )

    def _block(self, method: str) -> Block:
        rank = [self.ranks[method]] if method in self.ranks else None
        return Block([self.model], [method], rank=rank, rates=list(self.rates))

    def _tables(self) -> dict[str, TableSpec]:
        on = f"{self.model}, {self.task}"
        tables = {
            "ranking": TableSpec("ranking", f"Methods by average, {on}", baseline=self.baseline),
            "accuracy": TableSpec(
                "methods", f"Accuracy, {on}", columns=list(COLUMNS), budget=self.budget
            ),
            "against": TableSpec(
                "against", f"{self.baseline} beside every other method", baseline=self.baseline
            ),
            "costs": TableSpec("costs", f"What it costs, {on}"),
        }
        for spec in tables.values():
            spec.eval = self.suite
        tables["tuning"] = TableSpec(
            "tuning", "Loss on held-out rows by learning rate", eval="none"
        )
        return tables

    def _figures(self) -> dict[str, FigureSpec]:
        figures = {
            f"cost-{cost}": FigureSpec("costs", f"Accuracy against cost, {self.task}", cost=cost)
            for cost in ("params", "seconds", "memory")
        }
        figures["forest"] = FigureSpec("forest", "Differences", baseline=self.baseline)
        for spec in figures.values():
            spec.eval = self.suite
        return figures
