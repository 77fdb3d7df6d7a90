"""Statistics: known values worked out by hand, the coverage of intervals, and what holds for any numbers."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone.errors import SpecError
from skipstone.evaluation import statistics as S

numbers = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))


def samples(values: list[float], seeds: int = 1) -> dict[str, float]:
    """`p0:0`, `p0:1`, ..., `p1:0`, ...: the seeds of a prompt are neighbours."""
    return {f"p{i // seeds}:{i % seeds}": v for i, v in enumerate(values)}


# -- Known values --------------------------------------------------------------------------------


def test_unlucky_tenth_lies_in_the_bad_direction() -> None:
    values = np.arange(11.0)  # 0..10
    assert S.tail_statistic("higher")(values) == pytest.approx(1.0)
    assert S.tail_statistic("lower")(values) == pytest.approx(9.0)
    with pytest.raises(SpecError, match=r"quantile in \[0, 1\]"):
        S.quantile(1.5)


def test_signed_rank_by_hand() -> None:
    # Ranks 1 to 5, only the smallest is negative: W- = 1; 2 of the 32 sign patterns have W- <= 1, so p = 2 * 2 / 32.
    p, effect = S.signed_rank([-1.0, 2.0, 3.0, 4.0, 5.0])
    assert p == pytest.approx(4 / 32)
    assert effect == pytest.approx((14 - 1) / 15)
    assert S.signed_rank([0.0, 0.0]) == (1.0, 0.0)
    assert S.signed_rank([0.0, -1.0, 2.0, 3.0, 4.0, 5.0]) == S.signed_rank([-1.0, 2.0, 3.0, 4.0, 5.0])


def test_holm_by_hand() -> None:
    # Sorted 0.01 0.03 0.04 times 4 3 2, made monotone; 0.005 times 4.
    assert S.holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert S.holm([]) == []
    with pytest.raises(SpecError, match="p-values"):
        S.holm([1.2])


def test_tost_by_hand() -> None:
    # Mean 0, deviation 1, n = 4: t = 1 / (1 / 2) = 2 with 3 degrees of freedom, whose upper tail is 0.06966.
    d = [-math.sqrt(1.5), 0.0, 0.0, math.sqrt(1.5)]
    found = S.tost(d, 1.0)
    assert found.p == pytest.approx(0.06966, abs=1e-5)
    assert not found.equivalent
    assert found.high == pytest.approx(2.353363 * 0.5, abs=1e-5)  # the 95 % point of t with 3 degrees of freedom
    assert S.tost(d, 2.0).equivalent
    assert S.tost([0.0, 0.0, 0.0], 0.1).equivalent
    assert not S.tost([0.0], 0.1).equivalent  # one prompt proves nothing
    assert not S.tost([0.2, 0.2, 0.2], 0.1).equivalent


def test_two_groups_by_hand() -> None:
    # All six of the second above all six of the first: exact p = 2 / C(12, 6).
    found = S.compare_groups([1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16])
    assert found.p == pytest.approx(2 / 924)
    assert found.above == 1.0
    assert found.difference.value == pytest.approx(10.0)
    assert found.difference.low > 5
    assert S.compare_groups([3, 3], [3, 3]).p == 1.0
    with pytest.raises(SpecError, match="at least two"):
        S.compare_groups([1], [2, 3])


def test_rank_correlation_by_hand() -> None:
    # Rank differences 0 1 1 0: rho = 1 - 6 * 2 / (4 * 15) = 0.8.
    assert S.rank_correlation([1, 2, 3, 4], [10, 30, 20, 40])[0] == pytest.approx(0.8)
    assert S.rank_correlation([1, 2, 3], [5, 5, 5]) == (0.0, 1.0)


# -- Samples -------------------------------------------------------------------------------------


def test_rows_are_joined_by_id_and_seeds_averaged() -> None:
    a = {"x:0": 1.0, "x:1": 3.0, "y:0": 5.0, "only-a:0": 100.0}
    b = {"y:0": 1.0, "only-b:7": 50.0, "x:1": 1.0, "x:0": 1.0}
    assert S.paired_differences(a, b) == [1.0, 4.0]
    assert S.compare_paired(a, b).n == 2
    with pytest.raises(SpecError, match="samples in common"):
        S.compare_paired({"x:0": 1.0}, {"y:0": 1.0})


def test_seeds_of_a_prompt_are_no_prompts_of_their_own() -> None:
    """Four copies of each prompt under other seeds tell nothing new: the interval must not shrink."""
    values = list(np.random.default_rng(0).normal(size=16))
    once, often = (
        S.bootstrap(samples(values), S.mean),
        S.bootstrap(samples([v for v in values for _ in range(4)], 4), S.mean),
    )
    assert often.n == once.n == 16
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    naive = S.bootstrap(samples([v for v in values for _ in range(4)]), S.mean)
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_prompts_with_missing_seeds_are_counted_by_what_they_have() -> None:
    found = S.bootstrap({"a:0": 0.0, "a:1": 2.0, "b:0": 10.0}, S.mean)
    assert found.value == pytest.approx(4.0)
    assert found.low == pytest.approx(1.0)  # a twice
    assert found.high == pytest.approx(10.0)  # b twice


# -- Intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("statistic", "truth"), [("mean", 0.0), ("median", 0.0), ("tail", NormalDist().inv_cdf(0.1))])
def test_intervals_cover_the_truth(statistic: str, truth: float) -> None:
    """Of 100 intervals at 95 % from 40 normal samples each, about 95 hold the truth."""
    how = {"mean": S.mean, "median": S.median, "tail": S.tail_statistic("higher")}[statistic]
    rng = np.random.default_rng(1)
    spans = [S.bootstrap(samples(list(rng.normal(size=40))), how, seed=i) for i in range(100)]
    assert 0.88 <= np.mean([s.low <= truth <= s.high for s in spans]) <= 0.99


def test_pairing_removes_what_prompts_have_in_common() -> None:
    rng = np.random.default_rng(2)
    prompts = rng.normal(40, 10, 64)
    a, b = samples(list(prompts + 1 + rng.normal(0, 0.3, 64))), samples(list(prompts))
    found = S.compare_paired(a, b)
    assert found.mean.low > 0.5
    assert found.mean.high < 1.5
    assert found.p < 1e-6
    assert found.wins > 0.9
    alone = S.bootstrap(a, S.mean)
    assert alone.high - alone.low > 5 * (found.mean.high - found.mean.low)


def test_no_difference_is_found_as_often_as_alpha_says() -> None:
    rng = np.random.default_rng(3)
    hits = [S.signed_rank(list(rng.normal(size=24)))[0] < 0.05 for _ in range(400)]
    assert 0.02 <= np.mean(hits) <= 0.09


def test_one_prompt_has_no_interval() -> None:
    found = S.bootstrap({"a:0": 3.0, "a:1": 5.0}, S.mean)
    assert found.value == 4.0
    assert math.isnan(found.low)
    with pytest.raises(SpecError, match="at least one prompt"):
        S.bootstrap({}, S.mean)


# -- What holds for any numbers ------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_helps_and_keeps_the_order(ps: list[float]) -> None:
    adjusted = S.holm(ps)
    assert all(raw <= new <= 1 for raw, new in zip(ps, adjusted, strict=True))
    by_raw = [new for _, new in sorted(zip(ps, adjusted, strict=True))]
    assert by_raw == sorted(by_raw)
    assert min(adjusted) == min(1.0, len(ps) * min(ps))


@given(st.lists(numbers, min_size=2, max_size=20), st.floats(0.1, 50))
def test_tost_is_symmetric_and_easier_with_a_wider_margin(found: list[float], margin: float) -> None:
    one, other = S.tost(found, margin), S.tost([-d for d in found], margin)
    assert one.p == pytest.approx(other.p)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert S.tost(found, 2 * margin).p <= one.p
    inside = -margin < one.low and one.high < margin
    assert one.equivalent == inside or abs(one.p - 0.05) < 1e-6  # the test and its interval say the same


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12))
def test_comparisons_turn_their_sign_with_the_order(pairs: list[tuple[float, float]]) -> None:
    a, b = (samples([p[k] for p in pairs]) for k in (0, 1))
    one, other = S.compare_paired(a, b), S.compare_paired(b, a)
    assert one.p == pytest.approx(other.p)
    assert one.effect == pytest.approx(-other.effect)
    assert one.wins == pytest.approx(1 - other.wins)
    assert one.median.value == pytest.approx(-other.median.value)
    assert one.mean.low <= one.mean.value + 1e-9
    assert one.mean.value <= one.mean.high + 1e-9
