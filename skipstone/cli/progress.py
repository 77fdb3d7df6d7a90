"""Progress of long work: bars on a terminal, a line a minute elsewhere, both with the time that is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .garbage import collect_as_usual

if TYPE_CHECKING:
    from rich.console import Console

    from ..evaluation.compare import ComparisonProgressCallback
    from ..evaluation.progress import ProgressCallback
    from ..evaluation.subject import Subject

LINE_SECONDS = 60.0  # between two lines
QUIET_SECONDS = 5.0  # after which a line says what is being waited for, where the console is no terminal
SPEED_SECONDS = 1800.0  # that the speed of a bar is taken over: one step of slow work may take minutes
NAME_LENGTH = 60  # characters of what is being done


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


@dataclass
class ProgressLines:
    """A line about the work under way, at most one every `every` seconds.

    A part of the work begins where less is done than before, or the total is another: the time that is left is that
    of the part, by its speed so far.

    Args:
        write: Called with each line.
        clock: Seconds from some moment.
        every: Seconds between two lines, and before the first.
    """

    write: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    every: float = LINE_SECONDS
    _what: str = field(default="", init=False)
    _done: float = field(default=0.0, init=False)
    _total: float = field(default=0.0, init=False)
    _first: tuple[float, float] = field(init=False)  # clock and amount at the start of the part
    _changed: float = field(init=False)
    _written: float = field(init=False)

    def __post_init__(self) -> None:
        now = self.clock()
        self._first, self._changed, self._written = (now, 0.0), now, now

    def __call__(self, what: str, done: float, total: float) -> None:
        """Take note of the progress, as `ProgressCallback` gives it, and write a line if it is time."""
        now = self.clock()
        if done < self._done or total != self._total:
            self._first = now, done
        self._what, self._done, self._total, self._changed = what or self._what, done, total, now
        self.tick()

    def tick(self) -> None:
        """Write a line if it is time and there is something to say."""
        now = self.clock()
        if self._total > 0 and now - self._written >= self.every:
            self._written = now
            self.write(self.line())

    def line(self) -> str:
        """What is being done, the share that is done, and the time that is left."""
        share = min(1.0, self._done / max(self._total, 1e-9))
        left = self.seconds_left()
        about = "time left not known yet" if left is None else f"about {format_duration(left)} left in this part"
        return f"{self._what}: {share:.0%} done, {about}"

    def seconds_left(self) -> float | None:
        """Seconds until the part is done, None before any of it is."""
        start, amount = self._first
        took = self._changed - start
        if self._done <= amount or took <= 0:
            return None
        left = (self._total - self._done) * took / (self._done - amount)
        return max(0.0, left - (self.clock() - self._changed))


def print_memory(console: Console, subject: Subject) -> None:
    """Say what memory a run took, where its library counts it."""
    if note := getattr(subject, "memory_note", ""):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def format_duration(seconds: float) -> str:
    """12 s, 3 min, 2 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def _ticking(lines: ProgressLines) -> Iterator[ProgressLines]:
    """Have lines written while one step of the work takes longer than `every`, too."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(lines.every):
            lines.tick()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        stopped.set()
        thread.join()


@contextmanager
def _bars(console: Console) -> Iterator[Any]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(), TimeRemainingColumn())
    name = TextColumn("{task.description}", markup=False)
    with Progress(name, *columns, console=console, transient=True, speed_estimate_period=SPEED_SECONDS) as bars:
        yield bars


def _write_to(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def show_status(console: Console, what: str, quiet: float = QUIET_SECONDS) -> Iterator[None]:
    """Say what is being waited for: at once on a terminal, elsewhere by a line after some seconds.

    Args:
        console: That it is said on.
        what: "Loading the model ...".
        quiet: Seconds of silence where the console is no terminal, >= 0.
    """
    if console.is_terminal:
        with console.status(what):
            yield
        return
    timer = threading.Timer(quiet, _write_to(console), (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def sample_progress_bars(
    console: Console, columns: Sequence[tuple[str, int]], repeats: int = 1
) -> Iterator[ComparisonProgressCallback]:
    """A watch that moves one bar for each (name, samples); lines about all of them where there is no terminal."""
    collect_as_usual()
    way: list[list[float]] = [[0.0] * samples for _, samples in columns]
    total = float(repeats * sum(samples for _, samples in columns))
    before = [0.0] * len(columns)

    def advance(column: int, repeat: int, sample: int, share: float) -> float:
        way[column][sample] = share
        before[column] = repeat * len(way[column]) + sum(way[column])
        return before[column]

    if not console.is_terminal:
        with _ticking(ProgressLines(_write_to(console))) as lines:

            def watch_lines(column: int, repeat: int, sample: int, share: float) -> None:
                advance(column, repeat, sample, share)
                lines(columns[column][0], sum(before), total)

            yield watch_lines
        return
    with _bars(console) as bars:
        tasks = [bars.add_task(name, total=samples * repeats) for name, samples in columns]
        yield lambda column, *rest: bars.update(tasks[column], completed=advance(column, *rest))


@contextmanager
def progress_bar(console: Console) -> Iterator[ProgressCallback]:
    """A bar with the time that is left; a line a minute where the console is no terminal."""
    collect_as_usual()
    if not console.is_terminal:
        with _ticking(ProgressLines(_write_to(console))) as lines:
            yield lines
        return
    with _bars(console) as bars:
        task = bars.add_task("")

        def on_progress(what: str, done: float, total: float) -> None:
            if done == 0:
                bars.reset(task)
            bars.update(task, description=what[:NAME_LENGTH], completed=done, total=max(total, 1e-9))

        yield on_progress
