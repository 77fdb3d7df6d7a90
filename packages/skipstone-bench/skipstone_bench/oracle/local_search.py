"""Single places of a sample's best grid moved or dropped, as long as that really is better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.references import Shot
from skipstone.policies.path import Path
from skipstone.tuning.grids import Fine
from skipstone.tuning.refine import MOVES
from skipstone.tuning.runs import Draws

from .trials import Trial, Trials
from .utility import Tried, Utility, best


@dataclass(frozen=True)
class Stand:
    """Where a sample's climb stands: its grid, what that is worth, and which place of it is tried next."""

    shot: Shot
    path: tuple[int, ...]
    of: str
    utility: float
    next: int = 1

    @property
    def open(self) -> bool:
        """Whether there is an inner place left in this sweep."""
        return self.next < len(self.path) - 1

    def moves(self, by: int) -> Iterator[tuple[int, ...]]:
        """The grid without the next place, or with it moved either way; those that are grids."""
        k, path = self.next, self.path
        if len(path) > 3:
            yield path[:k] + path[k + 1 :]
        for place in (path[k] - by, path[k] + by):
            if path[k - 1] < place < path[k + 1]:
                yield (*path[:k], place, *path[k + 1 :])


def climbed(
    found: dict[str, list[Tried]],
    shots: Sequence[Shot],
    trials: Trials,
    draws: Draws,
    fine: Fine,
    utility: Utility,
    sweeps: int,
) -> None:
    """Add to what was found what is tried on the way up from each sample's best grid; all samples climb together.

    Every inner place in turn is dropped, or moved along the fine places: by 8 in the first sweep, by 4 in those that
    follow. What is worth most stays, where it is worth more than what there was. Samples of which no grid was tried
    stay as they are.
    """
    stands = [stand for shot in shots if (stand := _start(shot, found[shot.id], fine, utility)) is not None]
    stands = _stepped(stands, [[stand.path] for stand in stands], found, trials, draws, fine, utility)
    for sweep in range(sweeps):
        stands = [replace(stand, next=1) for stand in stands]
        by = MOVES[min(sweep, len(MOVES) - 1)]
        while active := [stand for stand in stands if stand.open]:
            moved = _stepped(active, [list(s.moves(by)) for s in active], found, trials, draws, fine, utility)
            after = {stand.shot.id: stand for stand in moved}
            stands = [after.get(stand.shot.id, stand) for stand in stands]


def _start(shot: Shot, tried: Sequence[Tried], fine: Fine, utility: Utility) -> Stand | None:
    """The best grid that was tried, its times brought to the nearest fine places."""
    columns = {one: parse_column(one.spec, None, None, 1) for one in tried}
    grids = [one for one in tried if isinstance(columns[one].policy, Path)]
    if not grids:
        return None
    policy = columns[best(shot.id, grids, utility).tried].policy
    assert isinstance(policy, Path)
    near = {min(range(1, fine.steps), key=lambda k: abs(fine.times[k] - t)) for t in policy.places}
    return Stand(shot, (0, *sorted(near), fine.steps), policy.of, float("-inf"))


def _stepped(
    stands: Sequence[Stand],
    moves: Sequence[Sequence[tuple[int, ...]]],
    found: dict[str, list[Tried]],
    trials: Trials,
    draws: Draws,
    fine: Fine,
    utility: Utility,
) -> list[Stand]:
    """Every stand after its moves were tried: at the best of them, or where it was, one place further."""
    asked = [
        Trial(stand.shot, draws.column(fine.policy(path, stand.of)), "moved")
        for stand, paths in zip(stands, moves, strict=True)
        for path in paths
    ]
    seen = trials.run(asked)
    made = []
    for stand, paths in zip(stands, moves, strict=True):
        tried = seen.get(stand.shot.id, [])
        known = {one.spec for one in found[stand.shot.id]}
        found[stand.shot.id] += [one for one in tried if one.spec not in known]
        worth = [utility.of(one.psnr, one.calls) for one in tried]
        if not worth or max(worth) <= stand.utility:
            made.append(replace(stand, next=stand.next + 1))
            continue
        path = paths[worth.index(max(worth))]
        dropped = len(path) < len(stand.path)
        made.append(replace(stand, path=path, utility=max(worth), next=stand.next + (not dropped)))
    return made
