"""Hypotheses about agents, tested on the scores of single samples: H1 to H4 and the share of the gap closed.

Samples are joined by id, the seeds of a prompt count as one, the trainings of an agent are averaged sample by sample,
and the p-values of hypotheses that are tested together are Holm-corrected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from skipstone.evaluation.resampling import RESAMPLES, SEED, SampleValues, mean_by_prompt
from skipstone.evaluation.statistics import (
    compare_paired,
    holm,
    paired_bootstraps,
    paired_differences,
    rank_correlation,
    tost,
)
from skipstone.evaluation.statistics import mean as mean_statistic
from skipstone_train.agents.complexity import prompt_complexities

from .refine_scores import DEFECT_METRIC, JUDGE_METRIC, KNOWN_DEFECT_MARK, ArmScores
from .scores import MIN_PROMPTS, ScoreRow, Scores, mean_over_prompts

MARGINS, FEW_CALLS = {"judge": 0.02, "ssim": 0.01}, 20.0  # of H1
ALPHA, STRICT_ALPHA = 0.05, 0.01  # STRICT of H2
MIN_RHO = 0.3  # of H3
MIN_ORACLE_SHARE, MIN_CEILING_SHARE, MIN_ORACLE_SAMPLES = (
    0.6,
    0.8,
    32,
)  # shares of the gaps to the oracle and to the ceiling; samples of the oracle


@dataclass(frozen=True)
class Verdict:
    """The result of one claim.

    Args:
        name: "H1".
        claim: What was to be shown.
        holds: Whether it was; None where it could not be tested.
        figures: Effect sizes, intervals and p-values.
        why: One sentence.
    """

    name: str
    claim: str
    holds: bool | None
    figures: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Finding:
    """A claim before its p-value is corrected; `effect`: whether everything but chance speaks for it."""

    verdict: Verdict
    p: float | None
    effect: bool
    alpha: float = ALPHA


def make_untested(name: str, claim: str, why: str) -> Finding:
    """A claim that these scores cannot test."""
    return Finding(Verdict(name, claim, None, {}, f"Not tested: {why}"), None, False)


def decide(findings: Sequence[Finding]) -> list[Verdict]:
    """Verdicts of claims that are tested together, their p-values corrected by Holm's procedure."""
    tested = [f for f in findings if f.p is not None]
    corrected = dict(zip(map(id, tested), holm([f.p for f in tested if f.p is not None]), strict=True))
    found = []
    for f in findings:
        p = corrected.get(id(f))
        if p is None:
            found.append(f.verdict)
            continue
        figures = {**f.verdict.figures, "p": f.p, "p_holm": p, "alpha": f.alpha}
        why = f"{f.verdict.why} p = {p:.2g} after Holm, below {f.alpha:g} was asked for."
        found.append(replace(f.verdict, holds=f.effect and p < f.alpha, figures=figures, why=why))
    return found


def check_hypotheses(scores: Scores, refine: ArmScores | None = None) -> list[Verdict]:
    """H1 to H4, tested together.

    Args:
        scores: Of the evaluation.
        refine: Of H4; see `refined`.
    """
    return decide([h1(scores), h2(scores), h3(scores), h4(refine)])


# -- H1: as good as the full run, at fewer calls ----------------------------------------------------


def h1(scores: Scores, most: float = FEW_CALLS) -> Finding:
    """Quality equivalent to the full run's within fixed margins, or better, at `most` calls or fewer in the mean.

    Two one-sided tests each (Schuirmann's) for the judge's score and SSIM to the converged picture. The side that
    rules out being *worse* decides, for a picture nearer to the converged one than the full run's is no failure of
    the claim; `equivalent` says of each whether the other side holds, too. p is the larger of the two: both metrics
    must hold, so nothing else is to be corrected.
    """
    claim = (
        f"As good as the full run at {most:g} calls or fewer in the mean: the judge's mean score and SSIM to the "
        f"converged picture equivalent within {MARGINS['judge']:g} and {MARGINS['ssim']:g}, or better."
    )
    agent, full = scores.agent, scores.first_of("full")
    if full is None:
        return make_untested("H1", claim, "there is no full run among the rows.")
    for metric in MARGINS:
        if few := _why_too_few(agent.values(metric), full.values(metric)):
            return make_untested("H1", claim, f"{metric}: {few}")
    found = _compare_quality(agent, full)
    alone = {row.run or row.name: _compare_quality(row, full) for row in scores.trainings}
    words = [
        f"{m} {found[m]['difference']:+.4f} (90 % {found[m]['low']:+.4f} to {found[m]['high']:+.4f})" for m in MARGINS
    ]
    why = f"{agent.calls:.1f} calls; {', '.join(words)}, agent minus full run."
    better = [m for m, margin in MARGINS.items() if found[m]["low"] > margin]
    why += f" Better than equivalent: {', '.join(better)}." if better else ""
    passed = sum(one["p"] < ALPHA and one["calls"] <= most for one in alone.values())
    why += f" {passed} of {len(alone)} trainings alone."
    figures = {**found, "calls_full": full.calls, "trainings": alone}
    return Finding(Verdict("H1", claim, None, figures, why), found["p"], agent.calls <= most)


def _compare_quality(row: ScoreRow, full: ScoreRow) -> dict[str, Any]:
    """Both metrics of a row against the full run; p is the larger of those that rule out being worse."""
    figures: dict[str, Any] = {"calls": row.calls, "p": 0.0, "equivalent": True}
    for metric, margin in MARGINS.items():
        found = paired_differences(row.values(metric), full.values(metric))
        test, lower = tost(found, margin), _p_not_below(found, margin)
        figures["p"] = max(figures["p"], lower)
        figures["equivalent"] &= test.equivalent
        figures[metric] = {
            "difference": test.mean, "low": test.low, "high": test.high, "margin": margin, "p_equivalent": test.p,
            "p_not_worse": lower, "equivalent": test.equivalent, "prompts": test.n,
        }  # fmt: skip
    return figures


def _p_not_below(found: Sequence[float], margin: float) -> float:
    """p of the one-sided t-test that the mean difference is at or below -margin."""
    import numpy as np
    from scipy.stats import t as student

    d = np.asarray(found, float)
    error = float(d.std(ddof=1)) / len(d) ** 0.5
    if error == 0.0:
        return float(d.mean() <= -margin)
    return float(student.sf((d.mean() + margin) / error, len(d) - 1))


# -- H2: better than anything fixed, at the same calls ----------------------------------------------


def h2(scores: Scores) -> Finding:
    """Closer to the converged picture than the best fixed sampler at the same mean calls: paired, p < 0.01.

    The rival is the strongest fixed sampler *on these very prompts*; where none makes as many calls, a coin toss
    between two that make fewer and more: each sample's score is then the mixture of both. Wilcoxon's test decides, and
    the bootstrap interval of the mean (99 %) has to lie above zero. The same against all fixed schedules, those
    searched for the model included, is reported too: agents begin with these, so it shows what learning has added.
    """
    claim = "Higher PSNR to the converged picture than the best fixed sampler at equal mean calls, p < 0.01."
    agent = scores.agent
    found = compare_with_fixed(agent, scores)
    if found is None:
        return make_untested(
            "H2", claim, "no fixed rows make as few and as many calls, or fewer than 8 prompts are shared."
        )
    rules = {r.name: f for r in scores.of("rule") if (f := compare_with_fixed(r, scores)) is not None}
    alone = {row.run or row.name: f for row in scores.trainings if (f := compare_with_fixed(row, scores)) is not None}
    figures: dict[str, Any] = {**found, "rules": rules, "trainings": alone}
    why = f"{_describe_comparison(found)}; {sum(map(_is_significant, alone.values()))} of {len(alone)} trainings alone."
    if not _is_significant(found) and (sure := [name for name, f in rules.items() if _is_significant(f)]):
        why += f" Rules that manage it: {', '.join(sure)}."
    searched = compare_with_fixed(agent, scores, searched=True)
    if searched is not None and searched["rival"] != found["rival"]:
        figures["searched"] = searched
        why += f" Searched schedules included, {_describe_comparison(searched)}, p = {searched['p']:.2g}."
    return Finding(Verdict("H2", claim, None, figures, why), found["p"], _is_ahead(found), STRICT_ALPHA)


def _describe_comparison(found: Mapping[str, Any]) -> str:
    return (
        f"{found['mean']:+.2f} dB in the mean (99 % interval {found['low']:+.2f} to {found['high']:+.2f}) against "
        f"{found['rival']} at {found['calls']:.1f} calls; effect {found['effect']:+.2f}, better on "
        f"{found['wins']:.0%} of {found['prompts']} prompts"
    )


def _is_ahead(found: Mapping[str, Any]) -> bool:
    return bool(found["low"] > 0 and found["effect"] > 0)


def _is_significant(found: Mapping[str, Any]) -> bool:
    return _is_ahead(found) and found["p"] < STRICT_ALPHA


def compare_with_fixed(
    row: ScoreRow, scores: Scores, metric: str = "psnr", searched: bool = False
) -> dict[str, Any] | None:
    """A row against the best fixed sampler, or mixture of two, at its mean calls; None where there is none.

    `searched`: schedules that were searched for the model count as samplers, too.
    """
    mine = row.values(metric)
    fixed = [r for r in scores.of("fixed", "full") if searched or not r.searched]
    rivals = [(r, r.calls, r.values(metric)) for r in fixed]
    rivals = [(r, calls, values) for r, calls, values in rivals if not _why_too_few(mine, values)]
    calls, best, name = row.calls, dict[str, float](), ""
    for a, few, low in rivals:
        for b, many, high in rivals:
            if not few <= calls + 1e-9 or not calls <= many + 1e-9:
                continue
            share = (calls - few) / (many - few) if many > few else 0.0
            if share == 0.0 and a is not b:
                continue
            mixed = {s: (1 - share) * low[s] + share * high[s] for s in low.keys() & high.keys() & mine.keys()}
            if not _why_too_few(mine, mixed) and (not best or mean_over_prompts(mixed) > mean_over_prompts(best)):
                best = mixed
                name = a.name if share == 0.0 else f"{a.name} mixed with {share:.0%} {b.name}"
    if not best:
        return None
    test = compare_paired(mine, best)
    span = paired_bootstraps(mine, best, [mean_statistic], level=1 - STRICT_ALPHA)[0]
    return {
        "rival": name, "calls": calls, "mean": span.value, "low": span.low, "high": span.high,
        "median": test.median.value, "tail": test.tail.value, "p": test.p, "effect": test.effect, "wins": test.wins,
        "prompts": test.n,
    }  # fmt: skip


# -- H3: calls follow the prompt --------------------------------------------------------------------


def h3(scores: Scores) -> Finding:
    """Calls grow with what the prompt asks for: Spearman's rho >= 0.3, one pair for each prompt."""
    claim = f"Calls follow the prompt: rank correlation with its complexity of at least {MIN_RHO:g}."
    calls = scores.agent.values("calls")
    known = {sample: scores.prompts[sample] for sample in calls if sample in scores.prompts}
    if few := _why_too_few(calls, dict.fromkeys(known, 0.0)):
        return make_untested("H3", claim, few)
    texts = list(dict.fromkeys(known.values()))
    found = prompt_complexities(texts)
    level = dict(zip(texts, found.values, strict=True))
    x = list(mean_by_prompt({s: level[t] for s, t in known.items()}).values())
    y = list(mean_by_prompt({s: calls[s] for s in known}).values())
    if len(set(x)) == 1:
        return make_untested("H3", claim, f"all prompts are equally complex ({found.unit}: {x[0]:g}).")
    rho, p = rank_correlation(x, y)
    low, high = _rho_interval(x, y)
    means = {f"{level:g}": _mean([b for a, b in zip(x, y, strict=True) if a == level]) for level in sorted(set(x))}
    alone = {row.run or row.name: _rho(row, level, known) for row in scores.trainings}
    figures = {"rho": rho, "low": low, "high": high, "prompts": len(x), "unit": found.unit, "calls": means}
    figures["trainings"] = alone
    why = f"rho = {rho:+.2f} (95 % interval {low:+.2f} to {high:+.2f}) with {found.unit}, {len(x)} prompts."
    return Finding(Verdict("H3", claim, None, figures, why), p, rho >= MIN_RHO)


def _rho(row: ScoreRow, level: Mapping[str, float], texts: Mapping[str, str]) -> float:
    """Spearman's rho of one row's calls with complexity, over prompts."""
    calls = {s: c for s, c in row.values("calls").items() if s in texts}
    x = mean_by_prompt({s: level[texts[s]] for s in calls})
    return rank_correlation(list(x.values()), list(mean_by_prompt(calls).values()))[0]


def _rho_interval(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of Spearman's rho over prompts; a resample without spread counts as 0."""
    import numpy as np
    from scipy.stats import rankdata

    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(x), (RESAMPLES, len(x)))
    a, b = (rankdata(np.asarray(v, float)[drawn], axis=-1) for v in (x, y))
    a, b = (v - v.mean(-1, keepdims=True) for v in (a, b))
    size = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    rho = np.divide((a * b).sum(-1), size, out=np.zeros(RESAMPLES), where=size > 0)
    low, high = np.quantile(rho, [0.025, 0.975])
    return float(low), float(high)


# -- H4: refining beats more steps ------------------------------------------------------------------


def h4(refine: ArmScores | None) -> Finding:
    """Some way to refine beats the same calls spent on more full steps, on planted defects *and* by the judge.

    Of each way p is the larger of Wilcoxon's two: both must hold, so between them nothing is to be corrected. The best
    of m ways counts, its p times m (Bonferroni). An arm that knows where the defect is counts as no method.
    """
    claim = "Refining a region beats the same calls spent on more full steps, on planted defects and by the judge."
    ways = {arm: figures for arm, figures in (refine or {}).items() if KNOWN_DEFECT_MARK not in arm}
    if not refine or not ways:
        return make_untested("H4", claim, "no scores of refine were given (--refine).")
    figures: dict[str, Any] = {}
    for arm, measured in refine.items():
        missing = [name for name in (DEFECT_METRIC, JUDGE_METRIC) if name not in measured]
        few = [why for pair in measured.values() if (why := _why_too_few(*pair))]
        if missing or few:
            return make_untested("H4", claim, f"{arm}: {f'no scores of {missing[0]}.' if missing else few[0]}")
        figures[arm] = {name: _paired_figures(*pair) for name, pair in measured.items()}
    worst = {arm: max(f["p"] for f in figures[arm].values()) for arm in ways}
    wins = [arm for arm in ways if all(f["low"] > 0 and f["effect"] > 0 for f in figures[arm].values())]
    best = min(wins or ways, key=lambda arm: worst[arm])
    words = [f"{name} {f['mean']:+.3g} ({f['low']:+.3g} to {f['high']:+.3g})" for name, f in figures[best].items()]
    why = f"{best} minus more steps: {'; '.join(words)}; {len(wins)} of {len(ways)} ways win in both."
    return Finding(Verdict("H4", claim, None, figures, why), min(1.0, worst[best] * len(ways)), best in wins)


def _paired_figures(mine: SampleValues, theirs: SampleValues) -> dict[str, Any]:
    test = compare_paired(mine, theirs)
    span = test.mean
    return {
        "mean": span.value, "low": span.low, "high": span.high, "p": test.p, "effect": test.effect, "wins": test.wins,
        "prompts": test.n,
    }  # fmt: skip


def _why_too_few(*rows: SampleValues) -> str:
    """Why these rows cannot be compared, or nothing."""
    shared = set(rows[0]).intersection(*rows[1:])
    prompts = len(mean_by_prompt(dict.fromkeys(shared, 0.0)))
    return "" if prompts >= MIN_PROMPTS else f"{prompts} prompts are scored in common, {MIN_PROMPTS} are needed."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
