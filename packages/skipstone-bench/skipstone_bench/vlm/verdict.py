"""From outcomes to verdicts: of each judge, of each pair of rows, and of all judges that can be believed."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skipstone.errors import SpecError
from skipstone.evaluation.statistics import LEVEL, SEED, ConfidenceInterval, holm

from .agreement import bootstrap_tables, cohen_kappa, sign_test, symmetrize, wilson_interval
from .davidson import fit_davidson, fit_resamples
from .judging import Pair
from .outcomes import CATEGORY_OF_KIND, FIRST, SECOND, Outcome

ALPHA = 1 - LEVEL
UNREADABLE = 0.2  # share of unparsed pairs beyond which a judge has no verdict: its unparsed answers may be any
NONE = "no difference found"
SAME = "identical pictures"
REFUSED = "no verdict"
FRAGILE = (
    "had no maximum and were fitted with half an answer of each kind added: the far ends of the intervals are a matter "
    "of these half answers"
)
KINDS = (*CATEGORY_OF_KIND, "unparsed", "open")
SCORE = {"first": 1.0, "second": -1.0}  # 0 of all ties


@dataclass(frozen=True)
class PairVerdict:
    """What one judge makes of one pair of rows.

    `counts` has the number of samples of each kind of outcome. `rate` is the share of wins of the first row, ties
    counted half; `ahead` and `behind` are the prompts on which it wins and loses over their samples, `p` is of the sign
    test on these, `p_holm` corrected for all pairs of this judge. `verdict` is the preferred row, NONE, SAME, or
    REFUSED; `why` is the reason, or a note.
    """

    judge: str
    pair: Pair
    counts: dict[str, int]
    prompts: int
    ahead: int
    behind: int
    rate: ConfidenceInterval | None
    p: float
    p_holm: float
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class JudgeReport:
    """How far one judge can be believed, and its scale.

    `consistent` is the share of pairs with the same answer in both orders; `left` is the share of left among answers
    that name a side, 0.5 of any judge that looks at pictures alone, whatever they show; `lean` counts flips to the left
    and to the right, `p_lean` is their sign test. `strengths` are log pi of Davidson's model, None without a scale.
    """

    judge: str
    pairs: int
    unparsed: float
    consistent: ConfidenceInterval | None
    left: ConfidenceInterval | None
    lean: tuple[int, int]
    p_lean: float
    strengths: tuple[ConfidenceInterval, ...] | None
    nu: ConfidenceInterval | None
    note: str
    verdict: str


@dataclass(frozen=True)
class JudgeAgreement:
    """Two judges on the pairs that both have answered: Cohen's kappa of first, second, tie, under both namings."""

    judges: tuple[str, str]
    pairs: int
    same: float
    kappa: ConfidenceInterval


@dataclass(frozen=True)
class Verdicts:
    """All that is concluded. `panel`: pair -> the verdict of all judges that have one, or that they disagree."""

    rows: tuple[str, ...]
    judges: tuple[JudgeReport, ...]
    pairs: tuple[PairVerdict, ...]
    agreements: tuple[JudgeAgreement, ...]
    panel: dict[Pair, str]
    open: int


def compute_verdicts(rows: Sequence[str], found: Sequence[Outcome], seed: int = SEED) -> Verdicts:
    """Conclude from outcomes.

    Args:
        rows: All rows, in the order of tables.
        found: Outcomes of all judges, pairs and samples.
        seed: Of the bootstrap.
    """
    by_judge = {name: [o for o in found if o.judge == name] for name in dict.fromkeys(o.judge for o in found)}
    pairs: list[PairVerdict] = []
    reports = []
    for judge, own in by_judge.items():
        lean = _lean(own)
        mine = _pairs(own, sign_test(*lean))
        reports.append(_report(judge, rows, own, mine, lean, seed))
        pairs += mine
    agreements = tuple(_agreement(a, b, by_judge, seed) for a, b in itertools.combinations(by_judge, 2))
    return Verdicts(
        tuple(rows), tuple(reports), tuple(pairs), agreements, _panel(pairs), sum(o.kind == "open" for o in found)
    )


# -- Pairs ------------------------------------------------------------------------------------------


def _pairs(own: Sequence[Outcome], p_lean: float) -> list[PairVerdict]:
    """All pairs of one judge, corrected together."""
    made = [_pair([o for o in own if o.pair == pair], p_lean) for pair in dict.fromkeys(o.pair for o in own)]
    corrected = [replace(v, p_holm=p) for v, p in zip(made, holm([v.p for v in made]), strict=True)]
    return [v if v.verdict in (REFUSED, SAME) else _decide(v) for v in corrected]


def _decide(v: PairVerdict) -> PairVerdict:
    """The preferred row, where the corrected test finds one."""
    if v.p_holm >= ALPHA:
        return v
    return replace(v, verdict=v.pair[FIRST] if v.ahead > v.behind else v.pair[SECOND])


def _pair(found: Sequence[Outcome], p_lean: float) -> PairVerdict:
    counts = dict.fromkeys(KINDS, 0) | Counter(o.kind for o in found)
    by_prompt = [_mean(group) for group in _prompts(found)]
    ahead, behind = sum(v > 0 for v in by_prompt), sum(v < 0 for v in by_prompt)
    n = len(by_prompt)
    rate = wilson_interval(0.5 + sum(by_prompt) / (2 * n), n) if n else None
    why = _explain_missing(counts, p_lean)
    verdict = REFUSED if why else SAME if counts["identical"] == len(found) else NONE
    if verdict == NONE and 2.0 ** (1 - ahead - behind) >= ALPHA:
        why = f"too few: {ahead + behind} of {n} prompts were decided, and fewer than 6 cannot show anything"
    p = sign_test(ahead, behind)
    return PairVerdict(found[0].judge, found[0].pair, counts, n, ahead, behind, rate, p, 1.0, verdict, why)


def _explain_missing(counts: dict[str, int], p_lean: float) -> str:
    """Why there is no verdict, if so."""
    answered = sum(counts[kind] for kind in CATEGORY_OF_KIND)
    if not answered:
        return "unparsed: no pair has two readable answers" if counts["unparsed"] else "nothing is answered yet"
    if counts["unparsed"] > UNREADABLE * (answered + counts["unparsed"]):
        return f"unparsed: {counts['unparsed']} of {answered + counts['unparsed']} pairs lack a readable answer"
    decided = counts["first"] + counts["second"]
    if counts["flip"] > decided:
        how = "position bias" if p_lean < ALPHA else "it contradicts itself"
        return f"{how}: {counts['flip']} pairs flip with the order, {decided} name the same row twice"
    return ""


def _mean(group: Sequence[Outcome]) -> float:
    """Of a prompt's samples: 1 where the first row wins all, -1 where the second does."""
    return sum(SCORE.get(o.kind, 0.0) for o in group) / len(group)


def _prompts(found: Iterable[Outcome]) -> list[list[Outcome]]:
    """Outcomes that count, by prompt: its seeds are no samples of their own to a statistician."""
    groups: dict[str, list[Outcome]] = {}
    for o in found:
        if o.category is not None:
            groups.setdefault(o.sample.prompt or o.sample.id, []).append(o)
    return list(groups.values())


def _panel(pairs: Sequence[PairVerdict]) -> dict[Pair, str]:
    """The verdict that all judges with one share. Each holds at the level, and so does what they share."""
    by_pair: dict[Pair, set[str]] = {}
    for v in pairs:
        by_pair.setdefault(v.pair, set())
        if v.verdict != REFUSED:
            by_pair[v.pair].add(v.verdict)
    return {
        pair: REFUSED if not found else found.pop() if len(found) == 1 else "judges disagree"
        for pair, found in by_pair.items()
    }


# -- Judges -----------------------------------------------------------------------------------------


def _lean(own: Sequence[Outcome]) -> tuple[int, int]:
    sides = Counter(o.flipped_to for o in own)
    return sides["left"], sides["right"]


def _report(
    judge: str,
    rows: Sequence[str],
    own: Sequence[Outcome],
    pairs: Sequence[PairVerdict],
    lean: tuple[int, int],
    seed: int,
) -> JudgeReport:
    counts = Counter(o.kind for o in own)
    readable = sum(counts[kind] for kind in ("first", "second", "tie", "flip", "unsure"))
    reasons = list(dict.fromkeys(v.why.partition(":")[0] for v in pairs if v.verdict == REFUSED))
    refused = all(v.verdict == REFUSED for v in pairs)
    strengths, nu, note = (None, None, "no verdict, no scale") if refused else _scale(rows, own, seed)
    return JudgeReport(
        judge,
        readable + counts["unparsed"],
        counts["unparsed"] / max(1, readable + counts["unparsed"]),
        _consistent(own),
        _left(own, seed),
        lean,
        sign_test(*lean),
        strengths,
        nu,
        note,
        f"{REFUSED}: {', '.join(reasons)}" if refused else "usable" if not reasons else "usable in part",
    )


def _consistent(own: Sequence[Outcome]) -> ConfidenceInterval | None:
    """The share of pairs with the same answer in both orders."""
    groups = [[o.kind in ("first", "second", "tie") for o in g if not o.identical] for g in _prompts(own)]
    shares = [sum(g) / len(g) for g in groups if g]
    return wilson_interval(sum(shares) / len(shares), len(shares)) if shares else None


def _left(own: Sequence[Outcome], seed: int) -> ConfidenceInterval | None:
    """The share of left among answers that name a side."""
    tables = []
    for group in _prompts(own):
        winners = [a.winner for o in group for a in (o.first_left, o.second_left) if a is not None]
        tables.append([winners.count("left"), winners.count("right")])
    if not sum(map(sum, tables)):
        return None

    def share(t: Any) -> Any:
        import numpy as np

        total = t.sum(1)
        return t[:, 0] / np.where(total == 0, np.nan, total)

    return bootstrap_tables(tables, share, seed=seed)[0]


def _scale(
    rows: Sequence[str], own: Sequence[Outcome], seed: int
) -> tuple[tuple[ConfidenceInterval, ...] | None, ConfidenceInterval | None, str]:
    """Davidson's strengths and nu, with intervals over prompts, and a note on the fit."""
    import numpy as np

    pairs = list(dict.fromkeys(o.pair for o in own))
    groups = _prompts(own)
    tables = np.zeros((len(groups), len(pairs), 3))
    for table, group in zip(tables, groups, strict=True):
        for o in group:
            table[pairs.index(o.pair), o.category] += 1
    where = [(rows.index(a), rows.index(b)) for a, b in pairs]
    if not len(groups):
        return None, None, "no pair is answered"
    try:
        point = fit_davidson([(i, j, *n) for (i, j), n in zip(where, tables.sum(0), strict=True)], len(rows))
    except SpecError as e:
        return None, None, str(e).rstrip(".")
    values = [*point.log_strengths, point.nu]
    if point.note:  # an interval would be that of the half answers
        spans = [ConfidenceInterval(v, math.nan, math.nan, len(groups)) for v in values]
        return tuple(spans[:-1]), spans[-1], point.note
    lost: list[float] = []

    def fits(t: Any) -> Any:
        found, halves = fit_resamples(where, t, len(rows))
        lost.append(float(halves.mean()))
        return found

    spans = [replace(s, value=v) for s, v in zip(bootstrap_tables(tables, fits, seed=seed), values, strict=True)]
    note = f"{lost[-1]:.0%} of the resamples {FRAGILE}" if lost[-1] > ALPHA / 2 else ""
    return tuple(spans[:-1]), spans[-1], note


def _agreement(a: str, b: str, by_judge: dict[str, list[Outcome]], seed: int) -> JudgeAgreement:
    """Of the pairs that both have answered; identical pictures are no agreement, for nobody looked."""
    theirs = {(o.pair, o.sample.id): o for o in by_judge[b] if o.category is not None}
    prompts: dict[str, list[list[int]]] = {}
    for o in by_judge[a]:
        other = theirs.get((o.pair, o.sample.id))
        if other is not None and o.category is not None and other.category is not None and not o.identical:
            table = prompts.setdefault(o.sample.prompt or o.sample.id, [[0] * 3 for _ in range(3)])
            table[o.category][other.category] += 1
    tables = list(prompts.values())
    pairs = sum(map(sum, itertools.chain(*tables)))
    if not tables:
        return JudgeAgreement((a, b), 0, math.nan, ConfidenceInterval(math.nan, math.nan, math.nan, 0))
    same = sum(t[k][k] for t in tables for k in range(3)) / pairs
    return JudgeAgreement(
        (a, b), pairs, same, bootstrap_tables(tables, lambda t: cohen_kappa(symmetrize(t)), seed=seed)[0]
    )
