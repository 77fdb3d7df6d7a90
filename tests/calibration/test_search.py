"""The search: on tables of losses, where the right answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone.calibration.cache import Score
from skipstone.calibration.ladder import Rung
from skipstone.calibration.risk import binomial_p
from skipstone.calibration.search import Bar, search
from skipstone.calibration.target import Target
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.references import Shot

TARGET = Target.parse("psnr >= 30 @ 90%")
SHOTS = [Shot(Prompt(str(i), f"prompt {i}"), i) for i in range(120)]
NAN = float("nan")


@dataclass
class Table:
    """Scores that are known beforehand, and what was looked at."""

    rows: dict[str, Sequence[Score]]
    looked: dict[str, int] = field(default_factory=dict)

    def of(self, column: Column, shots: Sequence[Shot]) -> list[Score]:
        self.looked[column.spec] = max(self.looked.get(column.spec, 0), len(shots))
        return list(self.rows[column.spec][: len(shots)])

    def known(self, column: Column, shots: Sequence[Shot]) -> list[Score | None]:
        count = self.looked.get(column.spec, 0)
        return [self.rows[column.spec][i] if i < count else None for i in range(len(shots))]


def ladder(n: int) -> list[Rung]:
    return [Rung(parse_column(f"stride(tol={k + 1}.0)", None, None, 50), "stride") for k in range(n)]


def table(rungs: Sequence[Rung], values: Sequence[Any], calls: Sequence[float]) -> Table:
    """Each value is a number for all samples, or a function of the sample."""
    rows = {}
    for rung, value, cost in zip(rungs, values, calls, strict=True):
        found = value if callable(value) else (lambda i, v=value: v)
        rows[rung.column.spec] = [Score(found(i), cost) for i in range(len(SHOTS))]
    return Table(rows)


@settings(deadline=None)  # the first example imports SciPy
@given(st.integers(1, 400), st.floats(0.01, 0.5), st.floats(0.01, 0.4))
def test_the_bar_forgives_exactly_as_many_failures_as_the_test_does(n: int, alpha: float, delta: float) -> None:
    bar = Bar(Target("psnr", ">=", 30.0, 1 - alpha), delta, n)
    risk, allowed = bar.target.risk, bar.allowed
    assert allowed < 0 or binomial_p(allowed, n, risk) <= delta
    assert binomial_p(min(n, allowed + 1), n, risk) > delta


@settings(deadline=None)
@given(st.lists(st.one_of(st.floats(0, 99), st.just(NAN)), min_size=1, max_size=40), st.booleans())
def test_estimates_are_chances_and_samples_without_a_value_are_failures(values: list[float], mean: bool) -> None:
    target = Target.parse("psnr >= 30 @ mean") if mean else TARGET
    bar = Bar(target, 0.1, 100)
    found = bar.estimate([Score(v, 10.0) for v in values], None)
    spoilt = bar.estimate([Score(v, 10.0) for v in [*values, NAN]], None)
    assert 0 <= found.risk <= 1
    assert 0 <= found.passing <= 1
    assert spoilt.risk >= found.risk - 1e-12
    assert spoilt.passing <= found.passing + 1e-12 or mean


def test_the_answer_is_tested_after_one_that_is_sure_and_before_those_that_fail() -> None:
    rungs = ladder(8)
    calls = [40, 35, 30, 25, 20, 15, 10, 5]
    # The fifth fails on one prompt of twenty, the sixth on one of three, the others behind it on all.
    values = [60, 58, 55, 50, lambda i: 20 if i % 20 == 19 else 45, lambda i: 20 if i % 3 == 2 else 40, 25, 20]
    drawn = table(rungs, values, calls)
    order = search(rungs, SHOTS, drawn, Bar(TARGET, 0.1, 200))
    positions = [rungs.index(rung) for rung in order]
    assert positions == sorted(positions)  # from safe to fast
    assert positions[0] == 3  # the fastest that is sure
    assert 4 in positions
    assert drawn.looked[rungs[7].column.spec] < len(SHOTS)  # hopeless: not drawn to the end
    assert drawn.looked[rungs[0].column.spec] < len(SHOTS)  # slower than one that is sure


def test_of_a_family_that_is_not_monotone_the_settings_that_others_beat_are_not_tested() -> None:
    rungs = ladder(5)
    values = [lambda i: 20 if i % 4 == 0 else 50, 60, lambda i: 20 if i % 2 else 50, 45, 10]
    order = search(rungs, SHOTS, table(rungs, values, [40, 30, 25, 20, 10]), Bar(TARGET, 0.1, 200))
    assert rungs.index(order[0]) == 3
    assert rungs[0] not in order
    assert rungs[2] not in order


@pytest.mark.parametrize(("values", "first"), [([10.0] * 4, 3), ([60.0] * 4, 3), ([NAN] * 4, 3)])
def test_ties_go_to_the_fastest(values: list[float], first: int) -> None:
    rungs = ladder(4)
    order = search(rungs, SHOTS, table(rungs, values, [40, 30, 20, 10]), Bar(TARGET, 0.1, 200))
    assert [rungs.index(rung) for rung in order] == [first]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(1, 15), st.integers(1, 50)), min_size=1, max_size=8),
    st.integers(1, 30),
    st.booleans(),
)
def test_whatever_the_table_the_order_is_a_front(
    shapes: list[tuple[float, float, int]], prompts: int, grouped: bool
) -> None:
    rungs = ladder(len(shapes))
    values = [lambda i, m=mean, s=spread: m + s * math.sin(7.0 * i) for mean, spread, _ in shapes]
    groups = ["ab"[i % 2] for i in range(prompts)] if grouped else None
    drawn = table(rungs, values, [float(calls) for *_, calls in shapes])
    order = search(rungs, SHOTS[:prompts], drawn, Bar(TARGET, 0.1, 50), groups)
    assert order
    assert len(set(order)) == len(order)
    costs = [shapes[rungs.index(rung)][2] for rung in order]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == len(costs)


def test_groups_are_judged_by_the_worst_of_them() -> None:
    rungs = ladder(2)
    groups = ["easy" if i % 2 else "hard" for i in range(len(SHOTS))]
    drawn = table(rungs, [60, lambda i: 60 if i % 2 else 20], [30, 10])
    bar = Bar(Target.parse("psnr >= 30 @ 25%"), 0.1, 100)
    alone = search(rungs, SHOTS, drawn, bar)
    each = search(rungs, SHOTS, table(rungs, [60, lambda i: 60 if i % 2 else 20], [30, 10]), bar, groups)
    assert rungs.index(alone[0]) == 1  # half of all prompts meet it, and a quarter is asked for
    assert rungs.index(each[0]) == 0
