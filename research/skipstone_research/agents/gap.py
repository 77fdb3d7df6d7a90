"""The share of the gap between the best fixed schedule and an oracle that an agent closes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from skipstone.evaluation.resampling import LEVEL, RESAMPLES, SEED, SampleValues, mean_by_prompt

from .hypotheses import MIN_CEILING_SHARE, MIN_ORACLE_SAMPLES, MIN_ORACLE_SHARE, Verdict
from .scores import MIN_PROMPTS, ScoreRow, Scores


def measure_gap_closed(scores: Scores, to: Literal["oracle", "ceiling"]) -> Verdict:
    """The share of the way from the best fixed schedule to an oracle or a ceiling, in mean utility.

    closed = (U_agent - U_fixed) / (U_to - U_fixed), each the mean over the prompts that all rows have; U_fixed is the
    best fixed row *on these prompts*, chosen anew in every resample. The interval is a percentile bootstrap over
    prompts. Asked for are 0.6 of the way to the oracle, on at least 32 samples, or 0.8 of the way to the ceiling of
    what the agent's own signals allow.

    References: Efron, Tibshirani 1993, An Introduction to the Bootstrap, 13.3.
    """
    wanted = MIN_ORACLE_SHARE if to == "oracle" else MIN_CEILING_SHARE
    name, beyond = f"gap to the {to}", scores.first_of(to)
    claim = f"At least {wanted:.0%} of the gap between the best fixed schedule and the {to} is closed."
    fixed = scores.of("fixed")
    if beyond is None or not fixed:
        missing = f"no row of the {to}" if beyond is None else "no fixed rows"
        return Verdict(name, claim, None, {}, f"Not tested: {missing}.")
    tables = _utility_tables(scores, beyond)
    if tables is None:
        return Verdict(name, claim, None, {}, f"Not tested: fewer than {MIN_PROMPTS} prompts in common.")
    figures = {**_closed_share(*tables, [row.name for row in fixed]), "price": scores.utility.price}
    alone = {row.run or row.name: _utility_tables(scores, beyond, row) for row in scores.trainings}
    figures |= {"wanted": wanted, "trainings": {name: _closed_share(*t)["closed"] for name, t in alone.items() if t}}
    share = figures["closed"]
    why = (
        f"{share:.0%} closed ({LEVEL:.0%} interval {figures['low']:.0%} to {figures['high']:.0%}), "
        f"{figures['prompts']} prompts: utility {figures['agent']:.2f} dB, best fixed {figures['fixed']:.2f} "
        f"({figures['rival']}), {to} {figures['beyond']:.2f}."
    )
    if figures["beyond"] <= figures["fixed"]:
        return Verdict(name, claim, None, figures, f"Not tested: the {to} is no better than the best fixed row. {why}")
    if to == "oracle" and figures["prompts"] < MIN_ORACLE_SAMPLES:
        return Verdict(name, claim, None, figures, f"Not tested: fewer than {MIN_ORACLE_SAMPLES} prompts. {why}")
    return Verdict(name, claim, bool(share >= wanted), figures, why)


def _utility_tables(scores: Scores, beyond: ScoreRow, agent: ScoreRow | None = None) -> tuple[Any, Any, Any] | None:
    """Mean utilities by prompt: (prompts,) of the agent, (fixed rows, prompts), (prompts,) of what is beyond it."""
    import numpy as np

    rows = [agent or scores.agent, beyond, *scores.of("fixed")]
    utilities: list[SampleValues] = [row.utilities(scores.utility) for row in rows]
    shared = sorted(set(utilities[0]).intersection(*utilities[1:]))
    means: list[Mapping[str, float]] = [mean_by_prompt({s: u[s] for s in shared}) for u in utilities]
    if len(means[0]) < MIN_PROMPTS:
        return None
    table = np.array([list(m.values()) for m in means])
    return table[0], table[2:], table[1]


def _closed_share(agent: Any, fixed: Any, beyond: Any, names: list[str] | None = None) -> dict[str, Any]:
    """The share with its interval; resamples in which there is no gap are left out and counted."""
    import numpy as np

    best = int(fixed.mean(1).argmax())
    drawn = np.random.default_rng(SEED).integers(0, len(agent), (RESAMPLES, len(agent)))
    a, b, f = agent[drawn].mean(1), beyond[drawn].mean(1), fixed[:, drawn].mean(2).max(0)
    there = b > f
    shares = (a - f)[there] / (b - f)[there]
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if there.any() else (np.nan, np.nan)
    rival, way = float(fixed[best].mean()), float(beyond.mean() - fixed[best].mean())
    return {
        "closed": (float(agent.mean()) - rival) / way if way > 0 else float("nan"),
        "low": float(low), "high": float(high), "agent": float(agent.mean()), "fixed": rival,
        "rival": names[best] if names else "", "beyond": float(beyond.mean()), "prompts": len(agent),
        "without_gap": float(1 - there.mean()),
    }  # fmt: skip
