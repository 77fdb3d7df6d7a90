"""The verdict as files: JSON with everything, Markdown to read, a plot of strengths, a sheet of disagreements."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skipstone import __version__
from skipstone.evaluation.figures import INK, OURS, PAPER, PEERS, QUIET, RULE, figure_to_png
from skipstone.evaluation.files import write_file
from skipstone.evaluation.markdown import format_table
from skipstone.evaluation.statistics import ConfidenceInterval

from ..summary import to_jsonable
from .judging import JudgingPlan, JudgingRun
from .outcomes import Outcome, collect_outcomes
from .verdict import REFUSED, JudgeReport, Verdicts, compute_verdicts

JSON, PAGE, PLOT, SHEET = "verdict.json", "verdict.md", "strengths.png", "disagreements.png"
CAVEAT = "A preference is this judge's, not people's, and no difference found does not mean that there is none."


@dataclass(frozen=True)
class JudgingReport:
    """What a round has come to, to be shown and written."""

    plan: JudgingPlan
    verdicts: Verdicts
    outcomes: tuple[Outcome, ...]
    spent: dict[str, Any]
    stopped: dict[str, str]
    capped: bool

    @classmethod
    def from_run(cls, asked: JudgingRun) -> JudgingReport:
        """The report of a round that was run, to its end or not."""
        found = tuple(collect_outcomes(asked.plan, asked.answer_log))
        lines = asked.answer_log.lines
        spent = {
            "requests": len(lines),
            "failed": sum(bool(line.failed) for line in lines),
            "tokens_in": sum(line.tokens_in or 0 for line in lines),
            "tokens_out": sum(line.tokens_out or 0 for line in lines),
            "money": round(asked.ledger.spent, 6) if asked.ledger.caps.prices else None,
        }
        judged = compute_verdicts(asked.plan.material.rows, found)
        return cls(asked.plan, judged, found, spent, dict(asked.stopped), asked.capped)

    def write(self, folder: Path, command: str) -> list[Path]:
        """Write all files, and take away the pictures of an earlier run that this one has not.

        Raises:
            BenchError: they cannot be written.
        """
        from .disagreements import render_disagreements

        document = to_jsonable(self.document(command))
        files = {
            JSON: json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode(),
            PAGE: markdown(self, command).encode(),
            PLOT: plot(self.verdicts),
            SHEET: render_disagreements(self.outcomes, self.plan.protocol.side),
        }
        for name, content in files.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)
        return [write_file(folder / name, content) for name, content in files.items() if content is not None]

    def document(self, command: str) -> dict[str, Any]:
        """All of it as JSON has it; NaN becomes null."""
        plan, v = self.plan, self.verdicts
        return {
            "version": __version__,
            "command": command,
            "protocol": {**asdict(plan.protocol), "template": plan.protocol.template, "sha256": plan.protocol.sha256},
            "material": {
                "source": plan.material.source,
                "rows": plan.material.rows,
                "samples": [s.id for s in plan.material.samples],
                "categories": dict(Counter(s.category for s in plan.material.samples)),
                "not in all rows": plan.material.missing,
            },
            "judges": [
                {"model": j.model, "url": j.url, **asdict(r)} for j, r in zip(plan.judges, v.judges, strict=True)
            ],
            "pairs": [asdict(p) for p in v.pairs],
            "agreements": [asdict(a) for a in v.agreements],
            "panel": [{"pair": pair, "verdict": verdict} for pair, verdict in v.panel.items()],
            "spent": self.spent,
            "open": v.open,
            "capped": self.capped,
            "stopped": self.stopped,
        }


# -- Tables -----------------------------------------------------------------------------------------


def format_interval(span: ConfidenceInterval | None, form: str = ".2f") -> str:
    """A figure and its interval."""
    if span is None or math.isnan(span.value):
        return "-"
    return f"{span.value:{form}}" + ("" if math.isnan(span.low) else f" ({span.low:{form}} to {span.high:{form}})")


def pair_table(v: Verdicts) -> list[list[str]]:
    """Head and rows: each pair under each judge."""
    head = ["first", "second", "judge", "wins", "losses", "ties", "flips", "win rate", "p (Holm)", "verdict"]
    body = []
    for p in v.pairs:
        c = p.counts
        numbers = [c["first"], c["second"], c["tie"] + c["unsure"] + c["identical"], c["flip"]]
        verdict = f"{p.verdict}: {p.why}" if p.verdict == REFUSED else p.verdict
        body.append([*p.pair, p.judge, *map(str, numbers), format_interval(p.rate), f"{p.p_holm:.2g}", verdict])
    return [head, *body]


def short_table(v: Verdicts) -> list[list[str]]:
    """The same in the width of a terminal."""
    head = ["pair", "judge", "won", "lost", "tied", "flips", "win rate", "p", "verdict"]
    body = []
    for p in v.pairs:
        c = p.counts
        numbers = [c["first"], c["second"], c["tie"] + c["unsure"] + c["identical"], c["flip"]]
        rate = "-" if p.rate is None else f"{p.rate.value:.2f}"
        names = f"{p.pair[0]} : {p.pair[1]}", p.judge.rpartition("@")[0]
        body.append([*names, *map(str, numbers), rate, f"{p.p_holm:.2g}", p.verdict])
    return [head, *body]


def describe_missing(v: Verdicts) -> list[str]:
    """Why pairs have no verdict, or why none could be expected."""
    return [f"{p.judge} on {' : '.join(p.pair)}: {p.why}." for p in v.pairs if p.why]


def judge_table(v: Verdicts) -> list[list[str]]:
    """Head and rows: how far each judge can be believed."""
    head = ["judge", "pairs", "unparsed", "same in both orders", "says left", "flips left, right", "p", "verdict"]
    body = [
        [
            j.judge,
            str(j.pairs),
            f"{j.unparsed:.0%}",
            format_interval(j.consistent),
            format_interval(j.left),
            f"{j.lean[0]}, {j.lean[1]}",
            f"{j.p_lean:.2g}",
            j.verdict,
        ]
        for j in v.judges
    ]
    return [head, *body]


def strength_table(v: Verdicts) -> list[list[str]]:
    """Head and rows: log pi of each row, under each judge that has a scale."""
    judges = [j for j in v.judges if j.strengths is not None]
    if not judges:
        return []
    lines = [[row, *(format_interval((j.strengths or ())[k]) for j in judges)] for k, row in enumerate(v.rows)]
    return [["row", *(j.judge for j in judges)], *lines, ["nu", *(format_interval(j.nu) for j in judges)]]


def agreement_lines(v: Verdicts) -> list[str]:
    """Kappa between judges, in words."""
    return [
        f"{' and '.join(a.judges)}: kappa {format_interval(a.kappa)}, the same outcome on {a.same:.0%} of {a.pairs} "
        f"pairs."
        if a.pairs
        else f"{' and '.join(a.judges)} have no pair in common."
        for a in v.agreements
    ]


def panel_lines(v: Verdicts) -> list[str]:
    """The verdict of each pair, in words."""
    return [f"{first} against {second}: {_format_verdict(verdict)}" for (first, second), verdict in v.panel.items()]


def _format_verdict(verdict: str) -> str:
    return verdict if verdict.startswith(("no ", "judges", "identical")) else f"{verdict} is preferred"


def markdown(report: JudgingReport, command: str) -> str:
    """The page."""
    v, plan = report.verdicts, report.plan
    prompts = len({s.prompt for s in plan.material.samples})
    spent = report.spent
    money = "" if spent["money"] is None else f", {spent['money']:.4g} at the prices of the command"
    parts = [
        "# Pictures judged by vision-language models",
        f"{len(plan.material.samples)} samples of {prompts} prompts from {plan.material.source}. Every pair of "
        f"pictures was shown both ways round, layout {plan.protocol.layout}; seed {plan.protocol.seed}, protocol "
        f"{plan.protocol.sha256[:12]}. {spent['requests']} requests ({spent['failed']} failed), {spent['tokens_in']} "
        f"tokens sent, {spent['tokens_out']} answered{money}. Made by `{command}`.",
        *describe_unfinished(report),
        "## Verdict",
        "\n".join(f"- {line}" for line in panel_lines(v)),
        CAVEAT,
        "## Pairs",
        "\n".join(format_table(pair_table(v))),
        "Wins and losses name the same row in both orders. Flips name the same side and count as ties, as does a row "
        "once and a tie once. The win rate counts ties half (Wilson's 95 % interval); p is of the sign test over "
        "prompts, corrected over the pairs of a judge.",
        "## Judges",
        "\n".join(format_table(judge_table(v))),
        "A judge that looks at pictures alone says left half of the time, whatever they show. p is of the sign test of "
        "flips to the left against flips to the right.",
        *(["## Agreement", "\n".join(f"- {line}" for line in agreement_lines(v))] if v.agreements else []),
        *_scales(v),
    ]
    return "\n\n".join(parts) + "\n"


def describe_unfinished(report: JudgingReport) -> list[str]:
    """What is missing, in words."""
    lines = [f"Stopped: {why}" for why in report.stopped.values()]
    lines += ["The cap is reached."] if report.capped else []
    if report.verdicts.open:
        lines.append(f"{report.verdicts.open} pairs are open: the same command goes on.")
    return lines


def _scales(v: Verdicts) -> list[str]:
    table = strength_table(v)
    if not table:
        return []
    notes = [f"{j.judge}: {j.note}." for j in v.judges if j.note and j.strengths is not None]
    return [
        "## Strengths",
        "\n".join(format_table(table)),
        "log pi of Davidson's model, mean 0, with 95 % intervals over prompts: a row that is 1 above another wins 2.7 "
        "times for each time that it loses. nu is how often there are ties; two equal rows tie with chance "
        "nu / (2 + nu).",
        *notes,
    ]


# -- Plot -------------------------------------------------------------------------------------------


def plot(v: Verdicts) -> bytes | None:
    """Strengths of all rows under each judge, as a PNG file; None where no judge has a scale."""
    from matplotlib.figure import Figure

    judges = [j for j in v.judges if j.strengths is not None]
    if not judges:
        return None
    lane = 0.16
    tall = 1.5 + len(v.rows) * (0.3 + lane * len(judges))
    figure = Figure(figsize=(9.0, tall), dpi=150, facecolor=PAPER, layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color=QUIET, lw=0.8)
    for k in range(1, len(v.rows)):
        axis.axhline(k - 0.5, color=RULE, lw=0.8)
    for k, judge in enumerate(judges):
        _plot_judge(axis, judge, (k - (len(judges) - 1) / 2) * lane * 2, (*OURS, *PEERS)[k % (len(OURS) + len(PEERS))])
    axis.set_yticks(range(len(v.rows)), [row if len(row) < 44 else f"{row[:43]}…" for row in v.rows])
    axis.set_ylim(len(v.rows) - 0.5, -0.5)
    axis.set_title(
        "Strength by Davidson's model: log π, 95 % intervals over prompts", loc="left", fontsize=10.5, color=INK
    )
    axis.set_xlabel("preferred less   ←   log π   →   preferred more", fontsize=9.5, color=QUIET)
    axis.grid(True, axis="x", color=RULE, lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=9, labelcolor=INK)
    axis.spines[:].set_visible(False)
    axis.set_facecolor("none")
    figure.legend(loc="outside lower left", frameon=False, fontsize=9, labelcolor=INK, ncols=1)
    return figure_to_png(figure)


def _plot_judge(axis: Any, judge: JudgeReport, shift: float, colour: str) -> None:
    """One judge's points and intervals; hollow where it has no verdict."""
    spans = judge.strengths or ()
    where = [k + shift for k in range(len(spans))]
    believed = not judge.verdict.startswith(REFUSED)
    for y, s in zip(where, spans, strict=True):
        if not math.isnan(s.low):
            axis.plot([s.low, s.high], [y, y], "-" if believed else ":", color=colour, lw=1.8)
    values = [s.value for s in spans]
    label = judge.judge + ("" if believed else f" ({judge.verdict})") + (" (see the note)" if judge.note else "")
    axis.plot(values, where, "o", color=colour, mfc=colour if believed else PAPER, mew=1.4, ms=6, label=label)
