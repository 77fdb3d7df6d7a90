"""Protocol of a comparison's model, implemented for the engine's own loop and for adapted pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..engine.contracts import Run
from ..engine.requests import Status
from ..errors import PromptError
from ..integrations.diffusers.refusal import TakeoverRefused
from .columns import Column, Sampler

SampleProgressCallback: TypeAlias = Callable[[int, float], None]  # sample, share of its way


class SampleRequest(NamedTuple):
    """One sample to generate."""

    prompt: str  # empty where the model takes none
    seed: int


class DrawJob(NamedTuple):
    """A batch that will be drawn."""

    items: Sequence[SampleRequest]
    column: Column

    @property
    def key(self) -> tuple[tuple[SampleRequest, ...], int]:
        """What tells it apart: its samples and its very column, whose solver may record them."""
        return tuple(self.items), id(self.column)


@dataclass(frozen=True, eq=False)
class GeneratedSample:
    """One sample that was generated.

    Args:
        x: What the run ended with; the subject makes a picture of it.
        run: Its decisions; None of a peer, which has no run of ours.
        calls: Rows that entered the network, over the rows of a full call, backward passes charged as forwards.
        full_calls: What a run without a policy calls.
        status: How it ended.
        latent: What was decoded, as an array; None where nothing is.
        branches: Rows of a full call.
        backward: Rows of backward passes, over those of a full call; `calls` has them twice (`BACKWARD`).
    """

    x: Any
    run: Run | None
    calls: float
    full_calls: float
    status: Status = Status.done
    latent: Any = None
    branches: int = 1
    backward: float = 0.0


class Subject(Protocol):
    """A model that generates samples under columns."""

    @property
    def name(self) -> str: ...
    @property
    def guidance(self) -> float | None: ...  # None where the model has none
    @property
    def default_sampler(self) -> Sampler: ...  # what columns and commands leave out is taken from it
    @property
    def policy(self) -> str: ...  # spec of the default policy
    @property
    def is_video(self) -> bool: ...  # whether it makes videos
    @property
    def settings(self) -> Mapping[str, Any]: ...  # other arguments of the pipeline's call
    @property
    def judge(self) -> Callable[[Any, str], float] | None: ...

    @property
    def folder(self) -> Path: ...  # where its weights are
    @property
    def denoisers(self) -> Sequence[Any]: ...  # its networks, once loaded

    def check(self, prompts: Sequence[str]) -> None:
        """Raise PromptError for prompts that it cannot generate."""

    def resolve_column(self, column: Column) -> Column:
        """The column as this model runs it, before anything is loaded. Raises SpecError where it cannot."""

    def load(self, columns: Sequence[Column]) -> None:
        """Load the weights, and raise for columns that they cannot run: ModelError, GuestError."""

    def warm_up(self, items: Sequence[SampleRequest], column: Column) -> None:
        """Make the first calls, which also allocate and are not timed."""

    def prepare(self, items: Sequence[SampleRequest], column: Column) -> None:
        """Let a peer measure what it needs for such runs."""

    def draw(
        self, items: Sequence[SampleRequest], column: Column, watch: SampleProgressCallback | None = None
    ) -> tuple[list[GeneratedSample], float]:
        """The samples, and the seconds of denoising them."""

    def pictures(self, generated: Sequence[GeneratedSample]) -> list[Any]:
        """(height, width, 3) in [0, 1] for each, or (frames, height, width, 3) of a video; not rounded."""


def draw_or_fall_back(
    subject: Subject, items: Sequence[SampleRequest], column: Column, watch: SampleProgressCallback | None = None
) -> tuple[list[GeneratedSample], float, Column]:
    """The samples, the seconds, and the column that has drawn them: as `skipstone.adapt` does with a preset.

    Raises:
        TakeoverRefused: the pipeline's loop cannot be taken over, and the column has no fallback.
    """
    try:
        return *subject.draw(items, column, watch), column
    except TakeoverRefused as refused:
        if column.fallback is None:
            raise
        other = replace(column.fallback, refusal=refused.reason)
    return *subject.draw(items, other, watch), other


def prefetch(subject: Subject, jobs: Sequence[DrawJob]) -> None:
    """Say which batches are drawn next, for subjects that draw several at once; others wait until they are asked."""
    if (begin := getattr(subject, "prefetch", None)) is not None:
        begin(jobs)


def local_model(subject: Subject) -> Subject:
    """The model in this process, of a subject that draws elsewhere: for counts and seconds that are taken here."""
    found: Subject = getattr(subject, "local", subject)
    return found


def draws_without_prompt(subject: Subject) -> bool:
    """Whether the model takes no prompt, so that seeds alone tell its samples apart."""
    try:
        subject.check([""])
    except PromptError:
        return False
    return True


def resolve_sampler(subject: Subject, solver: str | None, grid: str | None, steps: int | None) -> Sampler:
    """The sampler of a command; what it leaves out is the subject's own."""
    own = subject.default_sampler
    return Sampler(
        own.solver if solver is None else Sampler.parse_component("solver", solver),
        own.grid if grid is None else Sampler.parse_component("grid", grid),
        own.steps if steps is None else steps,
    )
