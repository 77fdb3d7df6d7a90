"""Progress and duration of a pipeline's loop, read from the progress bar that it would show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]  # comes with diffusers

from .subject import SampleProgressCallback


class Stopwatch:
    """Seconds of the loops that a pipeline has shown a bar for; a GPU's queue is waited for at both ends."""

    def __init__(self, device: Any) -> None:
        self.device = getattr(device, "type", "")
        self.seconds, self.loops = 0.0, 0
        self._began = 0.0

    def start(self) -> None:
        """Start the clock."""
        self._began = self._now()

    def stop(self) -> None:
        """Stop the clock and add the elapsed seconds."""
        self.seconds += self._now() - self._began
        self.loops += 1

    def _now(self) -> float:
        if self.device in ("cuda", "mps"):
            import torch

            getattr(torch, self.device).synchronize()
        return time.perf_counter()


@contextmanager
def track_steps(pipe: Any, samples: Sequence[int], watch: SampleProgressCallback | None) -> Iterator[Stopwatch]:
    """The pipeline's own bar calls the watch with the share that is done, and shows nothing itself."""
    clock = Stopwatch(getattr(pipe, "device", None))

    def on_progress(share: float) -> None:
        for sample in samples if watch is not None else ():
            watch(sample, share)  # type: ignore[misc]  # not None here

    pipe.progress_bar = lambda iterable=None, total=None: _SilentProgressBar(on_progress, clock, iterable, total)
    try:
        yield clock
        on_progress(1.0)
    finally:
        del pipe.progress_bar


class _SilentProgressBar(tqdm):  # type: ignore[misc]  # has no types
    """A bar of tqdm's that shows nothing and reports how much is done."""

    def __init__(
        self, on_progress: Callable[[float], None], clock: Stopwatch, iterable: Any, total: int | None
    ) -> None:
        super().__init__(iterable, total=total, disable=True)
        self.on_progress, self.clock, self.steps = on_progress, clock, 0.0

    def __enter__(self) -> _SilentProgressBar:
        self.clock.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.clock.stop()

    def update(self, n: float | None = 1) -> None:
        self.steps += n or 0
        self.on_progress(min(1.0, self.steps / (self.total or 1)))

    def __iter__(self) -> Iterator[Any]:
        self.clock.start()
        for one in self.iterable:
            yield one
            self.update()
        self.clock.stop()
