"""The gates G0 to G4 of the agent's own plan, as checks: does it fit, learn, win, hold its claim, and transfer?

G0 fits      the agent's file is below 1 MB, and the evaluation stayed within the machine's memory
G1 learns    each training ended better than it began and than random, and no action is taken always
G2 wins      better than DDIM with 20 steps in at least one metric (Holm over metrics), at 30 calls or fewer
G3 holds     H1 at 30 calls or fewer; between 30 and 35 the claim is to be adjusted, above 40 it is given up
G4 transfers on a model that it was not trained on, the judge's mean score is at most 5 % below the full run's

A gate that cannot be checked says "not applicable, because ...". In place of what the plan named there (35 GB on an
A100, SD 1.5, CLIP) stands what is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skipstone.evaluation.statistics import holm, paired

from .hypotheses import ALPHA, Verdict, h1
from .scores import FEWEST, Row, Scores

LARGEST = 1_000_000  # bytes of an agent's file
ALWAYS = 0.95  # share of one action
FEWER, ADJUST, PIVOT = 30.0, 35.0, 40.0  # mean calls of G2 and G3
DROP = 0.05  # of the judge's score, on another model
WEAK = "ddim", 20.0  # the row of G2: solver and calls


@dataclass(frozen=True)
class Learnt:
    """What is known of one training.

    Args:
        name: E.g. its seed.
        first, best, random, fixed: Mean utilities on validation prompts: of the first agent, of the best, of random
            actions, of the best fixed schedule.
        actions: Name of an action -> the share of decisions in which the best agent takes it.
        learnt: Whether its file plays that agent; else it plays the fixed schedule.
    """

    name: str
    first: float
    best: float
    random: float
    fixed: float
    actions: Mapping[str, float]
    learnt: bool = True


@dataclass(frozen=True)
class Machine:
    """Bytes: the most that the evaluation's process held, what the machine has, and the largest agent's file."""

    peak: int
    total: int
    largest: int


def gates(
    scores: Scores, learnt: Sequence[Learnt] = (), machine: Machine | None = None, elsewhere: Scores | None = None
) -> list[Verdict]:
    """All five, in order; `elsewhere` are the scores on another model."""
    return [g0(machine), g1(learnt), g2(scores), g3(scores), g4(elsewhere)]


def _absent(name: str, claim: str, why: str) -> Verdict:
    return Verdict(name, claim, None, {}, f"Not applicable, because {why}.")


def g0(machine: Machine | None) -> Verdict:
    """It fits."""
    claim = f"The agent's file is below {LARGEST // 1_000_000} MB, and its evaluation fits the machine's memory."
    if machine is None:
        return _absent("G0", claim, "the memory of the evaluation was not noted")
    why = f"{machine.largest / 1000:.0f} kB; {machine.peak / 1e9:.2f} of {machine.total / 1e9:.1f} GB."
    return Verdict("G0", claim, machine.largest < LARGEST and machine.peak < machine.total, vars(machine), why)


def g1(learnt: Sequence[Learnt]) -> Verdict:
    """It learns, and is no constant."""
    claim = f"Each training ends better than it began and than random; no action makes up over {ALWAYS:.0%}."
    if not learnt:
        return _absent("G1", claim, "no training's records are beside the agents")
    told = {one.name: {**vars(one), "most": _most(one), "passes": _passes(one)} for one in learnt}
    passed = sum(bool(t["passes"]) for t in told.values())
    ahead = sum(one.best > one.fixed for one in learnt)
    why = (
        f"{passed} of {len(learnt)} trainings; {ahead} ended above the best fixed schedule of the validation prompts. "
        f"The commonest action's share is {max(_most(one) for one in learnt):.0%} at most."
    )
    if idle := sum(not one.learnt for one in learnt):
        why += f" The files of {idle} play the fixed schedule all the same, for their lead was not proven."
    return Verdict("G1", claim, passed == len(learnt), {"trainings": told}, why)


def _most(one: Learnt) -> float:
    return max(one.actions.values(), default=1.0)


def _passes(one: Learnt) -> bool:
    return one.best > one.first and one.best > one.random and _most(one) <= ALWAYS


def g2(scores: Scores) -> Verdict:
    """It beats a weak fixed sampler."""
    solver, steps = WEAK
    claim = f"Better than {solver.upper()} with {steps:g} steps in at least one metric, at {FEWER:g} calls or fewer."
    agent, weak = scores.agent, _weak(scores)
    if weak is None:
        return _absent("G2", claim, f"no fixed row of {solver} makes {steps:g} calls")
    tests = {}
    for metric in ("psnr", "ssim", "judge"):
        mine, theirs = agent.values(metric), weak.values(metric)
        if len({s.rpartition(":")[0] for s in mine.keys() & theirs.keys()}) >= FEWEST:
            tests[metric] = paired(mine, theirs)
    if not tests:
        return _absent("G2", claim, f"fewer than {FEWEST} prompts are scored in common")
    corrected = dict(zip(tests, holm([t.p for t in tests.values()]), strict=True))
    figures: dict[str, Any] = {
        m: {"mean": t.mean.value, "low": t.mean.low, "high": t.mean.high, "effect": t.effect, "p_holm": corrected[m]}
        for m, t in tests.items()
    }
    won = [m for m, t in tests.items() if t.effect > 0 and t.mean.low > 0 and corrected[m] < ALPHA]
    why = f"Better in {', '.join(won) or 'nothing'} (Holm over {len(tests)} metrics) at {agent.calls:.1f} calls."
    return Verdict("G2", claim, bool(won) and agent.calls <= FEWER, {"calls": agent.calls, **figures}, why)


def _weak(scores: Scores) -> Row | None:
    solver, steps = WEAK
    rows = [row for row in scores.of("fixed") if solver in row.name.lower() and abs(row.calls - steps) < 0.5]
    return next(iter(rows), None)


def g3(scores: Scores) -> Verdict:
    """Its main claim holds, and how many calls that takes."""
    claim = f"The full run's quality (as in H1) at {FEWER:g} calls or fewer."
    found = h1(scores, FEWER)
    calls = scores.agent.calls
    if found.p is None:
        return _absent("G3", claim, found.verdict.why.removeprefix("Not tested: ").rstrip("."))
    good = found.p < ALPHA
    said = (
        "the claim stands" if calls <= FEWER else "the claim is to be adjusted" if calls <= ADJUST
        else "too many for the claim" if calls <= PIVOT else "the claim is given up for quality at equal calls (H2)"
    )  # fmt: skip
    why = f"{calls:.1f} calls: {said}." if good else f"Quality is not shown to hold. {found.verdict.why}"
    return Verdict("G3", claim, good and calls <= FEWER, {"p": found.p, **found.verdict.figures}, why)


def g4(elsewhere: Scores | None) -> Verdict:
    """It is of use on a model that it was not trained on."""
    claim = f"On another model, untrained there, the judge's mean score is at most {DROP:.0%} below the full run's."
    if elsewhere is None:
        return _absent("G4", claim, "no scores on another model were given (--transfer)")
    agent, full = elsewhere.agent, elsewhere.only("full")
    mine, theirs = agent.values("judge"), full.values("judge") if full else {}
    if len({s.rpartition(":")[0] for s in mine.keys() & theirs.keys()}) < FEWEST:
        return _absent("G4", claim, f"fewer than {FEWEST} prompts are judged under the agent and in full there")
    test = paired(mine, theirs)
    base = sum(theirs.values()) / len(theirs)
    figures = {
        "calls": agent.calls, "judge": base, "mean": test.mean.value, "low": test.mean.low, "high": test.mean.high,
    }  # fmt: skip
    holds = bool(math.isfinite(test.mean.low) and test.mean.low >= -DROP * base)
    change = test.mean
    why = f"{change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f}) from {base:.3f}, {agent.calls:.1f} calls."
    return Verdict("G4", claim, holds, figures, why)
