"""Davidson's model: closed forms, parameters recovered, invariances, and answers where there is no maximum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone.errors import SpecError
from skipstone_bench.vlm.davidson import SEPARATED, DavidsonFit, fit_davidson, fit_resamples, is_connected

PAIRS = [(0, 1), (0, 2), (1, 2)]
counts3 = st.lists(st.tuples(*[st.integers(1, 30)] * 3), min_size=3, max_size=3)


def told(
    counts: list[tuple[int, int, int]], pairs: list[tuple[int, int]] = PAIRS
) -> list[tuple[int, int, float, float, float]]:
    return [(*pair, *map(float, n)) for pair, n in zip(pairs, counts, strict=True)]


def fit(counts: list[tuple[int, int, int]]) -> DavidsonFit:
    return fit_davidson(told(counts), 3)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_two_rows_have_a_closed_form(wins: int, losses: int, ties: int) -> None:
    # Three chances, two parameters, nothing left over: pi_1 / pi_2 = W / L and nu = T / sqrt(W L).
    found = fit_davidson([(0, 1, wins, losses, ties)], 2)
    assert found.log_strengths[0] - found.log_strengths[1] == pytest.approx(math.log(wins / losses), abs=1e-6)
    assert found.nu == pytest.approx(ties / math.sqrt(wins * losses), rel=1e-6)
    total = wins + losses + ties
    assert found.chances(0, 1) == pytest.approx((wins / total, losses / total, ties / total), rel=1e-6)
    assert found.note == ""


def test_bradley_and_terry_where_there_are_no_ties() -> None:
    # Three rows in a line, without ties: pairs are independent, each log ratio is log(wins / losses).
    found = fit_davidson([(0, 1, 6, 3, 0), (1, 2, 8, 2, 0)], 3)
    steps = np.diff(found.log_strengths)
    assert steps == pytest.approx([-math.log(2), -math.log(4)], abs=1e-9)
    assert found.nu == 0.0
    assert sum(found.strengths) == pytest.approx(1)
    assert found.strengths[0] / found.strengths[2] == pytest.approx(8)
    assert found.log_likelihood == pytest.approx(
        6 * math.log(2 / 3) + 3 * math.log(1 / 3) + 8 * math.log(0.8) + 2 * math.log(0.2)
    )


@given(counts3)
@settings(deadline=None, max_examples=15)
def test_it_is_the_maximum(counts: list[tuple[int, int, int]]) -> None:
    # Expected wins (ties counted half) and expected ties equal those seen: the likelihood's equations.
    found = fit(counts)
    score, expected, ties = np.zeros(3), np.zeros(3), 0.0
    for (i, j), (a, b, t) in zip(PAIRS, counts, strict=True):
        first, second, tie = (p * (a + b + t) for p in found.chances(i, j))
        score[i], score[j] = score[i] + a + t / 2, score[j] + b + t / 2
        expected[i], expected[j] = expected[i] + first + tie / 2, expected[j] + second + tie / 2
        ties += tie
    assert expected == pytest.approx(score, abs=1e-5)
    assert ties == pytest.approx(sum(n[2] for n in counts), abs=1e-5)


@given(counts3, st.permutations(range(3)), st.integers(2, 50))
@settings(deadline=None, max_examples=15)
def test_names_orders_and_sizes_do_not_matter(counts: list[tuple[int, int, int]], order: list[int], times: int) -> None:
    found = fit(counts)
    renamed = fit_davidson([(order[i], order[j], *n) for i, j, *n in told(counts)], 3)
    assert [renamed.log_strengths[k] for k in order] == pytest.approx(found.log_strengths, abs=1e-6)
    turned = fit_davidson([(j, i, b, a, t) for i, j, a, b, t in told(counts)][::-1], 3)
    assert turned.log_strengths == pytest.approx(found.log_strengths, abs=1e-6)
    larger = fit([(times * a, times * b, times * t) for a, b, t in counts])
    assert [*larger.log_strengths, larger.nu] == pytest.approx([*found.log_strengths, found.nu], abs=1e-6)
    losses = fit([(b, a, t) for a, b, t in counts])
    assert losses.log_strengths == pytest.approx([-s for s in found.log_strengths], abs=1e-6)


def test_parameters_are_recovered() -> None:
    truth, draw = DavidsonFit((0.8, 0.1, -0.2, -0.7), 0.6, 0.0), np.random.default_rng(0)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    counts = [(i, j, *map(float, draw.multinomial(4000, truth.chances(i, j)))) for i, j in pairs]
    found = fit_davidson(counts, 4)
    assert found.log_strengths == pytest.approx(truth.log_strengths, abs=0.08)  # about four standard errors
    assert found.nu == pytest.approx(truth.nu, abs=0.05)
    exact = fit_davidson([(i, j, *(1000 * p for p in truth.chances(i, j))) for i, j in pairs], 4)
    assert [*exact.log_strengths, exact.nu] == pytest.approx([*truth.log_strengths, truth.nu], abs=1e-8)


@pytest.mark.parametrize(
    "counts",
    [
        [(9, 0, 0), (9, 0, 0), (5, 4, 1)],  # the first row always wins
        [(0, 0, 9), (0, 0, 9), (0, 0, 9)],  # all ties
        [(9, 0, 0), (9, 0, 0), (9, 0, 0)],  # a strict order
    ],
)
def test_a_row_that_never_loses_is_finite_and_said(counts: list[tuple[int, int, int]]) -> None:
    found = fit(counts)
    assert found.note == SEPARATED
    assert all(map(math.isfinite, (*found.log_strengths, found.nu)))
    assert found.log_strengths[0] >= max(found.log_strengths[1:]) - 1e-9
    batch, halves = fit_resamples(PAIRS, np.array([counts], float), 3)  # without the linear programme, the same
    assert halves.tolist() == [True]
    assert batch[0] == pytest.approx([*found.log_strengths, found.nu], abs=1e-6)


def test_whether_there_is_a_maximum_is_decided_exactly() -> None:
    # Wins and ties of two rows: nu goes to infinity with the ratio, though there is a tie.
    assert fit_davidson([(0, 1, 9, 0, 3)], 2).note == SEPARATED
    # The same among three rows, of which the other two fix nu: the first row never loses, and is finite all the same.
    found = fit([(9, 0, 3), (9, 0, 2), (5, 4, 1)])
    assert found.note == ""
    assert found.log_strengths[0] > max(found.log_strengths[1:]) + 1


def test_a_circle_without_ties_has_a_maximum() -> None:
    found = fit_davidson([(0, 1, 5, 0, 0), (1, 2, 5, 0, 0), (2, 0, 5, 0, 0)], 3)
    assert found.note == ""
    assert found.log_strengths == pytest.approx((0, 0, 0), abs=1e-9)


@given(st.lists(counts3, min_size=1, max_size=4))
@settings(deadline=None, max_examples=10)
def test_many_fits_at_once_are_the_same_fits(tables: list[list[tuple[int, int, int]]]) -> None:
    alone = [[*f.log_strengths, f.nu] for f in map(fit, tables)]
    batch, halves = fit_resamples(PAIRS, np.array(tables, float), 3)
    assert not halves.any()
    assert batch.tolist() == [pytest.approx(a, abs=1e-6) for a in alone]


def test_rows_that_nothing_connects_have_no_common_scale() -> None:
    assert is_connected([(0, 1), (2, 1)], 3)
    assert not is_connected([(0, 1)], 3)
    with pytest.raises(SpecError, match="no common scale"):
        fit_davidson([(0, 1, 1, 1, 1), (1, 2, 0, 0, 0)], 3)
    assert np.isnan(fit_resamples(PAIRS, np.array([[(1, 1, 1), (0, 0, 0), (0, 0, 0)]]), 3)[0]).all()
    with pytest.raises(SpecError, match="at least 0"):
        fit_davidson([(0, 1, -1, 1, 1)], 2)
