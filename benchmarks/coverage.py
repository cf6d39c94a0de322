"""Whether intervals and tests keep what they say: ledgers are drawn with known effects.

    python benchmarks/coverage.py --ledgers 1000

Two methods answer the same questions with several seeds; how hard a question is, is the same for
both, partly or nearly decided by itself, and seeds differ by 0, 1 or 3 points. A row a setting: how
often the 95 % interval holds the true difference (0), how often either wins though none is better,
and the interval's mean width beside that of 1.96 normal errors in which the questions' noise counts
twice, as this project's were before.
"""

import argparse
from typing import Any

import numpy as np

from osora_bench.reporting.statistics import Answers, difference

KINDS = {"shared": (1.0, 0.0), "partly": (1.0, 1.0), "decided": (3.0, 3.0)}
"""Spreads of a question's difficulty (logits): what both methods share, and each one's own."""
SPREAD = 1.5
SEEDS, QUESTIONS, POINTS = (2, 3, 5), (300, 1000, 2000), (0.0, 1.0, 3.0)


def draw(
    chance: np.random.Generator, kind: str, seeds: int, questions: int, points: float
) -> list[Answers]:
    """Two methods that are as good as each other, whose seeds differ by a standard deviation of
    `points`."""
    shared, own = KINDS[kind]
    logits = shared * chance.normal(0, SPREAD, questions) + own * chance.normal(
        0, 1, (2, questions)
    )
    rates = 1 / (1 + np.exp(-logits))
    slopes = (rates * (1 - rates)).mean(axis=1)  # of the mean over questions, by the logit
    shifts = chance.normal(0, points / 100, (2, seeds)) / slopes[:, None]
    shifted = 1 / (1 + np.exp(-(logits[:, None, :] + shifts[:, :, None])))
    return [Answers([answers]) for answers in chance.random(shifted.shape) < shifted]


def before(first: Answers, second: Answers) -> float:
    """Half the width of the interval that this project had before."""
    gap = first.rates(0) - second.rates(0)
    variance = gap.var(ddof=1) / gap.size + first.between_seeds + second.between_seeds
    return float(196 * np.sqrt(variance))


def simulate(ledgers: int, chance: np.random.Generator, *setting: Any) -> tuple[float, ...]:
    """Coverage and false wins of either (shares of 1), the mean margin, and that of before."""
    held, wins, margins, earlier = 0, 0, 0.0, 0.0
    for _ in range(ledgers):
        first, second = draw(chance, *setting)
        estimate = difference(first, second)
        held += estimate.low <= 0 <= estimate.high
        wins += estimate.low > 0 or estimate.high < 0
        margins += estimate.margin
        earlier += before(first, second)
    return held / ledgers, wins / ledgers, margins / ledgers, earlier / ledgers


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ledgers", type=int, default=1000, help="a setting")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = np.random.default_rng(args.seed)
    print("| questions are | seeds | questions | points between seeds | held, % | false wins, % | "
          "margin | before |\n|:--|--:|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    held = []
    for kind in KINDS:
        for seeds in SEEDS:
            for questions in QUESTIONS:
                for points in POINTS:
                    setting = (kind, seeds, questions, points)
                    found = simulate(args.ledgers, chance, *setting)
                    held.append(found[0])
                    shares = [f"{100 * share:.1f}" for share in found[:2]]
                    numbers = [*map(str, setting[:3]), f"{points:.0f}", *shares]
                    print(f"| {' | '.join(numbers)} | {found[2]:.1f} | {found[3]:.1f} |")
    print(f"\nheld in all: {100 * np.mean(held):.1f} %, from {100 * min(held):.1f} to "
          f"{100 * max(held):.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
