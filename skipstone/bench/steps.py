"""How far a pipeline's call is, read off the progress bar that it would show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]  # comes with diffusers

from .subject import Watch


@contextmanager
def told_steps(pipe: Any, samples: Sequence[int], watch: Watch | None) -> Iterator[None]:
    """The pipeline's own bar tells the watch how far its samples are, and shows nothing itself."""

    def tell(share: float) -> None:
        for sample in samples if watch is not None else ():
            watch(sample, share)  # type: ignore[misc]  # not None here

    pipe.progress_bar = lambda iterable=None, total=None: _Steps(tell, iterable, total)
    try:
        yield
        tell(1.0)
    finally:
        del pipe.progress_bar


class _Steps(tqdm):  # type: ignore[misc]  # has no types
    """A bar of tqdm's that draws nothing and tells how far it is."""

    def __init__(self, tell: Callable[[float], None], iterable: Any, total: int | None) -> None:
        super().__init__(iterable, total=total, disable=True)
        self.tell, self.steps = tell, 0.0

    def update(self, n: float | None = 1) -> None:
        self.steps += n or 0
        self.tell(min(1.0, self.steps / (self.total or 1)))

    def __iter__(self) -> Iterator[Any]:
        for one in self.iterable:
            yield one
            self.update()
