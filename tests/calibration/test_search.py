"""The search: on tables of losses, where the right answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone.calibration.cache import SampleScore
from skipstone.calibration.candidates import CandidateSetting
from skipstone.calibration.risk import binomial_p
from skipstone.calibration.search import PassCriterion, search
from skipstone.calibration.target import Target
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.references import EvaluationSample

TARGET = Target.parse("psnr >= 30 @ 90%")
SHOTS = [EvaluationSample(Prompt(str(i), f"prompt {i}"), i) for i in range(120)]
NAN = float("nan")


@dataclass
class Table:
    """Scores that are known beforehand, and what was looked at."""

    rows: dict[str, Sequence[SampleScore]]
    looked: dict[str, int] = field(default_factory=dict)

    def of(self, column: Column, eval_samples: Sequence[EvaluationSample]) -> list[SampleScore]:
        self.looked[column.spec] = max(self.looked.get(column.spec, 0), len(eval_samples))
        return list(self.rows[column.spec][: len(eval_samples)])

    def known(self, column: Column, eval_samples: Sequence[EvaluationSample]) -> list[SampleScore | None]:
        count = self.looked.get(column.spec, 0)
        return [self.rows[column.spec][i] if i < count else None for i in range(len(eval_samples))]


def ladder(n: int) -> list[CandidateSetting]:
    return [CandidateSetting(parse_column(f"stride(tol={k + 1}.0)", None, None, 50), "stride") for k in range(n)]


def table(candidates: Sequence[CandidateSetting], values: Sequence[Any], calls: Sequence[float]) -> Table:
    """Each value is a number for all samples, or a function of the sample."""
    rows = {}
    for candidate, value, cost in zip(candidates, values, calls, strict=True):
        found = value if callable(value) else (lambda i, v=value: v)
        rows[candidate.column.spec] = [SampleScore(found(i), cost) for i in range(len(SHOTS))]
    return Table(rows)


@settings(deadline=None)  # the first example imports SciPy
@given(st.integers(1, 400), st.floats(0.01, 0.5), st.floats(0.01, 0.4))
def test_the_bar_forgives_exactly_as_many_failures_as_the_test_does(n: int, alpha: float, delta: float) -> None:
    bar = PassCriterion(Target("psnr", ">=", 30.0, 1 - alpha), delta, n)
    risk, allowed = bar.target.risk, bar.allowed
    assert allowed < 0 or binomial_p(allowed, n, risk) <= delta
    assert binomial_p(min(n, allowed + 1), n, risk) > delta


@settings(deadline=None)
@given(st.lists(st.one_of(st.floats(0, 99), st.just(NAN)), min_size=1, max_size=40), st.booleans())
def test_estimates_are_chances_and_samples_without_a_value_are_failures(values: list[float], mean: bool) -> None:
    target = Target.parse("psnr >= 30 @ mean") if mean else TARGET
    bar = PassCriterion(target, 0.1, 100)
    found = bar.estimate([SampleScore(v, 10.0) for v in values], None)
    spoilt = bar.estimate([SampleScore(v, 10.0) for v in [*values, NAN]], None)
    assert 0 <= found.risk <= 1
    assert 0 <= found.passing <= 1
    assert spoilt.risk >= found.risk - 1e-12
    assert spoilt.passing <= found.passing + 1e-12 or mean


def test_the_answer_is_tested_after_one_that_is_sure_and_before_those_that_fail() -> None:
    candidates = ladder(8)
    calls = [40, 35, 30, 25, 20, 15, 10, 5]
    # The fifth fails on one prompt of twenty, the sixth on one of three, the others behind it on all.
    values = [60, 58, 55, 50, lambda i: 20 if i % 20 == 19 else 45, lambda i: 20 if i % 3 == 2 else 40, 25, 20]
    drawn = table(candidates, values, calls)
    order = search(candidates, SHOTS, drawn, PassCriterion(TARGET, 0.1, 200))
    positions = [candidates.index(candidate) for candidate in order]
    assert positions == sorted(positions)  # from safe to fast
    assert positions[0] == 3  # the fastest that is sure
    assert 4 in positions
    assert drawn.looked[candidates[7].column.spec] < len(SHOTS)  # hopeless: not drawn to the end
    assert drawn.looked[candidates[0].column.spec] < len(SHOTS)  # slower than one that is sure


def test_of_a_family_that_is_not_monotone_the_settings_that_others_beat_are_not_tested() -> None:
    candidates = ladder(5)
    values = [lambda i: 20 if i % 4 == 0 else 50, 60, lambda i: 20 if i % 2 else 50, 45, 10]
    order = search(candidates, SHOTS, table(candidates, values, [40, 30, 25, 20, 10]), PassCriterion(TARGET, 0.1, 200))
    assert candidates.index(order[0]) == 3
    assert candidates[0] not in order
    assert candidates[2] not in order


@pytest.mark.parametrize(("values", "first"), [([10.0] * 4, 3), ([60.0] * 4, 3), ([NAN] * 4, 3)])
def test_ties_go_to_the_fastest(values: list[float], first: int) -> None:
    candidates = ladder(4)
    order = search(candidates, SHOTS, table(candidates, values, [40, 30, 20, 10]), PassCriterion(TARGET, 0.1, 200))
    assert [candidates.index(candidate) for candidate in order] == [first]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(1, 15), st.integers(1, 50)), min_size=1, max_size=8),
    st.integers(1, 30),
    st.booleans(),
)
def test_whatever_the_table_the_order_is_a_front(
    shapes: list[tuple[float, float, int]], prompts: int, grouped: bool
) -> None:
    candidates = ladder(len(shapes))
    values = [lambda i, m=mean, s=spread: m + s * math.sin(7.0 * i) for mean, spread, _ in shapes]
    groups = ["ab"[i % 2] for i in range(prompts)] if grouped else None
    drawn = table(candidates, values, [float(calls) for *_, calls in shapes])
    order = search(candidates, SHOTS[:prompts], drawn, PassCriterion(TARGET, 0.1, 50), groups)
    assert order
    assert len(set(order)) == len(order)
    costs = [shapes[candidates.index(candidate)][2] for candidate in order]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == len(costs)


def test_groups_are_judged_by_the_worst_of_them() -> None:
    candidates = ladder(2)
    groups = ["easy" if i % 2 else "hard" for i in range(len(SHOTS))]
    drawn = table(candidates, [60, lambda i: 60 if i % 2 else 20], [30, 10])
    bar = PassCriterion(Target.parse("psnr >= 30 @ 25%"), 0.1, 100)
    alone = search(candidates, SHOTS, drawn, bar)
    each = search(candidates, SHOTS, table(candidates, [60, lambda i: 60 if i % 2 else 20], [30, 10]), bar, groups)
    assert candidates.index(alone[0]) == 1  # half of all prompts meet it, and a quarter is asked for
    assert candidates.index(each[0]) == 0
