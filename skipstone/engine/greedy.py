"""The best steps to skip, found by trying: what a policy's decisions are compared with.

Ye et al. 2024 (arXiv 2410.09873) compare their estimated skipping path with one from a greedy search, whose
definition and code they did not publish. The search below is our own specification of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ..errors import SpecError
from ..numerics.array import mean_abs, to_floats
from .contracts import Attempt, Forecast, Plan, Policy, Run
from .drivers import denoise, denoise_many
from .requests import Backbone, Problem, Solver


@dataclass(frozen=True)
class StepMask(Policy):
    """Forecast exactly the steps of these numbers, the first being 0."""

    skips: frozenset[int]
    how: Forecast = Forecast()  # noqa: RUF009  (frozen)
    name: ClassVar[str] = "masked"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        skips = len(run.accepted_attempts) in self.skips and proposal.is_unamended
        return replace(proposal, evaluate=self.how) if skips else proposal


@dataclass(frozen=True)
class GreedyPath:
    """Skipped steps in the order in which the search chose them, and what each choice cost."""

    steps: int
    skips: tuple[int, ...]
    costs: tuple[float, ...]  # mean |x - x_full| at the end, after each choice

    @property
    def calls(self) -> tuple[bool, ...]:
        """Whether each step of the grid is called."""
        return tuple(i not in self.skips for i in range(self.steps))


@dataclass(frozen=True)
class ChiSquareTest:
    """Pearson's chi-square of a 2x2 table of calls and skips, one degree of freedom, uncorrected."""

    statistic: float
    p_value: float  # of a statistic as large where the two paths have nothing to do with each other


def greedy_path(
    backbone: Backbone,
    problem: Problem,
    solver: Solver,
    target: int,
    how: Forecast = Forecast(),  # noqa: B008  (frozen)
    warmup: int = 4,
    max_skip: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GreedyPath:
    """Skip `target` steps one after another, each time the one that changes the result least.

    S = {}; while |S| < target: for every step i >= warmup not in S, denoise with S + {i} forecast; add the i
    of the least mean |x - x_full| at the end, the earliest of equals. All candidates of a round are
    denoised as one batch, O(steps * target) runs in all.

    Args:
        backbone, problem, solver: As for `denoise`.
        target: Steps to skip, 0..steps - warmup.
        how: The forecast at skipped steps; order 0 of eps as published.
        warmup: Steps at the start that are never skipped, >= 1.
        max_skip: Longest run of skips, >= 1, or None for no limit.
        progress: Called with (skips chosen, target) after each round.

    Raises:
        SpecError: more skips than the steps, the warm-up and the cap leave room for.
    """
    steps = len(problem.grid) - 1
    full = denoise(backbone, problem, solver, StepMask(frozenset())).x
    skips: list[int] = []
    costs: list[float] = []
    while len(skips) < target:
        sets = [frozenset((*skips, i)) for i in range(max(1, warmup), steps) if i not in skips]
        candidates = [s for s in sets if max_skip is None or _longest(s) <= max_skip]
        if not candidates:
            raise SpecError(f"Expected a target of at most {len(skips)} skips on {steps} steps here, got {target}.")
        results = denoise_many(backbone, [problem] * len(candidates), solver, [StepMask(s, how) for s in candidates])
        errors = to_floats([mean_abs(r.x - full) for r in results])
        best = errors.index(min(errors))
        [chosen] = candidates[best] - set(skips)
        skips.append(chosen)
        costs.append(errors[best])
        if progress is not None:
            progress(len(skips), target)
    return GreedyPath(steps, tuple(skips), tuple(costs))


def _longest(skips: frozenset[int]) -> int:
    """Length of the longest run of consecutive numbers."""
    longest = run = 0
    for i in range(max(skips) + 1):
        run = run + 1 if i in skips else 0
        longest = max(longest, run)
    return longest


def get_called_steps(run: Run) -> tuple[bool, ...]:
    """Whether each kept step of a run called the network."""

    def called(a: Attempt) -> bool:
        return not a.is_forecast

    return tuple(map(called, run.accepted_attempts))


def compare_paths(mine: Sequence[bool], other: Sequence[bool], warmup: int = 4) -> ChiSquareTest | None:
    """Whether two paths call and skip the same steps more often than chance.

    Args:
        mine, other: Whether each step is called, of the same length.
        warmup: Steps at the start that neither was free to skip, left out of the table.

    Returns:
        The test, or None where a path does not both call and skip, so that nothing can be compared.
    """
    from scipy.stats import chi2_contingency

    free = list(zip(mine, other, strict=True))[warmup:]
    table = [[sum(pair == (a, b) for pair in free) for b in (True, False)] for a in (True, False)]
    if any(sum(row) == 0 for row in table) or any(sum(column) == 0 for column in zip(*table, strict=True)):
        return None
    found = chi2_contingency(table, correction=False)
    return ChiSquareTest(float(found.statistic), float(found.pvalue))
