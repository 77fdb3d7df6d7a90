"""What an agent may do: always something, each landing once, and what it does is what its name says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone.errors import SpecError
from skipstone.policies.agent.actions import DEFAULT_ACTIONS, PLACES_PER_STEP, ActionSpace, BaseSchedule

ALL = (*DEFAULT_ACTIONS, "stop 4", "gate", "refine")


def test_places_hold_the_guide_and_fall() -> None:
    guide = BaseSchedule((1.0, 0.96, 0.5, 0.002, 0.0))
    assert guide.places[::PLACES_PER_STEP] == guide.times
    assert all(a > b for a, b in itertools.pairwise(guide.places))
    assert [guide.index(t) for t in guide.places] == list(range(len(guide.places)))


@given(
    left=st.integers(1, 80),
    calls=st.integers(1, 60),
    steps=st.integers(2, 25),
    names=st.sets(st.sampled_from([n for n in ALL if n != "continue"])),
    gates=st.booleans(),
)
def test_something_is_always_allowed_and_no_landing_twice(
    left: int, calls: int, steps: int, names: set[str], gates: bool
) -> None:
    moves = ActionSpace(("continue", *sorted(names)))
    [mask] = moves.action_masks([left], [calls], [steps], gates)
    assert mask.any()
    plain = [
        n for n, name, ok in zip(moves.lengths, moves.names, mask, strict=True) if ok and name not in ("gate", "refine")
    ]
    landings = [min(n, left) for n in plain if n > 0] + [left for n in plain if n == -1]
    assert len(landings) == len(set(landings))
    if calls >= moves.calls * steps and (max(moves.lengths) >= left or "stop 1" in names):
        assert landings == [left], "nothing but the end can be paid for"
        assert not any(n < -1 for n in plain)
    [spent] = moves.action_masks([left], [calls], [steps], gates, refines=False)
    assert spent.any()
    assert not any(ok for ok, name in zip(spent, moves.names, strict=True) if name == "refine")
    if not gates and "gate" in names:
        assert not mask[moves.names.index("gate")]


@given(left=st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_masks_of_many_are_those_of_each(left: list[int]) -> None:
    moves, calls = ActionSpace(ALL), [3 * n % 11 + 1 for n in left]
    many = moves.action_masks(left, calls, [8] * len(left))
    each = [moves.action_masks([n], [c], [8])[0] for n, c in zip(left, calls, strict=True)]
    assert (many == np.array(each)).all()


def test_a_run_is_not_stopped_before_its_first_calls() -> None:
    moves = ActionSpace(("continue", "stop 1", "stop 2"), first=3)
    assert moves.action_masks([20], [2], [8])[0].tolist() == [True, False, False]
    assert moves.action_masks([20], [3], [8])[0].tolist() == [True, True, True]


@pytest.mark.parametrize("name", ["jump", "skip 1", "skip 0.5", "short 1.5", "short 0.3", "stop 0", "stop 5", "skip x"])
def test_unknown_actions_are_named(name: str) -> None:
    with pytest.raises(SpecError, match=f"got '{name}'"):
        ActionSpace(("continue", name))


def test_settings_out_of_range() -> None:
    for settings in (
        {"names": ("skip 2",)},
        {"names": ("continue", "continue")},
        {"first": 0},
        {"calls": 0.5},
        {"refines": -1},
    ):
        with pytest.raises(SpecError, match="xpected"):
            ActionSpace(**settings)
    with pytest.raises(SpecError, match="falling times"):
        BaseSchedule((1.0, 0.5, 0.5, 0.0))
