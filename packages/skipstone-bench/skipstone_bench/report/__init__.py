"""The report of a benchmark's folder: a page, its figures as PNG, the table as Markdown, everything as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from ..findings import build_document, compute_answers
from ..store import Store
from ..summary import summarise

PAGE, TABLE, SUMMARY = "report.html", "table.md", "summary.json"
PARETO, TIMELINE, WORST = "pareto.png", "timeline.png", "worst.png"


def write_report(folder: str | Path) -> list[Path]:
    """Write the report of a folder of results into it; plots and sheets without data are left out.

    Args:
        folder: The --out of `skipstone bench`.

    Returns:
        The files that were written, the page first.

    Raises:
        BenchError: no results there, or damaged ones, or the files cannot be written.
    """
    from skipstone.evaluation.figures import figure_to_png

    from . import gallery, markdown, page, plots
    from . import timelines as strips

    store = Store.load(Path(folder))
    summary = summarise(store)
    answers = compute_answers(summary)
    chief = plots.chief_families(summary, summary.closeness) if summary.closeness else None
    pareto, timeline = plots.plot_pareto(summary, summary.closeness, chief), strips.plot_timeline(summary)
    files = {
        PAGE: page.render_page(summary, answers, store.folder).encode(),
        PARETO: figure_to_png(pareto) if pareto else None,
        TIMELINE: figure_to_png(timeline) if timeline else None,
        WORST: gallery.render_worst_sheet(summary, store.folder),
        TABLE: markdown.render_markdown(summary, answers).encode(),
        SUMMARY: json.dumps(build_document(summary, answers), indent=1, ensure_ascii=False, allow_nan=False).encode(),
    }
    return [store.write(name, content) for name, content in files.items() if content is not None]
