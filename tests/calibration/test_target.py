"""Targets: one grammar that inverts, losses that err on the safe side, and sentences for whoever mistypes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone import registry
from skipstone.calibration import MetricFacts, Target
from skipstone.errors import SpecError, UnknownNameError
from skipstone.metrics import Metric

levels = st.floats(-1, 1).map(lambda x: round(x, 6)) | st.floats(-1, 1)
fractions = st.floats(1e-6, 1, exclude_max=True)
ends = st.tuples(st.floats(-50, -1.5), st.floats(1.5, 50))
numbers = st.floats(-1e6, 1e6)


@st.composite
def targets(draw: st.DrawFn) -> Target:
    level = draw(levels)
    if draw(st.booleans()):
        metric = draw(st.sampled_from(["psnr", "ssim", "judge"]))
        level = abs(level) if metric != "ssim" else level
        return Target(metric, ">=", level, draw(fractions))
    return Target("ssim", ">=", level / 2, None, draw(st.just((-1.0, 1.0)) | ends))


# -- The grammar ----------------------------------------------------------------------------------


@given(targets())
def test_what_is_spelt_is_read_as_the_same_target(target: Target) -> None:
    assert Target.parse(target.spell()) == target
    assert Target.parse("  " + target.spell().replace(" >= ", ">=").replace(" @ ", "@")) == target


@pytest.mark.parametrize(
    ("text", "target", "risk"),
    [
        ("psnr >= 30 @ 90%", Target("psnr", ">=", 30.0, 0.9), 0.1),
        ("lpips<=.1@99.5 %", Target("lpips", "<=", 0.1, 0.995), 0.005),
        ("ssim >= 0.95 @ mean", Target("ssim", ">=", 0.95, None, (-1.0, 1.0)), 0.025),
        ("psnr >= 33 @ mean", Target("psnr", ">=", 33.0, None, (0.0, 99.0)), 2 / 3),
        ("lpips <= 0.1 @ mean within 0..2", Target("lpips", "<=", 0.1, None, (0.0, 2.0)), 0.05),
    ],
)
def test_targets_are_read(text: str, target: Target, risk: float) -> None:
    assert Target.parse(text) == target
    assert target.risk == pytest.approx(risk, abs=1e-12)


def test_risks_of_shares_are_the_decimal_that_was_meant() -> None:
    assert [Target.parse(f"psnr >= 30 @ {p}%").risk for p in (90, 95, 70, 99.9)] == [0.1, 0.05, 0.3, 0.001]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("psnr <= 30 @ 90%", r"higher psnr is better.*Type: psnr >= 30 @ 90%"),
        ("lpips > 0.1 @ mean within 0..1", r"Type: lpips <= 0\.1 @ mean within 0\.\.1"),
        ("psnr ≥ 30 @ 90%", r"Type: psnr >= 30 @ 90%"),
        ("psnr >= 30 @ 0.9", r"in percent: @ 90%"),
        ("psnr >= 30 @ 90", r"percent sign is missing: @ 90%"),
        ("psnr >= 30", r"for which share of prompts: '@ 90%'"),
        (">= 0.9 @ 95%", r"expected 'psnr >= 30 @ 90%'"),
        ("", r"expected 'psnr >= 30 @ 90%'"),
        ("psnr >= 130 @ 90%", r"range of psnr, 0 to 99, got 130"),
        ("psnr >= 1e999 @ 90%", r"range of psnr, 0 to 99, got inf"),
        ("ssim >= 1.5 @ mean", r"range of ssim, -1 to 1, got 1\.5"),
        ("lpips <= -1 @ 90%", r"range of lpips, 0 to any, got -1"),
        ("psnr >= 30 @ 100%", r"type 99% or less"),
        ("psnr >= 30 @ 0%", r"between 0 and 100 %"),
        ("psnr >= 30 @ 1e999%", r"between 0 and 100 %"),
        ("ssim >= 1 @ mean", r"strictly between -1 and 1, got 1"),
        ("lpips <= 0.1 @ mean", r"Type for example 'lpips <= 0\.1 @ mean within 0\.\.1'"),
        ("lpips <= 0.1 @ mean within 1..0", r"the least and the greatest value"),
        ("fid <= 3 @ mean", r"one number of many pictures.*lpips"),
    ],
)
def test_mistakes_are_answered_with_what_to_type(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        Target.parse(text)


def test_unknown_metrics_are_suggested() -> None:
    with pytest.raises(UnknownNameError, match=r"no metric is called 'pnsr'\. Did you mean 'psnr'\?.*ssim"):
        Target.parse("pnsr >= 30 @ 90%")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'likeness'"):
        Target.parse("likenes >= 0.5 @ 90%", {"likeness": MetricFacts("higher")})


@pytest.mark.parametrize(
    "wrong",
    [
        ("psnr", "=", 30.0, 0.9),
        ("psnr", ">=", math.nan, 0.9),
        ("psnr", ">=", 30.0, 1.0),
        ("ssim", ">=", 0.5, 0.9, (0, 1)),
    ],
)
def test_targets_made_by_hand_are_checked_too(wrong: tuple[object, ...]) -> None:
    with pytest.raises(SpecError, match="target: "):
        Target(*wrong)  # type: ignore[arg-type]


def test_users_metrics_bring_their_direction_and_range() -> None:
    known = {"likeness": MetricFacts("higher", (0.0, 10.0)), "blur": MetricFacts("lower")}
    assert Target.parse("likeness >= 7 @ 90%", known).risk == 0.1
    mean = Target.parse("likeness >= 7 @ mean", known)
    assert mean.spell() == "likeness >= 7 @ mean within 0..10"
    assert Target.parse(mean.spell(), known) == mean
    with pytest.raises(SpecError, match="lower blur is better"):
        Target.parse("blur >= 1 @ 90%", known)
    with pytest.raises(SpecError, match="within"):
        Target.parse("blur <= 1 @ mean", known)


OF_ONE_PICTURE = [name for name in registry.names("metric") if issubclass(registry.find_class("metric", name), Metric)]


@pytest.mark.parametrize("name", OF_ONE_PICTURE)
def test_every_metric_of_one_picture_has_a_bad_end_or_wants_one(name: str) -> None:
    metric = registry.find_class("metric", name)
    low, high = metric.span
    assert low < high
    text = f"{name} {'>=' if metric.better == 'higher' else '<='} 0.5 @ mean"
    if math.isfinite(low) and math.isfinite(high):
        assert Target.parse(text).span == (low, high)
    else:
        with pytest.raises(SpecError, match="within"):
            Target.parse(text)
        assert Target.parse(text + " within 0..1").risk == 0.5


# -- Losses ---------------------------------------------------------------------------------------


@given(targets(), numbers, numbers)
def test_losses_are_between_0_and_1_and_fall_as_values_get_better(target: Target, a: float, b: float) -> None:
    worse, better = sorted((a, b), reverse=target.relation == "<=")
    assert 0 <= target.loss(better) <= target.loss(worse) <= 1


@given(targets())
def test_what_cannot_be_measured_never_meets(target: Target) -> None:
    for nothing in (math.nan, None):
        assert not target.meets(nothing)
        assert target.loss(nothing) == 1.0


@given(fractions, st.sampled_from([("psnr", ">="), ("lpips", "<=")]), st.floats(0, 60), numbers)
def test_a_share_counts_failures(fraction: float, kind: tuple[str, str], level: float, value: float) -> None:
    target = Target(kind[0], kind[1], level, fraction)  # type: ignore[arg-type]
    met = value >= level if kind[1] == ">=" else value <= level
    assert target.meets(value) is met
    assert target.loss(value) == (0.0 if met else 1.0)
    assert target.loss(level) == 0.0


@given(st.lists(st.floats(0, 300) | st.just(math.inf), min_size=1, max_size=20), st.floats(1, 98))
def test_a_mean_of_losses_that_meets_proves_the_mean_itself(values: list[float], level: float) -> None:
    """Values may pass the good end, as the psnr of identical pictures does: cutting them only makes the mean worse."""
    target = Target("psnr", ">=", level, None, (0.0, 99.0))
    if sum(map(target.loss, values)) / len(values) <= target.risk:
        assert sum(values) / len(values) >= level - 1e-9


@given(st.lists(st.floats(-5, 2), min_size=1, max_size=20), st.floats(0.01, 1.99))
def test_the_same_where_lower_is_better(values: list[float], level: float) -> None:
    target = Target("lpips", "<=", level, None, (0.0, 2.0))
    if sum(map(target.loss, values)) / len(values) <= target.risk:
        assert sum(values) / len(values) <= level + 1e-9


@given(targets(), st.floats(0, 1))
def test_a_risk_is_said_in_the_users_terms(target: Target, loss: float) -> None:
    said = target.value(loss)
    assert said == pytest.approx(1 - loss if target.span is None else said)
    if target.span is not None:
        assert target.loss(said) == pytest.approx(loss, abs=1e-12)
        assert target.value(target.risk) == pytest.approx(target.level)
    else:
        assert target.value(target.risk) == pytest.approx(target.fraction)


def test_the_promise_in_words() -> None:
    assert Target.parse("psnr >= 30 @ 90%").words == "at least 90 % of prompts have psnr >= 30"
    assert "counted as these" in Target.parse("ssim >= 0.9 @ mean").words
