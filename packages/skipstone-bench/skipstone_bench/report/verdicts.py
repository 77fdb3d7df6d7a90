"""The answers in plain sentences with their numbers, where we lose as well as where we win."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from skipstone.evaluation.statistics import ConfidenceInterval

from ..findings import JUDGE_MARGIN, Answers, CallSpread, CostRatio, PeerComparison, RivalComparison
from ..store import RowInfo
from ..summary import HEADROOM, Summary

Tone: TypeAlias = Literal["ahead", "behind", "even", "warning"]
ALPHA = 0.05
UNITS = {"psnr_converged": " dB", "psnr_full": " dB"}


@dataclass(frozen=True)
class Verdict:
    """A sentence, and whether it is good news."""

    tone: Tone
    title: str
    text: str


def make_verdicts(summary: Summary, answers: Answers) -> list[Verdict]:
    """All sentences, the most wanted first."""
    found = []
    for family in dict.fromkeys(d.family for d in answers.duels):
        for against in dict.fromkeys(d.against for d in answers.duels):
            duels = [d for d in answers.duels if (d.family, d.against) == (family, against)]
            found += [_duels(family, against, duels)] if duels else []
    families = dict.fromkeys(e.family for e in answers.peers)
    found += [_peers([e for e in answers.peers if e.family == family]) for family in families]
    found += [_spread(answers.spreads)] if answers.spreads else []
    return found + [_fallback(row.info) for row in summary.rows if row.info.refusal]


def _fallback(info: RowInfo) -> Verdict:
    text = f"{info.refusal}. The pipeline kept its loop, and the policy in brackets was measured."
    return Verdict("warning", f"{info.label} could not take the loop over:", text)


def agreement_verdict(summary: Summary) -> Verdict:
    """Whether the converged solution is exact enough for the figures of the table."""
    room, agreement = summary.headroom, summary.header.agreement
    if room is None:
        text = "It is not known how exact the converged solution is: figures to it are figures to one more run."
        return Verdict("warning", "The converged solution was not checked.", text)
    text = (
        f"Two solvers agree on it{_on(agreement)} at {agreement['median']:.1f} dB in the median"
        + (f" and {agreement['worst']:.1f} dB on the worst sample" if "worst" in agreement else "")
        + f"; the best median reported here is {agreement['median'] - room:.1f} dB."
    )
    if room < HEADROOM:
        title = f"The converged solution is only {room:.1f} dB beyond the best figure."
        return Verdict("warning", title, f"{text} Differences near the top are not to be trusted.")
    return Verdict("even", "The converged solution is exact enough.", text)


def _on(agreement: Mapping[str, float]) -> str:
    return f" on {agreement['samples']:g} samples" if "samples" in agreement else ""


def gap_tone(span: ConfidenceInterval, p: float = 0.0) -> Tone:
    """Ahead or behind where the interval leaves out zero and chance is ruled out; gaps are larger-is-better."""
    if p >= ALPHA or not (span.low > 0 or span.high < 0):
        return "even"
    return "ahead" if span.low > 0 else "behind"


def ratio_tone(ratio: CostRatio | None) -> Tone:
    """Whether the peer spends more than ours; a bound below 1 leaves it open."""
    if ratio is None or (ratio.bound and ratio.value < 1):
        return "even"
    return "ahead" if ratio.value > 1 else "behind"


def orient_gap(duel: RivalComparison, statistic: str) -> ConfidenceInterval:
    """A duel's gap with its sign turned so that more is better."""
    from ..summary import metric_direction

    gap: ConfidenceInterval = getattr(duel, statistic).gap
    return (
        gap if metric_direction(duel.metric) == "higher" else ConfidenceInterval(-gap.value, -gap.high, -gap.low, gap.n)
    )


def _duels(family: str, against: str, duels: Sequence[RivalComparison]) -> Verdict:
    unit = UNITS.get(duels[0].metric, "")
    middle = [(gap_tone(orient_gap(d, "median"), d.p_holm), orient_gap(d, "median").value, d.budget) for d in duels]
    unlucky = [(gap_tone(orient_gap(d, "tail")), orient_gap(d, "tail").value, d.budget) for d in duels]
    tones = {t for t, _, _ in (*middle, *unlucky)}
    overall: Tone = "ahead" if tones == {"ahead"} else "behind" if "behind" in tones else "even"
    text = f"{_count_budgets(middle, 'At the median', unit)} {_count_budgets(unlucky, 'In the unlucky tenth', unit)}"
    return Verdict(overall, f"{family} against {against}", text)


def _count_budgets(found: Sequence[tuple[Tone, float, int]], where: str, unit: str) -> str:
    """ "At the median ahead at 10, 15 calls (by 2.2 to 2.7 dB), no clear difference at 20 calls (-0.2 dB)." """
    words = {"ahead": "ahead", "behind": "behind", "even": "no clear difference"}
    parts = []
    for kind, word in words.items():
        own = [(gap, budget) for t, gap, budget in found if t == kind]
        if own:
            gaps = [gap for gap, _ in own]
            span = f"{min(gaps):+.1f}" if len(own) == 1 else f"{min(gaps):+.1f} to {max(gaps):+.1f}"
            parts.append(f"{word} at {_join_words(str(b) for _, b in own)} calls ({span}{unit})")
    return f"{where} {', '.join(parts)}."


def _join_words(words: Iterable[str]) -> str:
    *first, last = list(words)
    return f"{', '.join(first)} and {last}" if first else last


def _peers(found: Sequence[PeerComparison]) -> Verdict:
    """One of our families against all peers: what the hardest of them leaves."""
    family = found[0].family
    title = f"{family} against other accelerators"
    reached = [e for e in found if e.macs or e.seconds]
    beyond = len(found) - len(reached)
    more = f" {beyond} of {len(found)} settings of peers come closer than any row of {family}." if beyond else ""
    if not reached:
        return Verdict("behind", title, f"No curve overlaps.{more}")

    def least(equal: PeerComparison) -> tuple[bool, float]:  # a bound is weaker than a value
        return min((r.bound, r.value) for r in (equal.macs, equal.seconds) if r)

    hardest = min(reached, key=least)
    costs = [
        f"{'at least ' if r.bound else ''}{r.value:.2f} times the {what}"
        for r, what in ((hardest.macs, "multiply-accumulates"), (hardest.seconds, "seconds"))
        if r
    ]
    text = (
        f"The hardest to beat of the settings in reach ({len(reached)}) is {hardest.peer}. Where both come "
        f"equally close (median SSIM {hardest.ssim:.4f}), it spends {_join_words(costs)} that ours spends."
    )
    tones = {ratio_tone(r) for r in (hardest.macs, hardest.seconds) if r}
    verdict: Tone = "behind" if "behind" in tones else "even" if beyond or "even" in tones else "ahead"
    return Verdict(verdict, title, f"{text} {_judge_sentence(hardest)}{more}")


def _judge_sentence(equal: PeerComparison) -> str:
    found = equal.judge
    if found is None:
        return "No judge of this model's pictures."
    result = "equivalent" if found.equivalent else "not shown to be equivalent"
    return (
        f"Judge's scores are {result} within {JUDGE_MARGIN:g} (ours minus theirs {found.mean:+.3f}, 90 % interval "
        f"{found.low:+.3f} to {found.high:+.3f})."
    )


def _spread(spreads: Sequence[CallSpread]) -> Verdict:
    real = [s for s in spreads if s.p_holm < ALPHA]
    title = "Calls follow the prompt" if real else "Calls do not follow the prompt"
    text = f"{len(real)} of {len(spreads)} adaptive rows spend unlike amounts on the categories of prompts"
    widest = max(spreads, key=lambda s: max(s.means.values()) - min(s.means.values()))
    means = _join_words(f"{calls:.1f} calls on {name!r}" for name, calls in widest.means.items())
    text += f" (Holm-corrected p below {ALPHA:g}). Widest: {widest.row} makes {means}, p = {widest.p_holm:.2g}."
    return Verdict("ahead" if real else "even", title, text)
