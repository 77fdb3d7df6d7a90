"""The audit: an e-process, exactly; the same however often one looks; and sure to notice."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone.calibration import Target, Watchdog
from skipstone.calibration.betting import GAMBLERS
from skipstone.calibration.sequential import RunningAudit
from skipstone.errors import SpecError

SHARE, MEAN = Target.parse("ssim >= 0.5 @ 90%"), Target.parse("ssim >= 0.9 @ mean within 0..1")
values = st.lists(st.floats(0, 1) | st.just(math.nan) | st.none(), min_size=1, max_size=30)
kinds = st.sampled_from([SHARE, MEAN])


def sequences(points: tuple[float, ...], chances: tuple[float, ...], n: int) -> list[tuple[float, list[float]]]:
    """Every sequence of n values, and its chance."""
    return [
        (math.prod(chances[i] for i in which), [points[i] for i in which])
        for which in itertools.product(range(len(points)), repeat=n)
    ]


@pytest.mark.parametrize(
    ("target", "points", "chances"),
    [
        (SHARE, (1.0, 0.0), (0.9, 0.1)),
        (MEAN, (1.0, 0.0), (0.9, 0.1)),
        (MEAN, (0.95, 0.45), (0.9, 0.1)),
    ],
)
def test_while_the_promise_holds_the_capital_is_worth_what_it_was(
    target: Target, points: tuple[float, ...], chances: tuple[float, ...]
) -> None:
    """The risk is what is allowed: E[e] = 1, and alarms of all sequences together have at most the chance allowed."""
    expected, alarmed = 0.0, 0.0
    for chance, x in sequences(points, chances, 8):
        found = Watchdog(target, 0.2).update(x)
        expected += chance * found.e_value
        alarmed += chance * found.alarm
    assert expected == pytest.approx(1.0)
    assert 0 < alarmed <= 0.2


def test_a_smaller_risk_is_worth_less() -> None:
    expected = sum(chance * Watchdog(SHARE).update(x).e_value for chance, x in sequences((1.0, 0.0), (0.95, 0.05), 8))
    assert expected < 0.95


@given(kinds, values, st.data())
@settings(max_examples=50)
def test_it_does_not_matter_how_often_one_looks(target: Target, x: list[float | None], data: st.DataObject) -> None:
    at_once = Watchdog(target).update(x)
    state: tuple[float, ...] = ()
    peak, alarm, i = 1.0, False, 0
    while i < len(x):
        step = data.draw(st.integers(1, len(x) - i))
        found = Watchdog(target, state=state).update(x[i : i + step])
        assert found.peak >= peak
        assert found.alarm or not alarm
        peak, alarm, i = found.peak, found.alarm, i + step
        state = tuple(json.loads(json.dumps(found.state)))  # as a file keeps it
    assert found == at_once


@given(kinds, values, st.floats(0.01, 0.4))
@settings(max_examples=100)
def test_the_alarm_is_where_the_interval_misses_the_target(
    target: Target, x: list[float | None], false_alarm: float
) -> None:
    found = Watchdog(target, false_alarm).update(x)
    promised = target.fraction if target.fraction is not None else target.level
    assert found.n == len(x)
    assert found.peak >= max(1.0, found.e_value)
    assert found.alarm == (found.peak >= 1 / false_alarm) or found.peak == pytest.approx(1 / false_alarm)
    if abs(found.interval.high - promised) > 1e-9:
        assert found.alarm == (found.interval.high < promised)


def test_intervals_hold_at_all_times_together() -> None:
    """200 streams of 150 whose share is 0.8, looked at after every sample: few ever leave it out, on either side."""
    rng, low, high = np.random.default_rng(5), 0, 0
    target = Target.parse("ssim >= 0.5 @ 80%")
    mirrored = Target.parse("lpips <= 0.5 @ 20%")
    for _ in range(200):
        good = rng.random(150) < 0.8
        low += Watchdog(target, 0.1).update(good.astype(float).tolist()).alarm  # says: less than 0.8
        high += Watchdog(mirrored, 0.1).update(good.astype(float).tolist()).alarm  # says: fewer than 20 % fail
    assert low <= 0.1 * 200
    assert high <= 0.1 * 200
    assert low + high > 0


def test_a_broken_promise_is_noticed() -> None:
    rng = np.random.default_rng(3)
    bad = (rng.random(400) < 0.7).astype(float).tolist()
    found = Watchdog(SHARE).update(bad)
    assert found.alarm
    assert found.interval.high < 0.9
    assert found.interval.low < 0.7 < found.interval.high
    back = Watchdog(SHARE, state=found.state).update([1.0] * 2000)
    assert back.e_value < 1 < 20 < back.peak
    assert back.alarm  # once raised, it stays


def test_nothing_but_failures_is_noticed_at_once_and_never_overflows() -> None:
    assert Watchdog(SHARE).update([None] * 2).alarm
    assert Watchdog(SHARE).update([math.nan] * 5000).e_value == math.inf


@pytest.mark.parametrize("wrong", [{"false_alarm": 0.0}, {"false_alarm": 0.5}, {"state": (0.5, 1.5)}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="audit: expected"):
        Watchdog(SHARE, **wrong)  # type: ignore[arg-type]


def test_an_audit_without_values_is_refused() -> None:
    with pytest.raises(SpecError, match="at least one prompt"):
        Watchdog(SHARE).update([])


@given(kinds, values, st.data())
@settings(max_examples=50)
def test_one_loss_at_a_time_is_the_same_test(target: Target, x: list[float | None], data: st.DataObject) -> None:
    """To the last bit, in pieces of any size; what it keeps does not grow."""
    running = RunningAudit(target, 0.2)
    rest = x
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        running, rest = running.update(rest[:count]), rest[count:]
        whole = Watchdog(target, 0.2).update(x[: running.n])
        assert (running.e_value, running.alarm, running.n) == (whole.e_value, whole.alarm, whole.n)
        assert len(running.logs) == GAMBLERS


@pytest.mark.parametrize("wrong", [{"false_alarm": 0.5}, {"n": -1}, {"logs": (0.0,)}, {"logs": (math.nan,) * GAMBLERS}])
def test_states_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="audit: expected"):
        RunningAudit(SHARE, **wrong)  # type: ignore[arg-type]
