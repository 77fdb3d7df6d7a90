"""Which settings to test, and in which order: found on prompts of their own, by successive halving.

Nothing here can break a promise: the final test holds whatever order it is given, as long as its prompts have had no
part in it. A good order saves calls, and finds the fastest setting that can be promised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from ..evaluation.columns import Column
from ..evaluation.references import EvaluationSample
from .cache import SampleScore
from .candidates import CandidateSetting
from .risk import binomial_p, split_by_group
from .scores import mean_calls
from .target import Target

FIRST = 8  # prompts that every setting sees
MIN_SURVIVORS = 8  # settings that see all, where as many are worth it
NUM_SAFEST_SETTINGS = 4  # of them, those that are surest to pass
MIN_PASS_CHANCE = 0.98  # chance of passing the test, as the search sees it, that the first setting tested should have
PRIOR = 2.0  # failures, at most, that the shape of the values counts for where none was seen


class ScoreSource(Protocol):
    """The part of `CachedScores` that a search uses."""

    def of(self, column: Column, eval_samples: Sequence[EvaluationSample]) -> list[SampleScore]: ...
    def known(self, column: Column, eval_samples: Sequence[EvaluationSample]) -> list[SampleScore | None]: ...


@dataclass(frozen=True, slots=True)
class RiskEstimate:
    """The search's estimate of a setting.

    Args:
        risk: Expected loss.
        error: Standard error of it.
        calls: Mean.
        passing: Chance that the final test accepts it.
    """

    risk: float
    error: float
    calls: float
    passing: float


@dataclass(frozen=True)
class PassCriterion:
    """The criterion of the final test.

    Args:
        target: What is asked for.
        delta: 1 - confidence; None where no confidence is asked for.
        n: Prompts of the test, of the smallest group where there are groups.
    """

    target: Target
    delta: float | None
    n: int

    @cached_property
    def allowed(self) -> int:
        """Largest number of failures that still passes the test; -1 if even 0 failures do not pass."""
        delta = 0.5 if self.delta is None else self.delta
        count = math.ceil(self.n * self.target.risk)
        return next((k for k in range(count, -1, -1) if binomial_p(k, self.n, self.target.risk) <= delta), -1)

    def estimate(self, found: Sequence[SampleScore], groups: Sequence[str] | None) -> RiskEstimate:
        """Return the estimate of one setting: that of its worst group."""
        parts = split_by_group([one.value for one in found], groups).values()
        each = [self._group(part) for part in parts]
        risk, error, _ = max(each, key=lambda e: e[0])
        return RiskEstimate(risk, error, mean_calls(found), math.prod(e[2] for e in each))

    def _group(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Expected loss, its standard error, and the chance of passing."""
        losses = [self.target.loss(value) for value in values]
        n, mean = len(losses), math.fsum(losses) / len(losses)
        if self.target.span is not None:
            spread = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / max(1, n - 1))
            error = max(spread, 1e-4) / math.sqrt(n)
            z = 0.0 if self.delta is None else _quantile(1 - self.delta) * 1.25  # betting asks for a little more
            slack = self.target.risk - mean - z * max(spread, 1e-4) / math.sqrt(self.n)
            return mean, error, _normal(slack / math.hypot(error, max(spread, 1e-4) / math.sqrt(self.n)))
        from scipy.stats import betabinom

        shape = self._tail(values)
        a, b = sum(losses) + PRIOR * shape + 0.5, n - sum(losses) + 0.5  # a half as Jeffreys has it
        rate = a / (a + b)
        passing = 0.0 if self.allowed < 0 else float(betabinom.cdf(self.allowed, self.n, a, b))
        return rate, math.sqrt(rate * (1 - rate) / (n + 1)), passing

    def _tail(self, values: Sequence[float]) -> float:
        """The share of a normal distribution with these values' mean and spread that misses the level."""
        good = [value for value in values if not math.isnan(value)]
        if len(good) < 2:
            return 0.5
        mean = math.fsum(good) / len(good)
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in good) / (len(good) - 1))
        short = self.target.level - mean if self.target.relation == ">=" else mean - self.target.level
        share = _normal(short / spread) if spread > 0 else float(short > 0)
        return min(1 - 1e-3, max(1e-3, share))


def search(
    candidates: Sequence[CandidateSetting],
    eval_samples: Sequence[EvaluationSample],
    scores: ScoreSource,
    bar: PassCriterion,
    groups: Sequence[str] | None = None,
) -> list[CandidateSetting]:
    """The settings to test, from the safest to the fastest, in the order of the test.

    Every setting sees a few prompts; the more promising half sees twice as many, and so on. Of all settings
    those that no other beats in both risk and calls are ordered by risk; the list starts at the fastest of them that is
    as good as sure to pass.

    Args:
        candidates: Settings, in any order.
        eval_samples: Prompts that the final test does not see, >= 1.
        scores: Draws them.
        bar: The criterion of the final test.
        groups: The group of each sample.
    """
    live, count = list(candidates), min(FIRST, len(eval_samples))
    while True:
        for candidate in live:
            scores.of(candidate.column, eval_samples[:count])
        seen = {r.column.spec: _estimate_candidate(r, eval_samples, scores, bar, groups) for r in candidates}
        if count == len(eval_samples):
            return _order_front(candidates, seen)
        live = _keep_promising(live, seen)
        count = min(2 * count, len(eval_samples))


def expected_calls(candidates: int, eval_samples: int, full: float) -> float:
    """Calls that a search takes, guessed before it: 0.4 of the full run's for each sample."""
    total, live, count, before = 0.0, candidates, min(FIRST, eval_samples), 0
    while True:
        total += live * (count - before) * 0.4 * full
        if count == eval_samples:
            return total
        before, count, live = count, min(2 * count, eval_samples), max(MIN_SURVIVORS, math.ceil(live / 2))


def _estimate_candidate(
    candidate: CandidateSetting,
    eval_samples: Sequence[EvaluationSample],
    scores: ScoreSource,
    bar: PassCriterion,
    groups: Sequence[str] | None,
) -> RiskEstimate:
    """Estimate the risk from all samples that were drawn, in this search or an earlier one."""
    found = {i: one for i, one in enumerate(scores.known(candidate.column, eval_samples)) if one is not None}
    return bar.estimate(list(found.values()), None if groups is None else [groups[i] for i in found])


def _keep_promising(live: Sequence[CandidateSetting], seen: dict[str, RiskEstimate]) -> list[CandidateSetting]:
    """Return the candidates that are worth more prompts, at most half of them or MIN_SURVIVORS.

    None that is slower than one that is as good as sure to pass, and none that is as good as sure to fail; the surest,
    in case that those fail; and those by which the most calls can be expected to be saved.
    """
    bound = min(
        (seen[r.column.spec].calls for r in live if seen[r.column.spec].passing >= MIN_PASS_CHANCE), default=math.inf
    )
    most = max(seen[r.column.spec].calls for r in live)
    gain = {r.column.spec: seen[r.column.spec].passing * (most - seen[r.column.spec].calls) for r in live}
    ranked = sorted(live, key=lambda r: (-seen[r.column.spec].passing, seen[r.column.spec].calls))
    sure = [r for r in ranked if seen[r.column.spec].calls <= bound][:NUM_SAFEST_SETTINGS]
    others = [r for r in ranked if r not in sure and seen[r.column.spec].calls <= bound]
    hopeful = [r for r in others if seen[r.column.spec].passing > 1 - MIN_PASS_CHANCE]
    found = [*sure, *sorted(hopeful, key=lambda r: -gain[r.column.spec])]
    return found[: max(MIN_SURVIVORS, math.ceil(len(live) / 2))]


def _order_front(
    candidates: Sequence[CandidateSetting], seen: dict[str, RiskEstimate], start: bool = True
) -> list[CandidateSetting]:
    """The front of risk and calls, safest first; from the last setting on that is sure to pass."""
    front: list[CandidateSetting] = []
    for candidate in sorted(candidates, key=lambda r: (seen[r.column.spec].calls, seen[r.column.spec].risk)):
        if not front or seen[candidate.column.spec].risk < seen[front[-1].column.spec].risk:
            front.append(candidate)
    front.reverse()
    sure = [i for i, candidate in enumerate(front) if seen[candidate.column.spec].passing >= MIN_PASS_CHANCE]
    return front[sure[-1] :] if start and sure else front


def _normal(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
