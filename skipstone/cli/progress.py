"""Progress bars for batches in which each sample follows its own plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ..evaluation.compare import ComparisonProgressCallback
    from ..evaluation.progress import ProgressCallback


@contextmanager
def print_warnings(console: Console) -> Iterator[None]:
    """Print each GuestWarning once, as a sentence; hide the warnings of other libraries."""
    import warnings

    from ..errors import GuestWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", GuestWarning)
        yield
    for said in dict.fromkeys(str(w.message) for w in caught):
        console.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def sample_progress_bars(
    console: Console, columns: Sequence[tuple[str, int]], repeats: int = 1
) -> Iterator[ComparisonProgressCallback]:
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

        def watch(column: int, repeat: int, sample: int, share: float) -> None:
            way[column][sample] = share
            bar.update(tasks[column], completed=repeat * len(way[column]) + sum(way[column]))

        yield watch


@contextmanager
def progress_bar(console: Console) -> Iterator[ProgressCallback]:
    """A bar with the time that is left; silent where the console is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("")

        def on_progress(what: str, done: float, total: float) -> None:
            if done == 0:
                bar.reset(task)
            bar.update(task, description=what[:60], completed=done, total=max(total, 1e-9))

        yield on_progress
