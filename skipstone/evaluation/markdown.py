"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def format_line(cells: Sequence[str]) -> str:
    """One row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def format_table(rows: Sequence[Sequence[str]], alignment: Sequence[str] = ()) -> list[str]:
    """The lines of a table.

    Args:
        rows: The first is the head.
        alignment: ":--" or "--:" of each column; all as the reader's program has it by default.
    """
    head, *body = rows
    return [format_line(row) for row in (head, alignment or ["---"] * len(head), *body)]
