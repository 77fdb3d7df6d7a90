"""What a sceptic asks of a benchmark: against what, at which cost, in the unlucky tenth too, and is it chance?

Each answer takes the side of the other row. A rival is the best of its kind *on these very prompts*, chosen for the
median and once more for the unlucky tenth; ours is the row of its family that spends most within the budget, whatever
it reached. Rows are compared as they ran, never interpolated, but for `compare_at_equal_ssim`, which has to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from skipstone.evaluation.statistics import (
    ConfidenceInterval,
    EquivalenceTest,
    GroupComparison,
    compare_groups,
    compare_paired,
    holm,
    mean_by_prompt,
    median,
    paired_bootstraps,
    paired_differences,
    rank_correlation,
    tail_statistic,
    tost,
)

from .summary import BEST_FIXED, Summary, TableRow, categories, metric_direction, pareto_front, to_jsonable

BLIND = ("mask", "gate", "random")
RELEASED = "third_order_released"
BUDGETS = (10, 15, 20, 25)
SLACK = 1.02  # rows within 2 % above a budget count as within it
CALL_TOLERANCE = 0.5  # calls that rivals may make beyond a budget: what tuning has allowed them (see `fixed`)
JUDGE_MARGIN = 0.02  # of a judge's score in [0, 1]: less is no difference worth naming
CERTAIN = 60.0  # dB of 1 - SSIM beyond which two pictures count as equally close


@dataclass(frozen=True)
class StatisticGap:
    """Ours minus theirs in one statistic, with a paired interval, against the best rival in that statistic."""

    rival: str
    rival_calls: float
    ours: float
    theirs: float
    gap: ConfidenceInterval


@dataclass(frozen=True)
class RivalComparison:
    """One of our rows against the best of a kind, at no more calls than the budget."""

    against: str
    budget: int
    metric: str
    family: str
    ours: str
    calls: float
    median: StatisticGap
    tail: StatisticGap
    p: float  # Wilcoxon's, against the rival in the median
    p_holm: float  # over all duels of the report
    effect: float
    wins: float


@dataclass(frozen=True)
class CostRatio:
    """How many times more the peer spends. `bound`: at least so many, for even our cheapest row comes closer."""

    value: float
    bound: bool


@dataclass(frozen=True)
class PeerComparison:
    """What a peer's row costs beside what ours costs where it comes as close: the same median SSIM."""

    family: str
    peer: str
    peer_family: str
    metric: str
    ssim: float
    macs: CostRatio | None  # None where none of our rows comes as close, or nothing was counted
    seconds: CostRatio | None
    nearest: str  # our row whose SSIM is nearest; the judge compares it with the peer's
    judge: EquivalenceTest | None


@dataclass(frozen=True)
class CallSpread:
    """Whether a row spends by prompt: calls between categories, and with the words of a prompt."""

    row: str
    means: dict[str, float]  # category -> mean calls
    groups: GroupComparison | None  # of two categories, the second minus the first
    p: float  # Mann-Whitney of two categories, Kruskal-Wallis of more
    p_holm: float  # over all rows of the report
    rho: float  # Spearman's, of calls with the number of words
    rho_p: float


@dataclass(frozen=True)
class Answers:
    """All of them."""

    duels: tuple[RivalComparison, ...]
    peers: tuple[PeerComparison, ...]
    spreads: tuple[CallSpread, ...]


def compute_answers(summary: Summary) -> Answers:
    """The answers that these rows can give."""
    found = [duel for budget in comparison_budgets(summary) for duel in _duels(summary, budget)]
    duels = [replace(d, p_holm=p) for d, p in zip(found, holm([d.p for d in found]), strict=True)]
    spreads = list(filter(None, (_spread(summary, row) for row in _own_rows(summary))))
    corrected = holm([s.p for s in spreads])
    spreads = [replace(s, p_holm=p) for s, p in zip(spreads, corrected, strict=True)]
    return Answers(tuple(duels), tuple(compare_at_equal_ssim(summary)), tuple(spreads))


def comparison_budgets(summary: Summary) -> tuple[int, ...]:
    """Calls at which rows are compared: those of the command, or of the tuned fixed samplers."""
    budgets = summary.header.options.get("budget") or summary.header.options.get("budgets")
    if isinstance(budgets, list | tuple) and budgets:
        return tuple(sorted({int(b) for b in budgets}))
    fixed = {round(r.calls.value) for r in summary.ran if r.info.family == BEST_FIXED and r.calls}
    return tuple(sorted(fixed)) or BUDGETS


def _own_rows(summary: Summary) -> list[TableRow]:
    return [row for row in summary.ran if row.group == "ours"]


def _rows_within(rows: Iterable[TableRow], budget: float, granted: float = 0.0) -> list[TableRow]:
    most = max(SLACK * budget, budget + granted)
    return [row for row in rows if row.calls and row.calls.value <= most]


# -- At equal calls ---------------------------------------------------------------------------------


def _duels(summary: Summary, budget: int) -> list[RivalComparison]:
    """Our families against each kind of rival at one budget."""
    metric = summary.closeness
    usable = [row for row in summary.ran if metric in row.figures]
    found = []
    for rows in summary.families.values():
        mine = _rows_within((r for r in rows if r.group == "ours" and r in usable), budget)
        if not mine:
            continue
        ours = max(mine, key=lambda r: r.calls.value if r.calls else 0.0)
        if budget > min(comparison_budgets(summary)) and _rows_within(
            [ours], max(b for b in comparison_budgets(summary) if b < budget)
        ):
            continue  # it belongs to a smaller budget
        for against, rivals in _rivals(usable, ours, budget).items():
            if rivals:
                found.append(_duel(summary, against, budget, ours, rivals))
    return found


def _rivals(rows: Sequence[TableRow], ours: TableRow, budget: int) -> dict[str, list[TableRow]]:
    """Kind -> the rows that are allowed to answer."""
    released = [r for r in rows if r.info.spec.startswith(RELEASED) and r is not ours]
    apart = [abs(r.calls.value - ours.calls.value) for r in released if r.calls and ours.calls]
    return {
        "the best fixed sampler": _rows_within((r for r in rows if r.group == "fixed"), budget, CALL_TOLERANCE),
        "the best blind mask": _rows_within((r for r in rows if r.group in BLIND), budget, CALL_TOLERANCE),
        "the released AdaptiveDiffusion": [r for r, d in zip(released, apart, strict=True) if d == min(apart)],
    }


def _duel(summary: Summary, against: str, budget: int, ours: TableRow, rivals: Sequence[TableRow]) -> RivalComparison:
    metric = summary.closeness
    way = metric_direction(metric)
    choose: Callable[..., TableRow] = max if way == "higher" else min
    middle = choose(rivals, key=lambda r: r.median(metric))
    unlucky = choose(rivals, key=lambda r: r.tail(metric))
    spec = ours.info.spec
    test = compare_paired(summary.values(spec, metric), summary.values(middle.info.spec, metric), way)
    return RivalComparison(
        against=against,
        budget=budget,
        metric=metric,
        family=ours.info.family,
        ours=spec,
        calls=ours.calls.value if ours.calls else math.nan,
        median=_gap(summary, ours, middle, median, TableRow.median),
        tail=_gap(summary, ours, unlucky, tail_statistic(way), TableRow.tail),
        p=test.p,
        p_holm=test.p,
        effect=test.effect,
        wins=test.wins,
    )


def _gap(
    summary: Summary, ours: TableRow, rival: TableRow, how: Any, read: Callable[[TableRow, str], float]
) -> StatisticGap:
    metric = summary.closeness
    a, b = (summary.values(row.info.spec, metric) for row in (ours, rival))
    calls = rival.calls.value if rival.calls else math.nan
    return StatisticGap(
        rival.info.spec, calls, read(ours, metric), read(rival, metric), paired_bootstraps(a, b, [how])[0]
    )


# -- At equal closeness -----------------------------------------------------------------------------


def compare_at_equal_ssim(summary: Summary) -> list[PeerComparison]:
    """Every peer's row beside each family of ours, at the median SSIM that the peer's row reached.

    Our cost there is interpolated along the family's front, linear in -10 log10(1 - SSIM), in which the error falls
    about straight with cost. Seconds are those over the interleaved full run's.
    """
    metric = next((m for m in ("ssim_converged", "ssim_full") if m in summary.metrics), "")
    peers = [row for row in summary.ran if row.group == "peer" and metric in row.figures]
    found = []
    for family, rows in summary.families.items():
        mine = [row for row in rows if row.group == "ours" and metric in row.figures]
        for peer in peers if mine else ():
            ssim = peer.median(metric)
            nearest = min(mine, key=lambda row: abs(_certainty(row.median(metric)) - _certainty(ssim)))
            macs = _ratio(mine, peer, metric, lambda r: r.macs_calls)
            seconds = _ratio(mine, peer, metric, lambda r: 1 / r.speed.value if r.speed else None)
            judge = _judged(summary, nearest, peer)
            found.append(
                PeerComparison(
                    family, peer.info.spec, peer.info.family, metric, ssim, macs, seconds, nearest.info.spec, judge
                )
            )
    return found


def _certainty(ssim: float) -> float:
    return min(CERTAIN, -10 * math.log10(max(1 - ssim, 1e-12)))


def _ratio(
    mine: Sequence[TableRow], peer: TableRow, metric: str, cost: Callable[[TableRow], float | None]
) -> CostRatio | None:
    theirs = cost(peer)
    points = sorted((c, _certainty(r.median(metric))) for r in pareto_front(mine, metric) if (c := cost(r)) is not None)
    if theirs is None or not points:
        return None
    ours, bound = _cost_at(points, _certainty(peer.median(metric)))
    return None if ours is None else CostRatio(theirs / ours, bound)


def _cost_at(points: Sequence[tuple[float, float]], level: float) -> tuple[float | None, bool]:
    """Cost at which a curve of (cost, closeness) first reaches a level, and whether its first point is above it."""
    if points[0][1] >= level:
        return points[0][0], points[0][1] > level
    for (c0, y0), (c1, y1) in pairwise(points):
        if y0 < level <= y1:
            return c0 + (c1 - c0) * (level - y0) / (y1 - y0), False
    return None, False


def _judged(summary: Summary, ours: TableRow, peer: TableRow) -> EquivalenceTest | None:
    a, b = (summary.values(row.info.spec, "judge") for row in (ours, peer))
    return tost(paired_differences(a, b), JUDGE_MARGIN) if a.keys() & b.keys() else None


# -- By prompt --------------------------------------------------------------------------------------


def _spread(summary: Summary, row: TableRow) -> CallSpread | None:
    """None of a row that spends the same on every prompt, and where there is only one category."""
    from scipy.stats import kruskal

    found = {name: list(prompts.values()) for name, prompts in categories(summary, row.info.spec).items()}
    groups = [calls for calls in found.values() if len(calls) > 1]
    if len(groups) < 2 or row.least == row.most:
        return None
    two = compare_groups(*_split_crowded(summary, row, found)) if len(found) == len(groups) == 2 else None
    p = two.p if two else float(kruskal(*groups).pvalue)
    by_calls = mean_by_prompt(summary.values(row.info.spec, "calls"))
    by_words = mean_by_prompt({s: float(len(r.prompt.split())) for s, r in summary.records[row.info.spec].items()})
    prompts = sorted(by_calls)
    enough = len(prompts) > 2
    rho, rho_p = rank_correlation([by_words[i] for i in prompts], [by_calls[i] for i in prompts]) if enough else (0, 1)
    means = {name: sum(calls) / len(calls) for name, calls in found.items()}
    return CallSpread(row.info.spec, means, two, p, p, rho, rho_p)


def _split_crowded(summary: Summary, row: TableRow, found: dict[str, list[float]]) -> list[list[float]]:
    """The calls of two categories, the one with the longer prompts second."""

    def words(category: str) -> float:
        own = [len(r.prompt.split()) for r in summary.records[row.info.spec].values() if r.category == category]
        return sum(own) / len(own)

    return [found[category] for category in sorted(found, key=lambda c: (words(c), c))]


def build_document(summary: Summary, answers: Answers) -> dict[str, Any]:
    """Everything that was found out, for `summary.json`."""
    found: dict[str, Any] = to_jsonable(
        {
            "header": {k: v for k, v in vars(summary.header).items() if k != "rows"},
            "headroom_db": summary.headroom,
            "rows": [{**vars(row), "info": vars(row.info)} for row in summary.rows],
            "families": {name: [r.info.spec for r in rows] for name, rows in summary.families.items()},
            "fronts": {
                name: [r.info.spec for r in pareto_front(rows, summary.closeness)]
                for name, rows in summary.families.items()
                if summary.closeness
            },
            "answers": answers,
        }
    )
    return found
