"""The committed enumeration of a tiny space: the search finds its true front with a third of the training."""

from __future__ import annotations

import statistics

import pytest

from research.architecture.replay import HERE, OBJECTIVES, SHARE, Replay, Table, measure, write_row
from skipstone_train.architecture.objectives import Objectives, dominates


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.read()


@pytest.fixture(scope="module")
def found(table: Table) -> dict[str, list[Replay]]:
    return measure(table, OBJECTIVES[0], ("halving, TPE", "random search"))


def test_every_shape_was_trained_to_every_rung(table: Table) -> None:
    assert set(table.values) == {(one, rung) for one in table.space.candidates() for rung in range(len(table.rungs))}


def test_the_true_front_is_what_nothing_dominates(table: Table) -> None:
    by = Objectives.parse(OBJECTIVES[0])
    points, front = table.points(by), table.front(by)
    assert 2 <= len(front) <= table.space.size // SHARE  # or a third of the evaluations could not find it
    for point in points.values():
        assert (point in front) == (not any(dominates(other, point) for other in points.values()))


def test_no_search_spends_more_than_a_third(table: Table, found: dict[str, list[Replay]]) -> None:
    for runs in found.values():
        assert all(run.steps <= table.steps / SHARE and run.whole <= table.space.size / SHARE for run in runs)


def test_the_search_finds_more_of_the_front_than_random_search(found: dict[str, list[Replay]]) -> None:
    shares = {name: statistics.fmean(run.found for run in runs) for name, runs in found.items()}
    assert shares["halving, TPE"] >= 0.8
    assert shares["halving, TPE"] >= shares["random search"] + 0.25
    assert (
        sum(run.found == 1 for run in found["halving, TPE"])
        >= 5
        > sum(run.found == 1 for run in found["random search"])
    )


def test_the_committed_table_is_what_the_searches_do(found: dict[str, list[Replay]]) -> None:
    committed = (HERE / "replay.md").read_text(encoding="utf-8").splitlines()
    for name, runs in found.items():
        assert write_row(name, runs) in committed
