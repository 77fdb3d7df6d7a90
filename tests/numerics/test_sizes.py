"""Sizes of a training: buckets are the nearest, shares are those of the samples, the shift is the published one."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skipstone.errors import SpecError
from skipstone.numerics.sizes import Size, SizePlan, nearest_buckets, parse_sizes, shift_time

SIDES = st.integers(1, 4096)
SIZES = st.lists(st.builds(Size, SIDES, SIDES), min_size=1, max_size=6, unique=True).map(tuple)
PLANS = SIZES.flatmap(
    lambda sizes: st.builds(
        SizePlan,
        st.just(sizes),
        st.lists(st.integers(1, 1000), min_size=len(sizes), max_size=len(sizes)).map(tuple),
        st.integers(0, 2**31),
        st.floats(0, 0.9),
    )
)


def test_sizes_are_width_times_height() -> None:
    assert parse_sizes(["768x512", "48"]) == (Size(768, 512), Size(48, 48))
    assert str(Size.parse("768X512")) == "768x512"


@pytest.mark.parametrize("text", ["", "512x", "x512", "-48", "48.5", "512x512x3", "48 64", "0x48", "0", "99999"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"Expected a size .*512"):
        parse_sizes([text])


def test_a_size_that_is_named_twice_or_no_multiple_is_refused() -> None:
    with pytest.raises(SpecError, match="48x48 twice"):
        parse_sizes(["48", "64", "48x48"])
    with pytest.raises(SpecError, match=r"multiples of 16 pixels, got 50x64: because\. Try 48x64\."):
        Size(50, 64).require_multiple(16, "because")
    Size(48, 64).require_multiple(16, "because")


@given(SIDES, SIDES, SIZES)
@example(1000, 1000, (Size(48, 48), Size(64, 64), Size(64, 48)))
def test_every_picture_is_in_the_nearest_buckets(width: int, height: int, sizes: tuple[Size, ...]) -> None:
    found = nearest_buckets(width, height, sizes)
    distances = [abs(math.log(width * size.height / (height * size.width))) for size in sizes]
    assert found
    assert all(distances[i] <= min(distances) + 1e-9 for i in found)
    rest = set(range(len(sizes))) - set(found)
    assert all(distances[i] > min(distances) - 1e-9 for i in rest)
    # a larger picture of the same ratio is in the same, and so is one of a ratio with the sizes turned
    assert nearest_buckets(3 * width, 3 * height, sizes) == found
    assert nearest_buckets(height, width, [Size(size.height, size.width) for size in sizes]) == found
    of_a_ratio = {sizes[i].width * sizes[found[0]].height == sizes[i].height * sizes[found[0]].width for i in found}
    assert of_a_ratio == {True} or min(distances) > 0


def test_sizes_of_one_ratio_share_their_pictures() -> None:
    sizes = parse_sizes(["48", "64", "96x48"])
    assert nearest_buckets(500, 400, sizes) == (0, 1)
    assert nearest_buckets(300, 200, sizes) == (2,)


@given(PLANS, st.integers(0, 10**6), st.integers(1, 400))
def test_a_stretch_of_a_training_has_the_shares_of_the_samples(plan: SizePlan, start: int, length: int) -> None:
    steps = 10**6 + 400
    last = max(plan.joins(steps))
    start = max(start, last)
    taken = [plan.index(step, steps) for step in range(start, start + length)]
    for i, samples in enumerate(plan.samples):
        # the discrepancy of multiples of the golden ratio: at most 2 (1 / sqrt 5) log length and a constant
        assert abs(taken.count(i) - length * samples / sum(plan.samples)) <= 3 + math.log(length)
    again = SizePlan(plan.sizes, plan.samples, plan.seed, plan.grow)
    assert taken == [again.index(step, steps) for step in range(start, start + length)]


@given(PLANS, st.integers(2, 10_000))
def test_smaller_sizes_begin(plan: SizePlan, steps: int) -> None:
    joins = plan.joins(steps)
    assert min(joins) == 0
    for (one, first), (other, second) in itertools.product(zip(plan.sizes, joins, strict=True), repeat=2):
        if one.area <= other.area:
            assert first <= second
    assert max(joins) <= round(plan.grow * steps)
    for step in range(0, steps, max(1, steps // 50)):
        assert joins[plan.index(step, steps)] <= step


def test_the_largest_joins_at_its_share_and_alike_sizes_together() -> None:
    sizes = parse_sizes(["1024", "256", "512", "1152x896"])
    assert SizePlan(sizes, (1, 1, 1, 1), grow=0.5).joins(1000) == (500, 0, 250, 500)
    assert SizePlan(sizes, (1, 1, 1, 1)).joins(1000) == (0, 0, 0, 0)


def test_seeds_begin_elsewhere() -> None:
    plans = [SizePlan(parse_sizes(["48", "64"]), (1, 1), seed) for seed in range(8)]
    assert len({tuple(plan.index(step, 0) for step in range(12)) for plan in plans}) > 4


@given(st.floats(0.001, 0.999), st.floats(0.01, 100))
def test_the_shift_of_a_flow_is_that_of_the_signal_to_noise_ratio(time: float, ratio: float) -> None:
    moved = shift_time(time, ratio)
    before, after = ((1 - t) ** 2 / t**2 for t in (time, moved))
    assert before / after == pytest.approx(ratio, rel=1e-9)
    assert shift_time(moved, 1 / ratio) == pytest.approx(time, rel=1e-9)
    assert (shift_time(0.0, ratio), shift_time(1.0, ratio)) == (0.0, 1.0)


def test_stable_diffusion_3_shifts_by_3_at_nine_times_the_area() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    expected = [shift_time(t, 9.0) for t in (1.0, 0.75, 0.5, 0.25)]
    assert scheduler.sigmas[:4].tolist() == pytest.approx(expected, rel=1e-5)
