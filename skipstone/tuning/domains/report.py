"""Outputs of a search by domain: policies that can be used at once, figures, a page and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__, registry
from ...evaluation.figures import INK, OURS, PAPER, QUIET, RULE, figure_to_png
from ...evaluation.files import write_file
from ...evaluation.json_lines import json_roundtrip
from ...evaluation.markdown import format_table
from ...policies.certified import FILE, write_files
from ...policies.domains.classifier import CLASSIFIER_FILE, DomainClassifier
from ...policies.seen_prompts import SEEN_FILE, write_seen
from ...policies.storage import save_policy
from ..report import describe_rows
from .fit import FitReport
from .search import DomainResult

RESULTS, PLOT, PAGE = "domains.json", "domains.png", "README.md"


def policy_folder(out: Path, calls: int) -> Path:
    """Folder in which the policy of this many calls is saved."""
    return out / f"domains-{calls}"


def report_files(out: Path, calls: Sequence[int]) -> list[Path]:
    """The files that `write_report` always makes; beside a policy with domains there are a classifier and sums."""
    return [*(policy_folder(out, n) / FILE for n in calls), *(out / name for name in (RESULTS, PLOT, PAGE))]


def write_report(
    found: DomainResult,
    classifier: DomainClassifier,
    fitted: FitReport,
    prompts: Sequence[str],
    out: Path,
    about: Mapping[str, Any],
) -> list[Path]:
    """Policies, figures, page and picture; returns their paths.

    Args:
        found: By a search.
        classifier: Of prompts.
        fitted: How well it does.
        prompts: All that classifier and settings were made with.
        out: A folder.
        about: The model, what the figures were made with, and the prompts: {"model", "fingerprint", ...}.
    """
    for calls in found.calls:
        notes = {"found for": about.get("model"), "calls": calls, "verdict": found.words(calls), "settings": about}
        folder, own = policy_folder(out, calls), found.settings(calls)
        if own:
            specs = {domain: registry.spell(policy) for domain, policy in own.items()}
            save_domains(folder, registry.spell(found.general[calls]), specs, classifier, prompts, notes)
        else:
            save_policy(found.general[calls], folder, **json_roundtrip(notes))
            for name in (CLASSIFIER_FILE, SEEN_FILE):  # of an earlier search
                (folder / name).unlink(missing_ok=True)
    document = {**about, "classifier": fitted.as_dict(), "calls": [_describe(found, n) for n in found.calls]}
    document["rows"] = {domain: describe_rows(rows) for domain, rows in found.rows.items()}
    write_file(out / RESULTS, (json.dumps(json_roundtrip(document), indent=1, ensure_ascii=False) + "\n").encode())
    write_file(out / PLOT, plot(found, fitted))
    write_file(out / PAGE, page(found, fitted, about).encode())
    return report_files(out, found.calls)


def save_domains(
    folder: Path,
    general: str,
    domains: Mapping[str, str],
    classifier: DomainClassifier,
    prompts: Sequence[str] = (),
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a folder that `by_domain(path=...)` reads, and every command that takes a policy; returns it.

    Args:
        folder: Made where it is not there.
        general: Spec of the setting of prompts of no domain.
        domains: Domain -> spec.
        classifier: Of prompts.
        prompts: That it was made with, so that a benchmark can refuse to test on them.
        notes: Of its maker, plain JSON values.

    Raises:
        OutputError: the folder cannot be written.
    """
    saved = {"policy": general, "skipstone": __version__, "notes": json_roundtrip(dict(notes or {}))}
    saved["domains"] = dict(domains)
    text = json.dumps(saved, indent=1, allow_nan=False) + "\n"
    content = {CLASSIFIER_FILE: classifier.to_bytes(), SEEN_FILE: write_seen(prompts), FILE: text.encode()}
    write_files(folder, content)
    return folder


def _describe(found: DomainResult, calls: int) -> dict[str, Any]:
    return {
        "calls": calls,
        "verdict": found.words(calls),
        "general": registry.spell(found.general[calls]),
        "domains": {
            domain: {
                "best": registry.spell(one.policy),
                "lead": one.lead._asdict(),
                "measured": one.measured,
                "own": one.lead.counts,
            }
            for domain, one in found.found[calls].items()
        },
        "overall": found.overall[calls]._asdict(),
    }


def table(found: DomainResult) -> list[list[str]]:
    """The head, and a line for each number of calls and domain; leads in dB, with their standard errors."""
    lines = [["calls", "domain", "lead", "setting", "best on its tuning samples"]]
    for calls in found.calls:
        for domain, one in found.found[calls].items():
            lead = f"{one.lead.mean:+.2f} ({one.lead.error:.2f})" if one.measured else "not measured"
            kept = "its own" if one.lead.counts else "general"
            lines.append([str(calls), domain, lead, kept, registry.spell(one.policy)])
    return lines


def page(found: DomainResult, fitted: FitReport, about: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    count = sum(checked for _, checked in about["domains"].values())
    lines = [
        f"# Settings by domain for {about.get('model')}",
        "",
        *(f"{found.words(calls)}\n" for calls in found.calls),
        f"{fitted.words}",
        "",
        f"Leads are over the general setting, in dB of PSNR at equal calls, on {count} samples that chose nothing; "
        f"standard errors in parentheses.",
        "",
        *format_table(table(found), ["--:", ":--", "--:", ":--", ":--"]),
        "",
        f"![Which domain is taken for which, and leads]({PLOT})",
        "",
        f"    {about.get('command', '')}",
        "",
        f"{about.get('date', '')}, {about.get('machine', '')}",
    ]
    return "\n".join(lines) + "\n"


def plot(found: DomainResult, fitted: FitReport) -> bytes:
    """A PNG: which domain is taken for which, and the leads of all domains."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(fitted.domains)
    figure = Figure(figsize=(10.0, 2.6 + 0.34 * count), layout="constrained", dpi=140, facecolor=PAPER)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_confusion(left, fitted)
    for k, calls in enumerate(found.calls):
        leads = found.found[calls]
        places = [row + 0.16 * (k - 0.5 * (len(found.calls) - 1)) for row in range(len(leads))]
        known = [(y, one.lead) for y, one in zip(places, leads.values(), strict=True) if one.measured]
        right.errorbar(
            [lead.mean for _, lead in known],
            [y for y, _ in known],
            xerr=[lead.error for _, lead in known],
            fmt="o",
            ms=4,
            color=OURS[k % len(OURS)],
            label=f"{calls} calls",
        )
    right.axvline(0.0, color=QUIET, lw=0.8)
    right.set_yticks(range(len(fitted.domains)), fitted.domains, fontsize=8)
    right.invert_yaxis()
    right.set_xlabel("lead of the domain's own setting over the general one, dB, and standard error", fontsize=8)
    right.grid(axis="x", color=RULE)
    right.legend(fontsize=8, frameon=False)
    return figure_to_png(figure)


def draw_confusion(axes: Any, fitted: FitReport) -> None:
    """The confusion matrix in shares of each row, counts written in."""
    import numpy as np

    counts = np.asarray(fitted.confusion)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for i, row in enumerate(counts):
        for j, value in enumerate(row):
            if value:
                axes.text(
                    j, i, str(value), ha="center", va="center", fontsize=7, color=PAPER if shares[i, j] > 0.6 else INK
                )
    places = range(len(fitted.domains))
    axes.set_xticks(places, fitted.domains, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(places, fitted.domains, fontsize=8)
    axes.set_xlabel("taken for", fontsize=8)
    axes.set_ylabel("is", fontsize=8)
