"""Whether the mean's interval over several sets, and Holm's adjustment over several methods, keep
what they say: ledgers are drawn with known means.

    python benchmarks/coverage_sets.py means
    python benchmarks/coverage_sets.py families

Seeds move a method on all sets alike (`alike`), on each set by itself (`apart`), or against what
statistics.py assumes (`broken`): one seed in ten of any method falls by further ten points, and of
several methods the first varies three times as much as the others. One seed: the target is that
adapter's own mean, as its interval says.
"""

import argparse
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from osora_bench.reporting.statistics import ALPHA, Answers, adjusted_pairs, mean

SIZES = ((300, 2000), (250, 500, 1000, 1500), (200, 300, 400, 500, 800, 1000, 1500, 2000))
SPREADS = ("alike", "apart", "broken")
SEEDS, POINTS = (1, 2, 3, 5), (0.0, 1.0, 3.0)
SHARED, OWN = 1.5, 1.0
"""Spreads of a question's difficulty (logits): what all methods share, and each one's own."""
FALL, FALLS = 10.0, 0.1
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Setting(NamedTuple):
    """How seeds move, how many there are, and their standard deviation in points of Avg."""

    spread: str
    seeds: int
    points: float


def expected(logits: Floats, spread: float | Floats) -> Floats:
    """The mean over all questions at a mean logit, and a normal spread of logits about it."""
    shifted = np.asarray(logits)[..., None] + np.asarray(spread)[..., None] * NODES
    shares: Floats = special.expit(shifted) @ WEIGHTS / WEIGHTS.sum()
    return shares


def ledger(
    chance: np.random.Generator,
    sizes: Sequence[int],
    setting: Setting,
    better: Sequence[float],
) -> tuple[list[Answers], Floats]:
    """Methods whose logits lie `better` above the first, and the true Avg. of each (of 1)."""
    spread, seeds, points = setting
    questions = np.hypot(SHARED, OWN)
    middles = np.linspace(-0.5, 1.5, len(sizes))
    centres = middles + np.asarray(better, dtype=float)[:, None]
    slope = (
        expected(middles + 0.01, questions) - expected(middles - 0.01, questions)
    ).mean() / 0.02
    sets = len(sizes) if spread == "apart" else 1
    # of Avg. the seeds' standard deviation is `points`, also where sets move by themselves
    deviation = np.full((len(better), 1, 1), np.sqrt(sets) * points / 100 / slope)
    if spread == "broken" and len(better) > 1:
        deviation[0] *= 3
    moves = deviation * chance.normal(size=(len(better), seeds, sets))
    fall = FALL / 100 / slope if spread == "broken" else 0.0
    moves = moves - fall * (chance.random(moves.shape) < FALLS)
    moves = np.broadcast_to(moves, (len(better), seeds, len(sizes)))
    if seeds == 1:
        truth = expected(centres + moves[:, 0], questions)
    else:
        total = np.hypot(questions, deviation[:, 0])
        total = np.broadcast_to(total, centres.shape)
        truth = (1 - FALLS) * expected(centres, total) + FALLS * expected(centres - fall, total)
    by_set = [_answers(chance, size, centres[:, i], moves[..., i]) for i, size in enumerate(sizes)]
    methods = [Answers([own[m] for own in by_set]) for m in range(len(better))]
    return methods, truth.mean(axis=1)


def _answers(chance: np.random.Generator, size: int, centres: Floats, moves: Floats) -> Floats:
    """Of one set: methods x seeds x questions."""
    hard = SHARED * chance.normal(size=size) + OWN * chance.normal(size=(len(centres), size))
    rates = special.expit(centres[:, None, None] + moves[..., None] + hard[:, None])
    drawn: Floats = chance.random(rates.shape) < rates
    return drawn


def held(
    ledgers: int, chance: np.random.Generator, sizes: Sequence[int], setting: Setting
) -> float:
    """The share of ledgers in which the mean's interval holds the true mean."""
    count = 0
    for _ in range(ledgers):
        (method,), (truth,) = ledger(chance, sizes, setting, [0.0])
        estimate = mean(method)
        count += estimate.low <= 100 * truth <= estimate.high
    return count / ledgers


def wrong(
    ledgers: int, chance: np.random.Generator, setting: Setting, better: Sequence[float]
) -> float:
    """The share of ledgers in which Holm's adjustment tells any two equal methods apart."""
    gaps = np.asarray(better)
    equal = np.triu(gaps[:, None] == gaps[None, :], k=1)
    count = 0
    for _ in range(ledgers):
        methods, _ = ledger(chance, (300, 1000), setting, better)
        count += bool((adjusted_pairs(methods)[equal] < ALPHA).any())
    return count / ledgers


METHODS = {
    "3 equal": (0.0,) * 3,
    "5 equal": (0.0,) * 5,
    "3 equal, 2 better": (0.0, 0.0, 0.0, 0.3, 0.6),
}
"""How far each lies above the first (logits)."""


def means(ledgers: int, chance: np.random.Generator) -> None:
    """Print how often the mean's interval holds, a row a setting."""
    print("| seeds move | seeds | points | 2 sets | 4 sets | 8 sets |\n|:--|--:|--:|--:|--:|--:|")
    for setting in itertools.starmap(Setting, itertools.product(SPREADS, SEEDS, POINTS)):
        shares = [held(ledgers, chance, sizes, setting) for sizes in SIZES]
        _row(setting, shares)


def families(ledgers: int, chance: np.random.Generator) -> None:
    """Print how often any two equal methods are told apart, a row a setting."""
    print(f"| seeds move | seeds | points | {' | '.join(METHODS)} |\n|:--|--:|--:|--:|--:|--:|")
    for setting in itertools.starmap(Setting, itertools.product(SPREADS, SEEDS[1:], POINTS)):
        shares = [wrong(ledgers, chance, setting, b) for b in METHODS.values()]
        _row(setting, shares)


def _row(setting: Setting, shares: Sequence[float]) -> None:
    numbers = " | ".join(f"{100 * share:.1f}" for share in shares)
    print(f"| {setting.spread} | {setting.seeds} | {setting.points:.0f} | {numbers} |", flush=True)


PARTS = {"means": means, "families": families}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--ledgers", type=int, default=400, help="a setting")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    PARTS[args.part](args.ledgers, np.random.default_rng(args.seed))


if __name__ == "__main__":
    main()
