"""How far a mean of answers, and a difference of two methods, may be off by chance.

A method's answers are right (1) or wrong (0): for each set a matrix of seeds x questions. What is
estimated is the method's Avg. (the mean over sets of the mean over questions) over all questions of
the kind and all seeds. Its variance has three sources: questions, seeds, and what is left of an
answer once both are known, which the variance between questions and the one between seeds both
hold. It is counted once, and Student's t has the degrees of freedom that are left (`_variance`).
Checked by simulation: benchmarks/coverage.py, docs/statistics.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
from scipy import special

from osora_bench.reporting.numbers import shown_points

LEVEL = 0.95
"""Of all intervals."""
ALPHA = 1 - LEVEL

Verdicts = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


class Answers:
    """A method's answers: right or wrong, by set a matrix of seeds x questions.

    Args:
        by_set: each with the same number of seeds, at least one, and at least two questions. A
            byte an answer is kept, since a table may have 10,000 records behind it.
    """

    def __init__(self, by_set: Sequence[Any]) -> None:
        self.by_set: list[Verdicts] = [np.asarray(answers, dtype=np.bool_) for answers in by_set]

    @property
    def seeds(self) -> int:
        return self.by_set[0].shape[0]

    @property
    def freedom(self) -> int:
        """Degrees of freedom of what is known of its seeds."""
        return self.seeds - 1

    @cached_property
    def averages(self) -> Vector:
        """Avg. by seed, a share of 1."""
        by_seed: Vector = np.mean([answers.mean(axis=1) for answers in self.by_set], axis=0)
        return by_seed

    @property
    def single(self) -> bool:
        """Whether it is one run on one set."""
        return self.seeds == len(self.by_set) == 1

    def rates(self, number: int) -> Vector:
        """The share of seeds that each question of a set was answered right with."""
        shares: Vector = self.by_set[number].mean(axis=0)
        return shares

    @cached_property
    def between_questions(self) -> float:
        """Variance of the mean of `averages` that the questions make."""
        rates = [self.rates(number) for number in range(len(self.by_set))]
        return sum(float(own.var(ddof=1)) / own.size for own in rates) / len(rates) ** 2

    @cached_property
    def between_seeds(self) -> float:
        """Variance of the mean of `averages`; 0 for one seed, of which it is not known."""
        return float(self.averages.var(ddof=1) / self.seeds) if self.seeds > 1 else 0.0

    @cached_property
    def within(self) -> float:
        """The part of `between_seeds` that is the questions': how much the mean of `averages` would
        vary if another seed only changed which questions are right, not how many on the whole."""
        if self.seeds == 1:
            return 0.0
        variances = []
        for number, answers in enumerate(self.by_set):
            seeds, questions = answers.shape
            left = (
                answers - self.rates(number) - answers.mean(axis=1, keepdims=True) + answers.mean()
            )
            spread = (left**2).sum() / ((seeds - 1) * (questions - 1))
            variances.append(spread / (seeds * questions))
        return float(sum(variances)) / len(variances) ** 2


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference in points (of 100), with its standard error, and the degrees of
    freedom that Student's t has; infinite where only questions vary. `exact`: the interval's ends
    where the answers have no spread to make it of."""

    points: float
    error: float
    freedom: float
    exact: tuple[float, float] | None = None

    @property
    def margin(self) -> float:
        """Half the width of the interval."""
        return float(special.stdtrit(self.freedom, (1 + LEVEL) / 2)) * self.error

    @property
    def low(self) -> float:
        return self.points - self.margin if self.exact is None else self.exact[0]

    @property
    def high(self) -> float:
        return self.points + self.margin if self.exact is None else self.exact[1]

    @property
    def possible(self) -> tuple[float, float]:
        """The ends of a mean's interval, none beyond what a mean can be."""
        return max(0.0, self.low), min(100.0, self.high)

    @property
    def told(self) -> str:
        """A mean's interval: `58.30 to 61.20`."""
        return " to ".join(map(shown_points, self.possible))


def mean(answers: Answers) -> Estimate:
    """Avg. of a method over its seeds."""
    variance, freedom = _variance(
        np.array(answers.between_questions),
        np.array(answers.between_seeds),
        np.array(answers.within),
        np.array(float(answers.freedom)),
    )
    points = 100 * float(answers.averages.mean())
    return Estimate(points, 100 * sqrt(variance), float(freedom), _exact(answers))


def _exact(answers: Answers) -> tuple[float, float] | None:
    """The interval's ends where all answers of each set are alike, all right or all wrong; None
    where some differ.

    Clopper and Pearson's bounds of as many questions, averaged over the sets, each held at
    1 - ALPHA / sets so that all hold together; more seeds of the same answers narrow nothing.
    """
    if any(one.any() and not one.all() for one in answers.by_set):
        return None
    most = [1 - (ALPHA / 2 / len(answers.by_set)) ** (1 / s.shape[1]) for s in answers.by_set]
    right = [bool(one.all()) for one in answers.by_set]
    low = [1 - share if all_right else 0.0 for all_right, share in zip(right, most, strict=True)]
    high = [1.0 if all_right else share for all_right, share in zip(right, most, strict=True)]
    return 100 * float(np.mean(low)), 100 * float(np.mean(high))


def difference(first: Answers, second: Answers) -> Estimate:
    """Avg. of one method less the other's, over the seeds of each.

    Both answered the same questions, so each question's difference is taken first: what makes it
    hard for both falls out. Seeds of two methods have nothing in common.
    """
    points, errors, freedom = _differences([first, second])
    return Estimate(float(points[0, 1]), float(errors[0, 1]), float(freedom[0, 1]))


def _differences(methods: Sequence[Answers]) -> tuple[Matrix, Matrix, Matrix]:
    """Of all pairs of methods, the row's less the column's: points, standard errors and degrees of
    freedom."""
    averages = np.array([one.averages.mean() for one in methods])
    questions = np.zeros((len(methods), len(methods)))
    for number in range(len(methods[0].by_set)):
        rates = np.array([one.rates(number) for one in methods])
        covariance = np.atleast_2d(np.cov(rates))
        own = covariance.diagonal()
        # of equals, rounding leaves something below nothing
        gaps = np.maximum(0.0, own[:, None] + own[None, :] - 2 * covariance)
        gaps[gaps < 1e-12] = 0.0
        questions += gaps / rates.shape[1]
    between, within, freedom = (
        np.array([getattr(one, name) for one in methods], dtype=float)
        for name in ("between_seeds", "within", "freedom")
    )
    variance, freedom = _variance(
        questions / len(methods[0].by_set) ** 2,
        *(values[:, None] + values[None, :] for values in (between, within, freedom)),
    )
    return 100 * (averages[:, None] - averages[None, :]), 100 * np.sqrt(variance), freedom


def _variance(questions: Any, between: Any, within: Any, seeds_freedom: Any) -> tuple[Any, Any]:
    """Of means, and their degrees of freedom; arrays of one shape.

    The variance between questions, V_q, and the one between seeds, V_s, both hold V_qs, what
    questions and seeds do not explain: V = V_q + V_s - V_qs. Where V_s is no larger than V_qs
    alone makes it in half of all cases, the seeds do not differ as a whole and V = V_q. Methods
    are taken to vary alike between seeds, which a few seeds could not tell apart.

    Satterthwaite's degrees of freedom are those of V_s times (V / V_s)^2. With V_s known by one or
    two of them that is too hopeful, since the smallest V_s get the most: 91 % of intervals held
    where 95 should (benchmarks/coverage.py). V / V_s itself holds 96 % in all, 91 to 98 a setting.

    Args:
        questions: V_q.
        between: V_s, summed over the methods that a mean is of.
        within: V_qs, likewise.
        seeds_freedom: their seeds less one each, likewise.
    """
    repeated = np.maximum(seeds_freedom, 1)
    usual = within * special.chdtri(repeated, 0.5) / repeated
    differ = (seeds_freedom > 0) & (between > usual)
    variance = questions + np.where(differ, np.maximum(0.0, between - within), 0.0)
    share = variance / np.where(differ, between, 1.0)
    freedom = np.where(differ, repeated * np.maximum(1.0, share), np.inf)
    return variance, freedom


def p_values(methods: Sequence[Answers]) -> Matrix:
    """That two methods as good as each other differ by as much as these (two-sided), of all pairs.

    A pair's test is its own, whatever other methods there are. One seed of each and one set:
    McNemar's exact test, of these adapters alone. Otherwise Student's t of `difference`: no
    permutation of two or three seeds reaches 5 %.
    """
    points, errors, freedom = _differences(methods)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = 2 * special.stdtr(freedom, -np.abs(points) / errors)
    p: Matrix = np.where(errors > 0, t, np.where(np.abs(points) > 1e-9, 0.0, 1.0))
    single = [i for i, one in enumerate(methods) if one.single]
    if len(single) > 1:
        answers = np.array([methods[i].by_set[0][0] for i in single], dtype=float)
        p[np.ix_(single, single)] = mcnemar(answers @ (1 - answers).T, (1 - answers) @ answers.T)
    return p


def mcnemar(first_only: Any, second_only: Any) -> Any:
    """The exact test of McNemar: whether questions that one of two answered right alone are as
    often the first's as the second's (two-sided)."""
    fewer, count = np.minimum(first_only, second_only), first_only + second_only
    return np.minimum(1.0, 2 * special.bdtr(fewer, np.asarray(count, dtype=int), 0.5))


def holm(p: Sequence[float] | Vector) -> Vector:
    """Holm's adjustment: of all families of such tests, at most 5 % have a wrong one below 0.05."""
    raw = np.asarray(p, dtype=float)
    order = np.argsort(raw, kind="stable")
    adjusted = np.empty_like(raw)
    steps = np.minimum(1.0, np.arange(raw.size, 0, -1) * raw[order])
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def adjusted_pairs(methods: Sequence[Answers]) -> Matrix:
    """`p_values`, by Holm over all pairs; of a method and itself 1."""
    count = len(methods)
    result = np.ones((count, count))
    above = np.triu_indices(count, k=1)
    if count > 1:
        result[above] = holm(p_values(methods)[above])
    return np.minimum(result, result.T)


def comparisons(own: Answers, others: Sequence[Answers]) -> list[tuple[Estimate, float]]:
    """How far one method's Avg. is from each other's, and p, adjusted for all of them (Holm)."""
    adjusted = holm([p_values([own, other])[0, 1] for other in others])
    return [(difference(own, other), float(p)) for other, p in zip(others, adjusted, strict=True)]


def verdict(gap: Estimate, p: float) -> str:
    """What a test says of the first of two methods: it wins, ties or loses."""
    return "ties" if p >= ALPHA else "wins" if gap.points > 0 else "loses"


def improvement(first: Answers, second: Answers) -> float:
    """That a run of the first scores above one of the second, ties as half: over all pairs of their
    seeds, averaged over sets (Agarwal et al. 2021, arXiv 2108.13264)."""
    shares = []
    for a, b in zip(first.by_set, second.by_set, strict=True):
        gap = a.mean(axis=1)[:, None] - b.mean(axis=1)[None, :]
        shares.append(float((np.sign(gap) + 1).mean() / 2))
    return float(np.mean(shares))
