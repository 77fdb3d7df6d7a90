"""Lines and tables of commands, printed as they are: no markup, no highlighting, lines not broken."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def print_line(console: Console, line: str) -> None:
    """Print a line."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_table(console: Console, head: Sequence[str], body: Iterable[Sequence[str]], left: Collection[int]) -> None:
    """Print a table.

    Args:
        console: Where.
        head: Titles of the columns.
        body: Rows of as many cells.
        left: Indices of the columns that begin at the left; numbers end at the right.
    """
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for k, title in enumerate(head):
        shown.add_column(title, justify="left" if k in left else "right", overflow="fold")
    for row in body:
        shown.add_row(*row)
    console.print(shown, highlight=False, markup=False)
