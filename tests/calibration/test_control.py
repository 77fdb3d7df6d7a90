"""Which settings are accepted: the procedures by their definitions, and what conformal risk control rests on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone.calibration import Target, choose_setting, p_value
from skipstone.calibration.control import conformal, fixed_sequence, holm
from skipstone.errors import SpecError

SHARE, MEAN = Target.parse("ssim >= 0.5 @ 90%"), Target.parse("ssim >= 0.9 @ mean within 0..1")
ps = st.lists(st.floats(0, 1), min_size=1, max_size=8)
deltas = st.floats(0.01, 0.5)


def rows(failures: list[int], n: int = 100) -> list[list[float | None]]:
    """A row for each setting, with so many prompts that fail."""
    return [[0.0] * f + [1.0] * (n - f) for f in failures]


# -- Fixed sequence and Holm ------------------------------------------------------------------------


@given(ps, deltas)
def test_one_start_accepts_until_the_first_failure(p: list[float], delta: float) -> None:
    first = next((i for i, one in enumerate(p) if one > delta), len(p))
    assert fixed_sequence(p, delta) == tuple(range(first))


@given(ps, deltas, st.data())
def test_several_starts_share_delta(p: list[float], delta: float, data: st.DataObject) -> None:
    starts = data.draw(st.lists(st.integers(0, len(p) - 1), min_size=1, max_size=len(p), unique=True))
    found = fixed_sequence(p, delta, starts)
    each = delta / len(starts)
    assert found == tuple(
        i for i in range(len(p)) if any(s <= i and all(one <= each for one in p[s : i + 1]) for s in starts)
    )


@given(ps, deltas)
def test_holm_is_the_closure_of_bonferroni(p: list[float], delta: float) -> None:
    """A setting is accepted where every set of settings that it is in has one with p <= delta / size."""
    found = holm(p, delta)
    for i in range(len(p)):
        others = [p[j] for j in range(len(p)) if j != i]
        sets = [(p[i], *some) for size in range(len(p)) for some in itertools.combinations(others, size)]
        margins = [min(one) * len(one) - delta for one in sets]
        if max(margins) < -1e-12 or max(margins) > 1e-12:
            assert (i in found) == (max(margins) <= 0)


@given(ps, deltas)
def test_holm_accepts_at_least_what_bonferroni_does(p: list[float], delta: float) -> None:
    assert set(holm(p, delta)) >= {i for i, one in enumerate(p) if one * len(p) <= delta}


# -- Conformal risk control -------------------------------------------------------------------------

tables = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n + 1, max_size=n + 1), min_size=1, max_size=6)
)


@given(tables, st.floats(0.05, 0.95))
def test_the_mean_over_who_is_left_out_meets_the_risk(table: list[list[float]], alpha: float) -> None:
    """The theorem itself: of n + 1 exchangeable prompts any may be the next one, so that the mean over which of them

    is left out of the calibration is the expectation, given the prompts. It holds for every table, monotone or not.
    """
    losses = np.array(table)
    risk = 0.0
    for out in range(losses.shape[1]):
        index = conformal(np.delete(losses, out, axis=1).tolist(), alpha)
        risk += 0.0 if index is None else losses[index, out]
    assert risk / losses.shape[1] <= alpha + 1e-9


def test_without_the_extra_prompt_the_theorem_fails_which_the_test_above_would_show() -> None:
    # Two prompts, of which one always fails at the second setting: whoever is calibrated on the other alone takes it.
    losses = np.array([[0.0, 0.0], [0.0, 1.0]])
    assert conformal([[0.0], [0.0]], 0.4) is None  # (0 + 1) / 2 > 0.4
    plain = [int(np.flatnonzero(np.delete(losses, out, 1).mean(1) <= 0.4)[-1]) for out in (0, 1)]
    assert (losses[plain[0], 0] + losses[plain[1], 1]) / 2 > 0.4


def test_conformal_by_hand() -> None:
    table = [[0.0] * 9, [0.1] * 9, [0.2] * 9, [0.3] * 9]
    assert conformal(table, 0.28) == 2  # (9 * 0.2 + 1) / 10 = 0.28
    assert conformal(table, 0.2799) == 1
    assert conformal(table, 0.09) is None
    dip = [[0.0] * 9, [0.5] * 9, [0.1] * 9]  # what a safer setting loses counts at the faster one too
    assert conformal(dip, 0.3) == 0


# -- The choice -------------------------------------------------------------------------------------


def test_the_cheapest_accepted_setting_is_chosen() -> None:
    found = choose_setting(SHARE, rows([0, 1, 2, 3, 15]), [50, 20, 10, 12, 5], 0.1)
    assert (found.index, found.nearest, found.accepted) == (2, 2, (0, 1, 2, 3))
    assert found.p_values == tuple(p_value(SHARE, row) for row in rows([0, 1, 2, 3, 15]))
    assert found.p == found.p_values[2]
    tie = choose_setting(SHARE, rows([0, 1, 2]), [7, 7, 7], 0.1)
    assert tie.index == 0


def test_a_setting_behind_one_that_fails_is_reached_by_holm_alone() -> None:
    table, costs = rows([0, 50, 1]), [50, 20, 10]
    assert choose_setting(SHARE, table, costs, 0.1).index == 0
    assert choose_setting(SHARE, table, costs, 0.1, method="holm").index == 2


def test_where_none_is_accepted_the_nearest_is_named() -> None:
    found = choose_setting(SHARE, rows([30, 12, 20]), [50, 20, 10], 0.1)
    assert (found.index, found.accepted, found.nearest) == (None, (), 1)
    assert found.p == found.p_values[1] > 0.1
    hopeless = choose_setting(MEAN, [[0.3] * 20, [0.6] * 20, [math.nan] * 20], [3, 2, 1], 0.1)
    assert (hopeless.p_values, hopeless.nearest) == ((1.0, 1.0, 1.0), 1)


def test_every_group_must_meet_the_target() -> None:
    n = 60
    groups = ["cats", "dogs"] * n
    row: list[float | None] = [1.0, 1.0] * n
    for i in range(12):  # 12 of 60 dogs fail, and 10 % of all
        row[2 * i + 1] = None
    table = [[1.0] * len(row), row]
    apart = choose_setting(SHARE, table, [2, 1], 0.1, groups)
    assert apart.index == 0
    assert apart.p_values[1] == p_value(SHARE, row[1::2]) > p_value(SHARE, row)
    assert apart.p_values[0] == p_value(SHARE, [1.0] * n)  # half of the prompts prove less


def test_conformal_choices_have_no_p() -> None:
    table = [[1.0] * 30, [0.95] * 30, [0.5] * 30]
    found = choose_setting(MEAN, table, [3, 2, 1], None, method="conformal")
    assert (found.index, found.accepted, found.nearest) == (1, (1,), 1)
    assert math.isnan(found.p)
    assert len(found.p_values) == 3
    none = choose_setting(MEAN, table[1:], [2, 1], None, method="conformal")
    assert none.index == 0
    assert choose_setting(MEAN, table[2:], [1], None, method="conformal").index is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: choose_setting(SHARE, [], [], 0.1), "settings that all have a value"),
        (lambda: choose_setting(SHARE, [[1.0], [1.0, 1.0]], [1, 2], 0.1), "settings that all have a value"),
        (lambda: choose_setting(SHARE, [[1.0]], [1, 2], 0.1), "a cost each"),
        (lambda: choose_setting(SHARE, [[]], [1], 0.1), "at least one prompt"),
        (lambda: choose_setting(SHARE, [[1.0]], [1], 1.5), "delta in"),
        (lambda: choose_setting(SHARE, [[1.0]], [1], None), "method='conformal'"),
        (lambda: choose_setting(SHARE, [[1.0]], [1], 0.1, method="bonferroni"), "among fixed_sequence, holm"),  # type: ignore[arg-type]
        (lambda: choose_setting(MEAN, [[1.0]], [1], 0.1, method="conformal"), "no confidence and no groups"),
        (lambda: choose_setting(SHARE, [[1.0]], [1], None, method="conformal"), "'@ mean'"),
        (lambda: choose_setting(MEAN, [[1.0]], [1], None, ["a"], method="conformal"), "no groups"),
        (lambda: fixed_sequence([0.1], 0.1, [1]), "starts among"),
        (lambda: fixed_sequence([0.1], 0.1, []), "starts among"),
        (lambda: fixed_sequence([0.1, 0.2], 0.1, [0, 0]), "different starts"),
        (lambda: fixed_sequence([1.1], 0.1), "p-values in"),
        (lambda: holm([0.1], 0.0), "delta in"),
        (lambda: conformal([[2.0]], 0.1), "losses in"),
        (lambda: conformal([[0.0]], 1.0), "a risk in"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(wrong: Callable[[], object], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        wrong()
