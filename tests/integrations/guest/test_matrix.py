"""A pairwise cover of families, schedulers, predictions and checks, with tiny real pipelines."""

from __future__ import annotations

import pytest

from .matrix import Cell, cells, cover

COVER = cover()


@pytest.mark.parametrize("cell", COVER, ids=lambda c: f"{c.family}/{c.scheduler}/{c.check}")
@pytest.mark.filterwarnings("ignore::skipstone.errors.GuestWarning")
def test_matrix(cell: Cell) -> None:
    cell.run()


def test_the_cover_meets_every_pair() -> None:
    everything = set().union(*(cell.pairs for cell in cells()))
    assert set().union(*(cell.pairs for cell in COVER)) == everything
