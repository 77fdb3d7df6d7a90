"""Single places of a sample's best grid moved or dropped, as long as that really is better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.references import EvaluationSample
from skipstone.evaluation.utility import Utility
from skipstone.policies.path import Path
from skipstone.tuning.cached_runs import CachedRuns
from skipstone.tuning.grids import FineGrid
from skipstone.tuning.refine import MOVE_SIZES

from .trials import Trial, TrialRunner
from .utility import TrialResult, best_choice


@dataclass(frozen=True)
class ClimbState:
    """Where a sample's climb stands: its grid, what that is worth, and which place of it is tried next."""

    eval_sample: EvaluationSample
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


def climb(
    found: dict[str, list[TrialResult]],
    eval_samples: Sequence[EvaluationSample],
    trials: TrialRunner,
    draws: CachedRuns,
    fine: FineGrid,
    utility: Utility,
    sweeps: int,
) -> None:
    """Add to what was found what is tried on the way up from each sample's best grid; all samples climb together.

    Every inner place in turn is dropped, or moved along the fine places: by 8 in the first sweep, by 4 in those that
    follow. What is worth most stays, where it is worth more than what there was. Samples of which no grid was tried
    stay as they are.
    """
    stands = [
        stand
        for eval_sample in eval_samples
        if (stand := _initial_state(eval_sample, found[eval_sample.id], fine, utility)) is not None
    ]
    stands = _climb_step(stands, [[stand.path] for stand in stands], found, trials, draws, fine, utility)
    for sweep in range(sweeps):
        stands = [replace(stand, next=1) for stand in stands]
        by = MOVE_SIZES[min(sweep, len(MOVE_SIZES) - 1)]
        while active := [stand for stand in stands if stand.open]:
            moved = _climb_step(active, [list(s.moves(by)) for s in active], found, trials, draws, fine, utility)
            after = {stand.eval_sample.id: stand for stand in moved}
            stands = [after.get(stand.eval_sample.id, stand) for stand in stands]


def _initial_state(
    eval_sample: EvaluationSample, tried: Sequence[TrialResult], fine: FineGrid, utility: Utility
) -> ClimbState | None:
    """The best grid that was tried, its times brought to the nearest fine places."""
    columns = {one: parse_column(one.spec, None, None, 1) for one in tried}
    grids = [one for one in tried if isinstance(columns[one].policy, Path)]
    if not grids:
        return None
    policy = columns[best_choice(eval_sample.id, grids, utility).result].policy
    assert isinstance(policy, Path)
    near = {min(range(1, fine.steps), key=lambda k: abs(fine.times[k] - t)) for t in policy.places}
    return ClimbState(eval_sample, (0, *sorted(near), fine.steps), policy.of, float("-inf"))


def _climb_step(
    stands: Sequence[ClimbState],
    moves: Sequence[Sequence[tuple[int, ...]]],
    found: dict[str, list[TrialResult]],
    trials: TrialRunner,
    draws: CachedRuns,
    fine: FineGrid,
    utility: Utility,
) -> list[ClimbState]:
    """Every stand after its moves were tried: at the best of them, or where it was, one place further."""
    asked = [
        Trial(stand.eval_sample, draws.column(fine.policy(path, stand.of)), "moved")
        for stand, paths in zip(stands, moves, strict=True)
        for path in paths
    ]
    seen = trials.run(asked)
    made = []
    for stand, paths in zip(stands, moves, strict=True):
        tried = seen.get(stand.eval_sample.id, [])
        known = {one.spec for one in found[stand.eval_sample.id]}
        found[stand.eval_sample.id] += [one for one in tried if one.spec not in known]
        worth = [float(utility(one.psnr, one.calls)) for one in tried]
        if not worth or max(worth) <= stand.utility:
            made.append(replace(stand, next=stand.next + 1))
            continue
        path = paths[worth.index(max(worth))]
        dropped = len(path) < len(stand.path)
        made.append(replace(stand, path=path, utility=max(worth), next=stand.next + (not dropped)))
    return made
