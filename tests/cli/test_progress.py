"""Progress without a terminal: a line a minute with what is run, the share done and the time left."""

from __future__ import annotations

import gc
import io
import time
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from skipstone.cli.garbage import NEW_OBJECTS, rare_collections
from skipstone.cli.progress import ProgressLines, format_duration, progress_bar, sample_progress_bars, show_status


@dataclass
class Clock:
    """Seconds that only pass when the test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Written:
    clock: Clock = field(default_factory=Clock)
    lines: list[str] = field(default_factory=list)

    def progress(self) -> ProgressLines:
        return ProgressLines(self.lines.append, self.clock)


@given(
    st.lists(st.floats(0.1, 500.0), min_size=1, max_size=60),
    st.integers(1, 100),
)
def test_there_is_a_line_a_minute_and_never_more(waits: list[float], total: int) -> None:
    written = Written()
    progress, times, seen = written.progress(), [written.clock.now], 0
    for k, wait in enumerate(waits):
        written.clock.now += wait
        progress("work", min(k, total), total)
        if len(written.lines) > seen:
            seen += 1
            assert len(written.lines) == seen
            assert written.clock.now - times[-1] >= 60
            times.append(written.clock.now)
        assert written.clock.now - times[-1] < 60


@given(st.floats(0.5, 1e5), st.integers(1, 50), st.integers(51, 100))
def test_at_an_even_speed_the_time_left_is_exact(each: float, done: int, total: int) -> None:
    written = Written()
    progress = written.progress()
    for k in range(done + 1):
        progress("work", k, total)
        written.clock.now += each
    left = progress.seconds_left()
    assert left is not None
    assert abs(left - (total - done - 1) * each) <= 1e-6 * total * each  # the last step is under way since `each`


def test_a_line_says_what_is_run_how_much_is_done_and_what_is_left() -> None:
    written = Written()
    progress = written.progress()
    progress("Tuning: ddim", 0, 10)
    written.clock.now += 61
    progress.tick()  # nothing is done yet
    written.clock.now += 59
    progress("Tuning: dpmpp", 2, 10)
    progress.tick()
    written.clock.now += 1
    progress("Tuning: dpmpp", 2, 10)
    written.clock.now += 60
    progress.tick()
    assert written.lines == [
        "Tuning: ddim: 0% done, time left not known yet",
        "Tuning: dpmpp: 20% done, about 8 min left in this part",
        "Tuning: dpmpp: 20% done, about 7 min left in this part",
    ]


def test_another_part_of_the_work_starts_its_own_estimate() -> None:
    written = Written()
    progress = written.progress()
    progress("one", 0, 4)
    written.clock.now += 400
    progress("one", 4, 4)
    progress("two", 0, 100)
    assert progress.seconds_left() is None
    written.clock.now += 10
    progress("two", 50, 100)
    assert progress.seconds_left() == 10


def test_durations() -> None:
    assert [format_duration(s) for s in (0, 59, 100, 5970, 7500)] == [
        "0 s",
        "59 s",
        "2 min",
        "1 h 40 min",
        "2 h 05 min",
    ]


def test_a_console_that_is_no_terminal_gets_no_bar_and_no_line_in_the_first_minute() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=False)
    with progress_bar(console) as on_progress:
        on_progress("work", 0, 2)
        on_progress("work", 2, 2)
    with sample_progress_bars(console, [("full", 2), ("ours", 2)], repeats=2) as watch:
        watch(0, 0, 1, 0.5)
    assert out.getvalue() == ""


def test_a_terminal_gets_bars_with_the_time_left() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with progress_bar(console) as on_progress:
        on_progress("work", 0, 2)
        on_progress("work", 1, 2)
    assert "work" in out.getvalue()
    assert "50 %" in out.getvalue()


def test_a_wait_is_told_of_where_there_is_no_terminal() -> None:
    said = io.StringIO()
    console = Console(file=said)
    with show_status(console, "Loading ...", quiet=1e6):
        pass
    assert said.getvalue() == ""
    with show_status(console, "Loading ...", quiet=0.0):
        while not said.getvalue():
            time.sleep(0.001)
    assert said.getvalue() == "Loading ...\n"


def test_collections_are_rare_while_a_command_starts_and_as_usual_when_it_works() -> None:
    usual = gc.get_threshold()
    with rare_collections():
        assert gc.get_threshold() == (NEW_OBJECTS, *usual[1:])
        with progress_bar(Console(file=io.StringIO())):
            assert gc.get_threshold() == usual
    assert gc.get_threshold() == usual
