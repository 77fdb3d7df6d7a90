"""The table as Markdown for a README: what was run, the rows, the answers."""

from __future__ import annotations

from skipstone.evaluation.markdown import format_line

from ..findings import Answers
from ..summary import Summary
from .table_cells import row_title, table_columns
from .verdicts import agreement_verdict, make_verdicts

MAX_ROWS = 10  # columns


def render_markdown(summary: Summary, answers: Answers) -> str:
    """The main columns of all rows, with the answers below."""
    header = summary.header
    shown = [c for c in table_columns(summary) if c.main][:MAX_ROWS]
    prompts = header.prompts
    source = prompts.get("source", "?")
    test = f"{prompts.get('count', '?')} prompts of {source}, seeds {prompts.get('seeds', '?')}"
    guidance = "" if header.guidance is None else f", guidance {header.guidance:g}"
    lines = [
        f"Skipstone {header.version}, model {header.model}{guidance}, {test}; {header.machine}, {header.date}.",
        f"Made by `{header.command}`.",
        "",
        "PSNR and SSIM are medians to the converged picture, p10 is the unlucky tenth, calls and MACs are means "
        "(MACs in those of one full guided call).",
        "",
        format_line(["row", "family", *(c.title for c in shown)]),
        format_line([":--", ":--", *["--:"] * len(shown)]),
    ]
    for row in summary.rows:
        name = [f"`{row_title(row)}`", row.info.family]
        cells = (
            [c.cell(row).text for c in shown] if row.ran else [row.info.note or "no samples", *[""] * (len(shown) - 1)]
        )
        lines.append(format_line([*name, *cells]))
    answers_lines = [
        f"- **{v.title}** {v.text}" for v in (*make_verdicts(summary, answers), agreement_verdict(summary))
    ]
    return "\n".join([*lines, "", *answers_lines, ""])
