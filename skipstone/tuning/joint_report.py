"""Outputs of searches: policies that can be used at once, figures, a card and a picture of quality against calls."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from .. import registry
from ..evaluation.figures import INK, OURS, PEERS, QUIET
from ..evaluation.files import write_file
from ..evaluation.json_lines import json_roundtrip
from ..evaluation.markdown import format_table
from ..policies.storage import FILE, save_policy
from .joint import DP, JointResult, SearchOutcome, paired_lead
from .reference import Agreement
from .report import describe_references, describe_rows
from .searches import count_states

COLOURS = (OURS[0], PEERS[0], OURS[1], OURS[2], OURS[3], PEERS[1])
RESULTS, CARD, PLOT = "tuned.json", "tuned.md", "tuned.png"
COST = (
    "Each search is charged the calls of a candidate's runs the first time that it asks for it, also where another "
    "search has made them before; asking again is free. All begin with the grid of the dynamic programming, by each "
    "solver, and all stop candidates by one rule: after 4 tuning samples, and after twice as many each time, a "
    "candidate that is two standard errors behind the best one on the same samples, or makes 25 % too many calls. The "
    "runs of the dynamic programming itself and those of the check are not charged: they are the same for all."
)


def policy_folder(out: Path, calls: int) -> Path:
    """Folder in which the policy of this many calls is saved."""
    return out / f"tuned-{calls}"


def report_files(out: Path, calls: Sequence[int]) -> list[Path]:
    """All files that `write_report` makes."""
    return [*(policy_folder(out, n) / FILE for n in calls), out / RESULTS, out / CARD, out / PLOT]


def write_report(
    found: Sequence[JointResult], agreement: Agreement, out: Path, about: Mapping[str, Any], words: str = ""
) -> list[Path]:
    """Policies, figures, card and picture; returns their paths.

    Args:
        found: By searches, one for each number of calls.
        agreement: Of the references.
        out: A folder.
        about: The model, what the figures were made with, and the prompts: {"model", "fingerprint", ...}.
        words: What else is to be said.
    """
    for one in found:
        notes = {
            "found for": about.get("model"),
            "calls": one.calls,
            "psnr": one.row.psnr_statistics,
            "mean calls": one.row.mean_calls,
            "verdict": one.words,
            "settings": about,
            "references": agreement.words,
        }
        save_policy(one.policy, policy_folder(out, one.calls), **json_roundtrip(notes))
    document = {
        **about,
        "words": words,
        "references": describe_references(agreement),
        "found": list(map(_document, found)),
    }
    write_file(out / RESULTS, (json.dumps(json_roundtrip(document), indent=1, ensure_ascii=False) + "\n").encode())
    write_file(out / CARD, card(found, agreement, about, words).encode())
    write_file(out / PLOT, plot(found, str(about.get("model", ""))))
    return report_files(out, [one.calls for one in found])


def _document(found: JointResult) -> dict[str, Any]:
    return {
        "calls": found.calls,
        "budget": found.budget,
        "space": {one.name: list(one.values) for one in found.space.dimensions},
        "verdict": found.words,
        "policy": registry.spell(found.policy),
        "rows": describe_rows(found.rows),
        "searches": [_describe_outcome(one) for one in found.outcomes],
    }


def _describe_outcome(outcome: SearchOutcome) -> dict[str, Any]:
    return {
        "search": outcome.name,
        "charged": outcome.charged,
        "candidates": count_states(list(outcome.trials)),
        "lead": None if outcome.best is None else outcome.lead._asdict(),
        "best": None if outcome.best is None else {"values": outcome.best.values, "policy": outcome.best.policy},
        "trials": [
            {
                "charged": trial.charged,
                "quality": trial.quality,
                "calls": trial.calls,
                "samples": len(trial.scores),
                "state": trial.state,
                "best": trial.best if math.isfinite(trial.best) else None,
                "policy": trial.policy,
                **({"reason": trial.reason} if trial.reason else {}),
            }
            for trial in outcome.trials
        ],
    }


# -- the card -------------------------------------------------------------------------------------


def card(found: Sequence[JointResult], agreement: Agreement, about: Mapping[str, Any], words: str) -> str:
    """What was found, in Markdown."""
    lines = [f"# Settings found for {about.get('model', 'a model')}", ""]
    lines += [f"`{about['command']}`", ""] if "command" in about else []
    made = ", ".join(str(about[name]) for name in ("date", "machine") if name in about)
    lines += [made, ""] if made else []
    lines += [words, ""] if words else []
    checked = about.get("checked", len(found[0].rows[0].scores))
    lines += [
        f"Figures are PSNR in dB to converged pictures, on {checked} samples that nothing was searched on. "
        f"{agreement.words}",
        "",
        f"![Quality against calls]({PLOT})",
        "",
    ]
    for one in found:
        lines += [f"## {one.calls} calls", "", *format_table(table(one), [":--", *["--:"] * 8]), ""]
        lines += [one.words, "", *_against_random(one), "Policy:", "", "```text", registry.spell(one.policy), "```", ""]
    lines += ["## What it cost", "", f"{found[0].budget:,.0f} calls for each search and number of calls. {COST}", ""]
    lines += ["## What was searched", "", *(f"- {line}" for line in found[0].space.lines()), ""]
    return "\n".join(lines)


def table(found: JointResult) -> list[list[str]]:
    """The head, and a line for each row: PSNR in dB on the check, the lead over the dynamic programming, the cost."""
    lines = [["", "calls", "median", "p10", "worst", "mean", "lead", "charged", "candidates"]]
    outcomes = {one.name: one for one in found.outcomes}
    for row in found.rows:
        figures = [f"{row.psnr_statistics[name]:.1f}" for name in ("median", "p10", "worst", "mean")]
        lead = paired_lead(row.scores, found.rows[0].scores)
        shown = "" if row.label == DP else f"{lead.mean:+.1f} ({lead.error:.1f})"
        own = outcomes.get(row.label)
        cost = ["", ""] if own is None else [f"{own.charged:,.0f}", str(len(own.trials))]
        lines.append([row.label, f"{row.mean_calls:.1f}", *figures, shown, *cost])
    return lines


def _against_random(found: JointResult) -> list[str]:
    """Which searches were worth more than drawing at random with as many calls."""
    rows = {row.label: row for row in found.rows}
    if "random" not in rows or len(found.outcomes) < 2:
        return []
    said = []
    for outcome in found.outcomes:
        if outcome.name == "random" or outcome.row is None:
            continue
        lead = paired_lead(outcome.row.scores, rows["random"].scores)
        how = "ahead of" if lead.mean > lead.error else "behind" if lead.mean < -lead.error else "level with"
        said.append(f"{outcome.name} is {how} it ({lead.mean:+.1f} dB, standard error {lead.error:.1f})")
    return [f"Against random search with as many calls: {'; '.join(said)}.", ""] if said else []


# -- the picture ----------------------------------------------------------------------------------


def plot(found: Sequence[JointResult], model: str) -> bytes:
    """A PNG: the best quality so far of each search against the calls that it was charged."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 0.6 + 2.9 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, one in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True):
        for k, outcome in enumerate(one.outcomes):
            known = [trial for trial in outcome.trials if math.isfinite(trial.best)]
            axes.step(
                [trial.charged for trial in known],
                [trial.best for trial in known],
                where="post",
                color=COLOURS[k % len(COLOURS)],
                label=outcome.name,
            )
        starts = [one.outcomes[0].trials[0].quality] if one.outcomes and one.outcomes[0].trials else []
        for start in starts:
            axes.axhline(start, color=QUIET, lw=0.9, ls="--", label=DP)
        axes.set_title(f"{model}: {one.calls} calls", fontsize=10, color=INK)
        axes.set_ylabel("best so far\n(mean PSNR in dB, tuning)")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="best")
    axes.set_xlabel("network calls that the search was charged")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()
