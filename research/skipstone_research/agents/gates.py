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

from skipstone.evaluation.statistics import compare_paired, holm

from .hypotheses import ALPHA, Verdict, h1
from .scores import MIN_PROMPTS, ScoreRow, Scores

MAX_AGENT_BYTES = 1_000_000  # bytes of an agent's file
MAX_ACTION_SHARE = 0.95  # share of one action
MAX_CALLS, ADJUST_CALLS, GIVE_UP_CALLS = 30.0, 35.0, 40.0  # mean calls of G2 and G3
MAX_SCORE_DROP = 0.05  # of the judge's score, on another model
WEAK_BASELINE = "ddim", 20.0  # the row of G2: solver and calls


@dataclass(frozen=True)
class TrainingSummary:
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
class MemoryUsage:
    """Bytes: the most that the evaluation's process held, what the machine has, and the largest agent's file."""

    peak: int
    total: int
    largest: int


def check_gates(
    scores: Scores,
    learnt: Sequence[TrainingSummary] = (),
    machine: MemoryUsage | None = None,
    transfer_scores: Scores | None = None,
) -> list[Verdict]:
    """All five, in order; `transfer_scores` are the scores on another model."""
    return [g0(machine), g1(learnt), g2(scores), g3(scores), g4(transfer_scores)]


def _not_applicable(name: str, claim: str, why: str) -> Verdict:
    return Verdict(name, claim, None, {}, f"Not applicable, because {why}.")


def g0(machine: MemoryUsage | None) -> Verdict:
    """It fits."""
    claim = (
        f"The agent's file is below {MAX_AGENT_BYTES // 1_000_000} MB, and its evaluation fits the machine's memory."
    )
    if machine is None:
        return _not_applicable("G0", claim, "the memory of the evaluation was not noted")
    why = f"{machine.largest / 1000:.0f} kB; {machine.peak / 1e9:.2f} of {machine.total / 1e9:.1f} GB."
    return Verdict("G0", claim, machine.largest < MAX_AGENT_BYTES and machine.peak < machine.total, vars(machine), why)


def g1(learnt: Sequence[TrainingSummary]) -> Verdict:
    """It learns, and is no constant."""
    claim = f"Each training ends better than it began and than random; no action makes up over {MAX_ACTION_SHARE:.0%}."
    if not learnt:
        return _not_applicable("G1", claim, "no training's records are beside the agents")
    summaries = {one.name: {**vars(one), "most": _largest_action_share(one), "passes": _passes(one)} for one in learnt}
    passed = sum(bool(t["passes"]) for t in summaries.values())
    ahead = sum(one.best > one.fixed for one in learnt)
    why = (
        f"{passed} of {len(learnt)} trainings; {ahead} ended above the best fixed schedule of the validation prompts. "
        f"The commonest action's share is {max(_largest_action_share(one) for one in learnt):.0%} at most."
    )
    if idle := sum(not one.learnt for one in learnt):
        why += f" The files of {idle} play the fixed schedule all the same, for their lead was not proven."
    return Verdict("G1", claim, passed == len(learnt), {"trainings": summaries}, why)


def _largest_action_share(one: TrainingSummary) -> float:
    return max(one.actions.values(), default=1.0)


def _passes(one: TrainingSummary) -> bool:
    return one.best > one.first and one.best > one.random and _largest_action_share(one) <= MAX_ACTION_SHARE


def g2(scores: Scores) -> Verdict:
    """It beats a weak fixed sampler."""
    solver, steps = WEAK_BASELINE
    claim = (
        f"Better than {solver.upper()} with {steps:g} steps in at least one metric, at {MAX_CALLS:g} calls or fewer."
    )
    agent, weak = scores.agent, _find_weak_baseline(scores)
    if weak is None:
        return _not_applicable("G2", claim, f"no fixed row of {solver} makes {steps:g} calls")
    tests = {}
    for metric in ("psnr", "ssim", "judge"):
        mine, theirs = agent.values(metric), weak.values(metric)
        if len({s.rpartition(":")[0] for s in mine.keys() & theirs.keys()}) >= MIN_PROMPTS:
            tests[metric] = compare_paired(mine, theirs)
    if not tests:
        return _not_applicable("G2", claim, f"fewer than {MIN_PROMPTS} prompts are scored in common")
    corrected = dict(zip(tests, holm([t.p for t in tests.values()]), strict=True))
    figures: dict[str, Any] = {
        m: {"mean": t.mean.value, "low": t.mean.low, "high": t.mean.high, "effect": t.effect, "p_holm": corrected[m]}
        for m, t in tests.items()
    }
    won = [m for m, t in tests.items() if t.effect > 0 and t.mean.low > 0 and corrected[m] < ALPHA]
    why = f"Better in {', '.join(won) or 'nothing'} (Holm over {len(tests)} metrics) at {agent.calls:.1f} calls."
    return Verdict("G2", claim, bool(won) and agent.calls <= MAX_CALLS, {"calls": agent.calls, **figures}, why)


def _find_weak_baseline(scores: Scores) -> ScoreRow | None:
    solver, steps = WEAK_BASELINE
    rows = [row for row in scores.of("fixed") if solver in row.name.lower() and abs(row.calls - steps) < 0.5]
    return next(iter(rows), None)


def g3(scores: Scores) -> Verdict:
    """Its main claim holds, and how many calls that takes."""
    claim = f"The full run's quality (as in H1) at {MAX_CALLS:g} calls or fewer."
    found = h1(scores, MAX_CALLS)
    calls = scores.agent.calls
    if found.p is None:
        return _not_applicable("G3", claim, found.verdict.why.removeprefix("Not tested: ").rstrip("."))
    good = found.p < ALPHA
    said = (
        "the claim stands"
        if calls <= MAX_CALLS
        else "the claim is to be adjusted"
        if calls <= ADJUST_CALLS
        else "too many for the claim"
        if calls <= GIVE_UP_CALLS
        else "the claim is given up for quality at equal calls (H2)"
    )
    why = f"{calls:.1f} calls: {said}." if good else f"Quality is not shown to hold. {found.verdict.why}"
    return Verdict("G3", claim, good and calls <= MAX_CALLS, {"p": found.p, **found.verdict.figures}, why)


def g4(transfer_scores: Scores | None) -> Verdict:
    """It is of use on a model that it was not trained on."""
    claim = (
        f"On another model, untrained there, the judge's mean score is at most {MAX_SCORE_DROP:.0%} below the full "
        f"run's."
    )
    if transfer_scores is None:
        return _not_applicable("G4", claim, "no scores on another model were given (--transfer)")
    agent, full = transfer_scores.agent, transfer_scores.first_of("full")
    mine, theirs = agent.values("judge"), full.values("judge") if full else {}
    if len({s.rpartition(":")[0] for s in mine.keys() & theirs.keys()}) < MIN_PROMPTS:
        return _not_applicable(
            "G4", claim, f"fewer than {MIN_PROMPTS} prompts are judged under the agent and in full there"
        )
    test = compare_paired(mine, theirs)
    base = sum(theirs.values()) / len(theirs)
    figures = {
        "calls": agent.calls, "judge": base, "mean": test.mean.value, "low": test.mean.low, "high": test.mean.high,
    }  # fmt: skip
    holds = bool(math.isfinite(test.mean.low) and test.mean.low >= -MAX_SCORE_DROP * base)
    change = test.mean
    why = f"{change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f}) from {base:.3f}, {agent.calls:.1f} calls."
    return Verdict("G4", claim, holds, figures, why)
