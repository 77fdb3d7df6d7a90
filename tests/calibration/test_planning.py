"""The price in prompts: what is said before the run is what the tests then do."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone.calibration import Target, check_enough_prompts, p_value, prompts_needed
from skipstone.calibration.planning import fewest
from skipstone.calibration.risk import binomial_p
from skipstone.errors import SpecError

SHARE, MEAN = Target.parse("psnr >= 30 @ 90%"), Target.parse("ssim >= 0.9 @ mean within 0..1")


@given(st.integers(5, 98), st.floats(0.5, 0.99))
def test_with_the_fewest_prompts_and_no_failure_a_share_is_proved_and_with_one_less_not(
    percent: int, confidence: float
) -> None:
    target = Target.parse(f"ssim >= 0.5 @ {percent}%")
    n = fewest(target, confidence)
    assert p_value(target, [1.0] * n) <= 1 - confidence
    assert n == 1 or p_value(target, [1.0] * (n - 1)) > 1 - confidence
    assert n == pytest.approx(math.log(1 - confidence) / math.log(percent / 100), abs=1 + 1e-6)


@given(st.floats(0.02, 0.98), st.floats(0.5, 0.99))
def test_the_same_of_means(level: float, confidence: float) -> None:
    target = Target("ssim", ">=", level, None, (0.0, 1.0))
    n = fewest(target, confidence)
    assert p_value(target, [1.0] * n) <= 1 - confidence
    assert n == 1 or p_value(target, [1.0] * (n - 1)) > 1 - confidence


def power(n: int, rate: float, delta: float = 0.1, alpha: float = 0.1) -> float:
    """Chance that so many prompts accept a setting that fails at this rate, by adding up what accepts."""
    return sum(
        math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1) if binomial_p(k, n, alpha) <= delta
    )


def test_the_power_of_a_share_is_exact() -> None:
    found = prompts_needed(SHARE, 0.9, slack=0.05)
    assert (found.fewest, found.slack, found.deviation, found.groups) == (22, 0.05, None, 1)
    assert found.likely is not None
    assert power(found.likely - 1, 0.05) < 0.8
    assert all(power(found.likely + more, 0.05) >= 0.8 for more in range(40))


def test_the_power_of_a_mean_is_that_of_the_test() -> None:
    """Calibrations of a seed that planning did not use, with losses of the mean and deviation that were assumed."""
    found = prompts_needed(MEAN, 0.9, slack=0.04, deviation=0.08)
    assert found.likely is not None
    weight = 0.06 * 0.94 / 0.08**2 - 1
    x = 1 - np.random.default_rng(99).beta(0.06 * weight, 0.94 * weight, (300, found.likely))
    assert x.std() == pytest.approx(0.08, rel=0.05)
    accepted = np.mean([p_value(MEAN, row.tolist()) <= 0.1 for row in x])
    assert 0.7 < accepted < 0.9


def test_groups_and_little_slack_have_their_price() -> None:
    for target in (SHARE, MEAN):
        alone, three = prompts_needed(target, 0.9), prompts_needed(target, 0.9, groups=3)
        assert three.fewest == 3 * alone.fewest
        assert alone.likely is not None
        assert three.likely is not None
        assert three.likely > 3 * alone.likely  # all three must be accepted
        tight = prompts_needed(target, 0.9, slack=alone.slack / 2, deviation=alone.deviation)
        assert tight.likely is not None
        assert tight.likely > alone.likely
    assert prompts_needed(SHARE, 0.9, slack=1e-5).likely is None  # more than anybody would draw


@pytest.mark.parametrize("text", ["ssim >= 0.95 @ mean", "psnr >= 30 @ mean", "lpips <= 0.1 @ mean within 0..1"])
def test_a_slack_is_assumed_that_the_metric_can_have(text: str) -> None:
    target = Target.parse(text)
    found = prompts_needed(target, 0.9)
    assert found.deviation == 2 * found.slack
    better = target.level + found.slack * (1 if target.relation == ">=" else -1)
    assert 0 < target.loss(better) < target.risk
    assert found.likely is not None
    assert found.likely >= found.fewest


def test_too_few_prompts_are_said_before_the_run() -> None:
    check_enough_prompts(SHARE, 0.9, 22)
    with pytest.raises(SpecError, match=r"at least 22 prompts.*got 21.*'@ 89%' or a confidence of 0\.89 at most"):
        check_enough_prompts(SHARE, 0.9, 21)
    with pytest.raises(SpecError, match="at least 299 prompts"):
        check_enough_prompts(Target.parse("psnr >= 30 @ 99%"), 0.95, 200)
    with pytest.raises(SpecError, match="got 0"):
        check_enough_prompts(SHARE, 0.9, 0)
    with pytest.raises(SpecError, match="ask for less"):
        check_enough_prompts(Target.parse("ssim >= 0.95 @ mean"), 0.95, 50)


@given(st.integers(2, 97), st.floats(0.51, 0.98), st.integers(1, 60))
def test_what_is_offered_instead_would_do(percent: int, confidence: float, n: int) -> None:
    target = Target.parse(f"psnr >= 30 @ {percent}%")
    try:
        check_enough_prompts(target, confidence, n)
    except SpecError as e:
        offered = str(e).split(" at most")[0]
        if "'@ " in offered:
            check_enough_prompts(
                Target.parse(f"psnr >= 30 @ {offered.split(chr(39) + '@ ')[-1].split('%')[0]}%"), confidence, n
            )
        if "a confidence of " in offered:
            check_enough_prompts(target, float(offered.rsplit("a confidence of ", 1)[1]), n)


def test_every_group_must_have_enough() -> None:
    check_enough_prompts(SHARE, 0.9, 44, ["a", "b"] * 22)
    with pytest.raises(SpecError, match=r"at least 22 prompts in the final test in each group.*got 4 of 'b'"):
        check_enough_prompts(SHARE, 0.9, 44, ["a"] * 40 + ["b"] * 4)
    with pytest.raises(SpecError, match="one group for each of 44"):
        check_enough_prompts(SHARE, 0.9, 44, ["a"])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: prompts_needed(SHARE, 1.0),
        lambda: prompts_needed(SHARE, 0.9, slack=0.0),
        lambda: prompts_needed(SHARE, 0.9, slack=0.2),
        lambda: prompts_needed(SHARE, 0.9, groups=0),
        lambda: prompts_needed(MEAN, 0.9, deviation=0.0),
        lambda: prompts_needed(SHARE, 0.9, power=1.0),
        lambda: check_enough_prompts(SHARE, 0.0, 100),
    ],
)
def test_plans_out_of_range_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(SpecError, match="Expected "):
        wrong()


def test_a_target_that_nobody_can_prove_is_refused() -> None:
    with pytest.raises(SpecError, match="takes more than 20,000 prompts"):
        fewest(Target("ssim", ">=", 0.99999, None, (0.0, 1.0)), 0.99)
