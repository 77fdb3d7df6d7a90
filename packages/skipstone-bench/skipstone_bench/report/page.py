"""The report as one file of HTML that fetches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skipstone.evaluation.figures import CSS_VARIABLES, figure_to_svg
from skipstone.evaluation.pages import render_template, script_json
from skipstone.evaluation.statistics import RESAMPLES

from ..findings import JUDGE_MARGIN, SLACK, Answers, RivalComparison
from ..summary import Summary, TableRow
from . import plots
from . import timelines as strips
from .gallery import Album, GallerySample, build_galleries, describe_figures
from .table_cells import row_title, table_columns
from .verdicts import ALPHA, UNITS, agreement_verdict, gap_tone, make_verdicts, orient_gap, ratio_tone

TEMPLATE = "page.html.j2"
LEADING = ("psnr_converged", "psnr_full")  # metrics whose plots are always shown


def render_page(summary: Summary, answers: Answers, folder: Path) -> str:
    """The page's text."""
    album = Album(folder)
    shown = build_galleries(summary, album)
    decided = strips.plot_timeline(summary)
    return render_template(
        TEMPLATE,
        Path(__file__).parent,
        header=summary.header,
        about=_about(summary),
        trust=agreement_verdict(summary),
        verdicts=[*make_verdicts(summary, answers), agreement_verdict(summary)],
        families=_families(summary),
        colours={name: CSS_VARIABLES.get(s.colour, s.colour) for name, s in plots.family_styles(summary).items()},
        chief=_chief_plot(summary),
        plots=_plots(summary),
        duels=_duels(answers),
        peers=answers.peers,
        spreads=answers.spreads,
        columns=table_columns(summary),
        rows=sorted(summary.rows, key=lambda r: (not r.ran, r.cost if r.ran else 0.0)),
        timeline=None if decided is None else figure_to_svg(decided, "timeline"),
        galleries=_ordered(summary, shown),
        row=summary.row,
        row_title=row_title,
        figures=describe_figures,
        lead=ratio_tone,
        most=max(row.n for row in summary.rows),
        points=script_json([_point(summary, row) for row in summary.rows]),
        pictures=script_json(album.uris),
        facts=_facts(summary),
        alpha=ALPHA, margin=JUDGE_MARGIN, slack=SLACK, resamples=RESAMPLES,
    )  # fmt: skip


def _ordered(summary: Summary, shown: dict[str, list[GallerySample]]) -> list[tuple[str, list[GallerySample]]]:
    """Galleries of the rows that stand for their families first, then family by family."""
    families = [row for name in plots.order_families(summary) for row in summary.families[name]]
    order = dict.fromkeys(row.info.spec for row in (*strips.chief_rows(summary), *families))
    return [(spec, shown[spec]) for spec in order if spec in shown]


def _about(summary: Summary) -> list[str]:
    """What was run, in a few words each."""
    header, prompts = summary.header, summary.header.prompts
    known = [f"{prompts['count']} prompts" if "count" in prompts else "", _seeds(prompts.get("seeds"))]
    known += [f"of {prompts['source']}" if "source" in prompts else ""]
    known += [f"guidance {header.guidance:g}" if header.guidance is not None else "no guidance"]
    known += [f"{len(summary.ran)} rows", f"Skipstone {header.version}", header.machine, header.date]
    return [str(word) for word in known if word]


def _seeds(seeds: Any) -> str:
    count = len(seeds) if isinstance(seeds, list | tuple) else seeds
    return "" if count is None else f"{count} seed{'' if count == 1 else 's'} each"


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """Everything that makes the run again."""
    header = summary.header
    facts: dict[str, Any] = {
        "command": header.command, "full run": header.reference, "converged solution": ", ".join(header.converged),
        "machine": header.machine, "date": header.date, "settings": header.settings,
        **{_fact(name): value for name, value in header.prompts.items() if name != "absent"},
        **{f"{name}, hash" if name.endswith("prompts") else name: value for name, value in header.fingerprint.items()},
        **{f"{name} was not measured": why for name, why in header.prompts.get("absent", {}).items()},
    }  # fmt: skip
    return [(name, _format_value(value)) for name, value in facts.items() if value not in ({}, "", None)]


def _fact(name: str) -> str:
    return name if name in ("categories", "seeds") else f"prompts: {name}"


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format_value(v)}" for name, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _families(summary: Summary, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Families by name and number, as a reader wants them; those of `names` only where that is given."""
    numbers = {name: k for k, name in enumerate(summary.families)}
    ordered = [name for name in plots.order_families(summary) if names is None or name in names]
    return [{"name": name, "number": numbers[name]} for name in ordered]


def _chief_plot(summary: Summary) -> dict[str, Any] | None:
    """The plot that is taken in at once; None where there is nothing to plot."""
    metric = summary.closeness
    names = plots.chief_families(summary, metric) if metric else []
    found = _plot(summary, metric, "chief", names) if names else None
    return None if found is None else {**found, "families": _families(summary, names)}


def _plots(summary: Summary) -> list[dict[str, Any]]:
    """A plot of every metric with all families."""
    wanted = [*(m for m in LEADING if m in summary.metrics), *(m for m in summary.metrics if m not in LEADING)]
    found = (_plot(summary, metric, metric.replace("_", "-")) for metric in wanted)
    return [plot for plot in found if plot is not None]


def _plot(summary: Summary, metric: str, name: str, families: Sequence[str] | None = None) -> dict[str, Any] | None:
    """A metric against cost, once for a desk and once for a phone; None where there is too little to plot."""
    wide = plots.plot_pareto(summary, metric, families, legend=False)
    narrow = plots.plot_pareto(summary, metric, families, legend=False, narrow=True)
    if wide is None or narrow is None:
        return None
    figures = {"wide": wide, "narrow": narrow}
    elements = {form: figure_to_svg(figure, f"plot-{name}-{form}") for form, figure in figures.items()}
    return {"metric": metric, "words": plots.metric_label(metric), "svg": elements}


def _duels(answers: Answers) -> list[dict[str, Any]]:
    """A table for each kind of rival: budgets and families down, the two statistics across."""
    kinds = dict.fromkeys(d.against for d in answers.duels)
    return [{"against": kind, "rows": [_duel(d) for d in answers.duels if d.against == kind]} for kind in kinds]


def _duel(duel: RivalComparison) -> dict[str, Any]:
    unit = UNITS.get(duel.metric, "")
    sides = []
    for statistic, p in (("median", duel.p_holm), ("tail", 0.0)):
        gap, span = getattr(duel, statistic), orient_gap(duel, statistic)
        sides.append({"gap": gap, "span": span, "tone": gap_tone(span, p), "unit": unit})
    return {"duel": duel, "median": sides[0], "tail": sides[1]}


def _point(summary: Summary, row: TableRow) -> dict[str, Any]:
    """What the page shows of a point under the pointer."""
    metric = summary.closeness
    calls = f"{row.calls.value:.1f} calls" if row.calls else ""
    macs = f"{row.macs_calls:.1f} in multiply-accumulates" if row.macs_calls is not None else ""
    close = f"{row.median(metric):.1f} dB, unlucky tenth {row.tail(metric):.1f} dB" if metric in row.figures else ""
    return {"spec": row.info.spec, "label": row_title(row), "lines": [t for t in (calls, macs, close) if t]}
