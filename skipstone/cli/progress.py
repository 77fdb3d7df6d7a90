"""Progress bars for batches in which each sample goes its own way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ..bench.compare import Watch
    from ..engine.contracts import Run


@contextmanager
def watching(console: Console, columns: Sequence[tuple[str, int]], repeats: int = 1) -> Iterator[Watch]:
    """A watch that moves one bar for each (name, samples); silent where the console is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    way: list[list[float]] = [[0.0] * samples for _, samples in columns]
    with bar:
        tasks = [bar.add_task(name, total=samples * repeats) for name, samples in columns]

        def watch(column: int, repeat: int, sample: int, run: Run) -> None:
            way[column][sample] = (run.grid[0] - run.here) / (run.grid[0] - run.t_end)
            bar.update(tasks[column], completed=repeat * len(way[column]) + sum(way[column]))

        yield watch
