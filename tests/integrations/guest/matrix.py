"""Every family under every scheduler that it takes: what the matrix consists of, and a pairwise cover of it.

The cover meets every pair of (family, scheduler, prediction, check) that occurs together; the whole is run by
`make matrix` and committed in benchmarks/matrix.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from skipstone.testing import guest

from .families import FAMILIES, build, with_scheduler

OWN_SCHEDULER = "own"
CHECKS = {check.__name__: check for check in guest.CHECKS}
REFUSED = {"zimage"}  # the guest refuses it by name: a list of samples instead of a batch


@dataclass(frozen=True)
class Cell:
    """One run of one check."""

    family: str
    scheduler: str
    check: str

    @property
    def base(self) -> str:
        """The scheduler without its prediction."""
        return self.scheduler.removesuffix("-v").removesuffix("-sample")

    @property
    def prediction(self) -> str:
        """What the network is taken to predict."""
        return self.scheduler[len(self.base) :] or "-eps"

    @property
    def pairs(self) -> set[tuple[str, ...]]:
        """What the cover must meet: every pair of its factors."""
        factors = ("f" + self.family, "s" + self.base, "p" + self.prediction, "c" + self.check)
        return set(itertools.combinations(factors, 2))

    def run(self) -> None:
        """Raise AssertionError where it does not hold."""
        family = FAMILIES[self.family]

        def make() -> object:
            pipe = build(self.family)
            return pipe if self.scheduler == OWN_SCHEDULER else with_scheduler(pipe, self.scheduler)

        CHECKS[self.check](guest.GuestSetup(make, family.inputs, family.after))


def cells() -> Iterator[Cell]:
    """The whole matrix."""
    for name, family in FAMILIES.items():
        if name not in REFUSED:
            for scheduler in (OWN_SCHEDULER, *family.schedulers):
                yield from (Cell(name, scheduler, check) for check in CHECKS)


def cover() -> list[Cell]:
    """Few cells that meet every pair, the same on every machine."""
    missing = set().union(*(cell.pairs for cell in cells()))
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells():
        groups.setdefault((cell.family, cell.base), []).append(cell)
    chosen = []
    while missing:
        for group in groups.values():
            best = max(group, key=lambda cell: len(cell.pairs & missing))
            if best.pairs & missing:
                chosen.append(best)
                missing -= best.pairs
    return chosen
