"""Decisions of a run as text and as states, and their comparison between array libraries."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..engine.contracts import Attempt, Evaluate, Plan, Policy, Run
from ..engine.requests import Result


def states(run: Run) -> Iterator[Run]:
    """Every state in which a finished run's policy was asked for a plan, the last one included."""
    here = run.grid[0]
    yield replace(run, t=here, past=(), pending=None)
    for i, a in enumerate(run.past):
        yield replace(run, t=here, past=run.past[:i], pending=replace(a, accepted=None))
        here = a.t_next if a.accepted else here


def get_decision(plan: Plan | Attempt) -> tuple[Evaluate, float]:
    """What two runs must agree on: how the prediction is obtained, and where its step lands."""
    return (plan.evaluate if isinstance(plan, Plan) else plan.plan.evaluate), plan.t_next


Decision = tuple[Evaluate, float]


def decisions_match(mine: Decision, other: Decision, slack: float) -> bool:
    """Whether two decisions are one, up to `slack` in where they land."""
    return mine[0] == other[0] and abs(mine[1] - other[1]) <= slack


@dataclass(frozen=True)
class Comparison:
    """Comparison of two runs: where they first decide differently, and whether a signal was at its threshold there."""

    at: int | None = None  # index of the first attempt that differs, None where all agree
    tie: bool = False

    @property
    def agree(self) -> bool:
        """Equal, or different only because a signal lay within rounding of its threshold."""
        return self.at is None or self.tie


def compare_decisions(
    policy: Policy, mine: Sequence[Result], others: Sequence[Result], rel: float = 1e-4, slack: float = 0.0
) -> Comparison:
    """Compare two batches of runs of the same problems, decided by `policy` as one.

    Where they first differ, the signals that the policy saw in `mine` are moved by up to `rel` of their
    value, in 64 fixed patterns of signs: it is a tie if some pattern makes it decide as in `others`.

    Args:
        policy: Who decided.
        mine, others: Results in the same order, e.g. from NumPy and from torch.
        rel: Relative size of the perturbation, >= 0. 0 allows no tie.
        slack: Difference of landing times that counts as none, >= 0. A step-size controller lands on a
            continuous function of its signals, which rounding moves; others land on the grid and need 0.
    """
    paths = [
        ([get_decision(a) for a in r.run.past], [get_decision(a) for a in o.run.past])
        for r, o in zip(mine, others, strict=True)
    ]
    starts = [_first_difference(a, b, slack) for a, b in paths]
    known = [i for i in starts if i is not None]
    if not known:
        return Comparison()
    at = min(known)
    rows = [k for k, (_, theirs) in enumerate(paths) if at < len(theirs) and at < len(mine[k].run.past)]
    seen = [list(states(mine[k].run))[at] for k in rows]
    wanted = [paths[k][1][at] for k in rows]
    patterns = [[1.0] * 64, [-1.0] * 64, *(random.Random(i).choices((-1.0, 1.0), k=64) for i in range(62))]
    for signs in patterns if rows else ():
        moved = [_perturb(run, signs, rel) for run in seen]
        plans = policy.consult(moved, [r.proposal() for r in moved])
        if all(decisions_match(get_decision(p), w, slack) for p, w in zip(plans, wanted, strict=True)):
            return Comparison(at, True)
    return Comparison(at)


def _first_difference(a: Sequence[Decision], b: Sequence[Decision], slack: float) -> int | None:
    for i, (p, q) in enumerate(zip(a, b, strict=False)):
        if not decisions_match(p, q, slack):
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def _perturb(run: Run, signs: Sequence[float], rel: float) -> Run:
    """The run with every signal moved by a relative `rel`, up or down by the signs in turn."""

    def move(i: int, a: Attempt) -> Attempt:
        items = enumerate(a.signals.items(), i)
        return replace(a, signals={k: v * (1.0 + rel * signs[j % len(signs)]) for j, (k, v) in items})

    past = tuple(move(len(run.past) - i, a) for i, a in enumerate(run.past))
    return replace(run, past=past, pending=run.pending and move(0, run.pending))
