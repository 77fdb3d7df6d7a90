"""P-values: exactly valid where every sequence of losses can be enumerated, and in agreement with their intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, norm

from skipstone.calibration import Target, p_value, p_value_by_group, risk_interval
from skipstone.calibration.betting import anytime_log_capital, fixed_size_log_capital, mean_lower_bound
from skipstone.calibration.risk import betting_p, binomial_p, hoeffding_bentkus_p, split_by_group
from skipstone.errors import SpecError

Test = Callable[[Sequence[float], float], float]
SHARE, MEAN = Target.parse("ssim >= 0.5 @ 90%"), Target.parse("ssim >= 0.9 @ mean within 0..1")
losses = st.lists(st.floats(0, 1), min_size=1, max_size=40)
risks = st.floats(0.01, 0.99)


# -- Validity, exactly ----------------------------------------------------------------------------


def worst_excess(test: Test, points: Sequence[float], chances: Sequence[float], n: int) -> float:
    """The largest P(p <= u) - u over all u, of n independent losses, by going through every sequence of them."""
    alpha = math.fsum(x * c for x, c in zip(points, chances, strict=True))
    found = []
    for which in itertools.product(range(len(points)), repeat=n):
        chance = math.prod(chances[i] for i in which)
        found.append((test([points[i] for i in which], alpha), chance))
    found.sort()
    total, worst = 0.0, -1.0
    for i, (p, chance) in enumerate(found):
        total += chance
        if i + 1 == len(found) or found[i + 1][0] > p:
            worst = max(worst, total - p)
    return worst


def normal_p(x: Sequence[float], alpha: float) -> float:
    """The test that many would take: the mean over its standard error is nearly normal. It is not valid."""
    a = np.asarray(x)
    error = a.std(ddof=1) / len(a) ** 0.5
    return float(norm.cdf((a.mean() - alpha) / error)) if error else float(a.mean() >= alpha)


CASES = [
    ((0.0, 1.0), (0.9, 0.1), 10),
    ((0.0, 1.0), (0.5, 0.5), 10),
    ((0.0, 1.0), (0.2, 0.8), 10),
    ((0.2, 1.0), (0.95, 0.05), 10),
    ((0.0, 0.3, 1.0), (0.6, 0.3, 0.1), 6),
    ((0.1, 0.12, 0.9), (0.49, 0.49, 0.02), 6),
    ((0.0, 0.9, 1.0), (0.1, 0.45, 0.45), 6),
]


@pytest.mark.parametrize(("points", "chances", "n"), CASES)
@pytest.mark.parametrize("test", [betting_p, hoeffding_bentkus_p])
def test_p_values_are_valid(test: Test, points: Sequence[float], chances: Sequence[float], n: int) -> None:
    assert worst_excess(test, points, chances, n) <= 1e-9


def test_the_normal_approximation_is_not_valid_which_this_would_show() -> None:
    assert worst_excess(normal_p, (0.0, 1.0), (0.9, 0.1), 10) > 0.1


@pytest.mark.parametrize("alpha", [0.03, 0.1, 0.5])
def test_the_binomial_p_is_the_exact_tail(alpha: float) -> None:
    a, n = Fraction(alpha), 12
    tail = Fraction(0)
    for failures in range(n + 1):
        tail += math.comb(n, failures) * a**failures * (1 - a) ** (n - failures)
        assert binomial_p(failures, n, alpha) == pytest.approx(float(tail), rel=1e-12)


# -- The formulas ---------------------------------------------------------------------------------


@given(losses, risks)
def test_hoeffding_bentkus_by_its_formula(x: list[float], alpha: float) -> None:
    n, mean = len(x), math.fsum(x) / len(x)
    kl = 0.0
    if mean < alpha:
        kl = (mean * math.log(mean / alpha) if mean else 0.0) + (1 - mean) * math.log((1 - mean) / (1 - alpha))
    bentkus = math.e * binomial_p(math.ceil(math.fsum(x)), n, alpha)
    assert hoeffding_bentkus_p(x, alpha) == pytest.approx(min(1, math.exp(-n * kl), bentkus), rel=1e-9)


def test_the_bets_by_hand() -> None:
    # No loss twice, 0.5 allowed: the first stake is as for a fair coin, of variance 1/4; the second knows of one x = 1.
    aim = 2 * math.log(1 / 0.05)
    first = min(math.sqrt(aim / (2 * 0.25)), 0.9 / 0.5)
    second = min(math.sqrt(aim / (2 * (0.25 + (1 - 0.75) ** 2) / 2)), 0.9 / 0.5)
    assert np.exp(fixed_size_log_capital(np.ones(2), 0.5)) == pytest.approx(
        [1 + first / 2, (1 + first / 2) * (1 + second / 2)]
    )
    share = (np.arange(1, 21) / 20) ** 2
    assert np.exp(anytime_log_capital(np.array([1.0, 0.0]), 0.25)) == pytest.approx(
        [(1 + 3 * share).mean(), ((1 + 3 * share) * (1 - share)).mean()]
    )


@given(losses, risks, risks)
def test_capital_falls_as_the_claim_gets_weaker(x: list[float], a: float, b: float) -> None:
    a, b = sorted((a, b))
    for capital in (fixed_size_log_capital, anytime_log_capital):
        low, high = capital(np.array(x), a), capital(np.array(x), b)
        assert (low >= high - 1e-9).all() or np.isneginf(high[low < high]).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.floats(0.1, 0.9))
def test_stakes_see_only_the_past(x: list[float], m: float) -> None:
    """The last draw changes the last capital only, and by one stake whether it is won or lost."""
    for capital in (fixed_size_log_capital, anytime_log_capital):
        ends = [capital(np.array([*x[:-1], last]), m) for last in (0.0, m, 1.0)]
        for end in ends[1:]:
            np.testing.assert_array_equal(end[:-1], ends[0][:-1])
        assert ends[1][-1] == pytest.approx(ends[1][-2], abs=1e-9)  # nothing is won or lost
        lost, won = (math.exp(ends[i][-1] - ends[1][-1]) for i in (0, 2))
        assert (1 - lost) / m == pytest.approx((won - 1) / (1 - m), rel=1e-6)


def test_a_sorted_list_is_shuffled_before_it_is_bet_on() -> None:
    x = np.linspace(0, 0.19, 100)
    p = betting_p(x.tolist(), 0.1)
    assert (
        math.exp(-fixed_size_log_capital(1 - x, 0.9).max()) < 0.2 < 0.4 < p
    )  # in order, the first half alone would say more
    assert betting_p(x.tolist(), 0.1, seed=1) != p


def test_no_luck_with_the_order_proves_what_the_mean_does_not_show() -> None:
    x = np.array([0.0] * 60 + [1.0] * 60)
    found = betting_p(x.tolist(), 0.4)
    assert math.exp(-fixed_size_log_capital(1 - x, 0.6).max()) < 1e-6
    assert found == 1.0


# -- Targets --------------------------------------------------------------------------------------

values = st.lists(st.floats(0, 1) | st.just(math.nan) | st.none(), min_size=1, max_size=40)


@given(values)
def test_the_test_is_fixed_by_the_target(x: list[float | None]) -> None:
    failures = sum(v is None or not v >= 0.5 for v in x)
    assert p_value(SHARE, x) == binomial_p(failures, len(x), 0.1)
    assert p_value(MEAN, x) == betting_p([MEAN.loss(v) for v in x], MEAN.risk)


@pytest.mark.parametrize("target", [SHARE, MEAN])
def test_what_cannot_be_measured_counts_against_the_promise(target: Target) -> None:
    good = [0.97] * 60
    for nothing in (math.nan, None):
        assert p_value(target, [*good, nothing]) == p_value(target, [*good, 0.0]) > p_value(target, good)


@given(values, st.floats(0.55, 0.99), st.sampled_from([SHARE, MEAN]))
def test_the_worse_end_of_the_interval_agrees_with_the_test(
    x: list[float | None], confidence: float, target: Target
) -> None:
    found, p = risk_interval(target, x, confidence), p_value(target, x)
    promised = target.fraction if target.fraction is not None else target.level
    assert 0 <= found.low <= found.value + 1e-12 <= found.high + 2e-12 <= 1 + 2e-12
    assert found.n == len(x)
    if abs(found.low - promised) > 1e-9 and abs(p - (1 - confidence)) > 1e-9:
        assert (found.low > promised) == (p <= 1 - confidence)


def test_intervals_of_shares_are_those_of_clopper_and_pearson() -> None:
    found = risk_interval(SHARE, [0.9] * 18 + [0.1] * 2, 0.95)
    assert (found.value, found.n) == (0.9, 20)
    assert (found.low, found.high) == pytest.approx((beta.ppf(0.05, 18, 3), beta.ppf(0.95, 19, 2)))


def test_intervals_of_means_cover() -> None:
    """Each end misses the true mean less often than it may: 300 samples of 60, of a skewed distribution."""
    rng = np.random.default_rng(1)
    missed = np.zeros(2)
    for x in 1 - rng.beta(0.3, 2.7, (300, 60)):
        found = risk_interval(MEAN, x.tolist(), 0.9)
        missed += (found.low > 0.9, found.high < 0.9)
    assert (missed <= 300 * 0.1).all()
    assert missed.sum() > 0  # not merely endless


def test_lower_is_better_turns_the_interval() -> None:
    low = Target.parse("lpips <= 0.2 @ mean within 0..2")
    high = Target.parse("ssim >= 0.9 @ mean within 0..1")
    x = [0.05, 0.1, 0.3, 0.02] * 10
    a, b = risk_interval(low, x, 0.9), risk_interval(high, [1 - v / 2 for v in x], 0.9)
    assert (a.low, a.value, a.high) == pytest.approx((2 - 2 * b.high, 2 - 2 * b.value, 2 - 2 * b.low))


@given(values, st.data())
def test_groups_are_tested_one_by_one(x: list[float | None], data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.sampled_from("abc"), min_size=len(x), max_size=len(x)))
    found = p_value_by_group(MEAN, x, groups)
    assert list(found) == sorted(set(groups))
    for name, p in found.items():
        assert p == p_value(MEAN, [v for v, g in zip(x, groups, strict=True) if g == name])
    assert p_value_by_group(MEAN, x) == {"": p_value(MEAN, x)}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.5))
def test_the_bound_of_a_mean_is_the_greatest_that_is_rejected(x: list[float], delta: float) -> None:
    bound = mean_lower_bound(np.array(x), delta, fixed_size_log_capital)
    assert 0 <= bound < 1
    if 0 < bound < 1 - 1e-9:
        assert fixed_size_log_capital(np.array(x), bound).max() >= math.log(1 / delta)
        assert fixed_size_log_capital(np.array(x), bound + 1e-9).max() <= math.log(1 / delta) + 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: p_value(SHARE, []),
        lambda: risk_interval(SHARE, [1.0], 0.5),
        lambda: risk_interval(SHARE, [1.0], 1.0),
        lambda: split_by_group([1.0, 2.0], ["a"]),
        lambda: binomial_p(3, 2, 0.1),
        lambda: binomial_p(0, 0, 0.1),
        lambda: binomial_p(0, 1, 1.0),
        lambda: betting_p([], 0.1),
        lambda: betting_p([1.5], 0.1),
        lambda: betting_p([math.nan], 0.1),
        lambda: hoeffding_bentkus_p([0.5], 0.0),
    ],
)
def test_what_is_out_of_range_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(SpecError, match="Expected "):
        wrong()
