"""Who is next, and the bound on how long anybody waits."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from skipstone.serving.order import Rank, Turn, find_next, in_order, longest_wait

ranks = st.builds(Rank, st.integers(0, 2), st.sampled_from([1.0, 2.0, math.inf]), st.integers(0, 5))


def test_classes_come_before_deadlines_and_deadlines_before_arrival() -> None:
    waiting = {
        1: Turn(Rank(1, math.inf, 1), 0),
        2: Turn(Rank(1, 5.0, 2), 0),
        3: Turn(Rank(1, 3.0, 3), 0),
        4: Turn(Rank(0, math.inf, 4), 0),
        5: Turn(Rank(1, math.inf, 0), 0),
    }
    assert in_order(waiting, 0, 10) == [4, 3, 2, 5, 1]


def test_of_those_without_a_deadline_the_one_that_is_done_first_goes_first() -> None:
    waiting = {
        1: Turn(Rank(1, math.inf, 1), 0, 9.0),
        2: Turn(Rank(1, math.inf, 2), 0, 3.0),
        3: Turn(Rank(1, 5.0, 3), 0, 50.0),
    }
    assert in_order(waiting, 0, 10) == [3, 2, 1]
    assert in_order(waiting, 10, 10) == [3, 1, 2]  # all are overdue


def test_the_overdue_go_first_and_the_longest_wait_before_the_others() -> None:
    waiting = {1: Turn(Rank(0, 1.0, 1), 9), 2: Turn(Rank(2, math.inf, 2), 3), 3: Turn(Rank(2, math.inf, 3), 1)}
    assert in_order(waiting, 10, 7) == [3, 2, 1]
    assert in_order(waiting, 10, 8) == [3, 1, 2]


@given(
    patience=st.integers(0, 6),
    most=st.integers(1, 5),
    rivals=st.lists(ranks, min_size=80, max_size=80),
    lefts=st.lists(st.sampled_from([0.0, 1.0, 50.0]), min_size=80, max_size=80),
    served=st.integers(1, 2),
)
def test_nobody_waits_beyond_the_bound(
    patience: int, most: int, rivals: list[Rank], lefts: list[float], served: int
) -> None:
    """Whoever comes in the free places, the least urgent of all is served within the bound, and so is everybody."""
    waiting: dict[int, Turn] = {}
    coming = iter(enumerate(rivals))
    longest = 0
    for now in range(40):
        while len(waiting) < most and (one := next(coming, None)) is not None:
            number, rank = one
            mine, left = (Rank(2, math.inf, 10_000), 99.0) if number == 0 else (rank, lefts[number])
            waiting[number] = Turn(mine, now, left)
        order = in_order(waiting, now, patience)
        assert not order or order[0] == find_next(waiting, now, patience)
        for number in order[:served]:
            longest = max(longest, now - waiting.pop(number).since)
    assert longest <= longest_wait(patience, most)
    assert all(39 - turn.since <= longest_wait(patience, most) for turn in waiting.values())


def test_the_bound_is_reached() -> None:
    """With four rivals who are always more urgent, the least urgent waits for its patience, and not less."""
    waiting = {0: Turn(Rank(2), 0)}
    for now in range(20):
        waiting |= {100 + 10 * now + k: Turn(Rank(0), now) for k in range(4)}
        [first, *_] = in_order(waiting, now, 5)
        if first == 0:
            break
        waiting = {0: waiting[0]}
    assert now == 5
