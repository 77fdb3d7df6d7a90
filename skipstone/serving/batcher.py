"""The driver of all flows that run: before each call of a network it gathers what samples wait for.

Samples are admitted and removed between two calls. Each is planned by its own policy, alone, and draws noise from its
own stream, so that its picture depends neither on its companions nor on when it came.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..engine.contracts import Policy, Run
from ..engine.drivers import add_controller, answer_requests
from ..engine.flow import flow
from ..engine.paired import PairedBackbone
from ..engine.requests import Backbone, Estimate, Flow, Problem, Query, Result, Solver
from ..errors import SkipstoneError
from ..numerics.array import rms, to_floats
from .forward import predict_apart
from .order import FIRST, Rank, Turn, in_order
from .refusals import DrawingFailed

PATIENCE = 8  # calls of a network that a sample lets others go first, before it goes first itself
MAX_ERROR_TEXT = 300  # characters of somebody else's error in ours


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture to denoise, as `denoise` takes it.

    Args:
        backbone, problem, solver, policy: As of `skipstone.denoise`.
        rank: How urgent it is.
        calls: That it is expected to cost.
        watch: Called with the run and the newest clean estimate (None before the first) when a decision is due.
    """

    backbone: Backbone
    problem: Problem
    solver: Solver
    policy: Policy
    rank: Rank = FIRST
    calls: float = 0.0
    watch: Callable[[Run, Any], None] | None = None


@dataclass(frozen=True)
class Forward:
    """One call of a network, for those who count them.

    Args:
        samples: That were in it.
        rows: That entered it.
        first: Number of one of the samples.
        seconds: It took.
    """

    samples: int
    rows: int
    first: int = -1
    seconds: float = 0.0


@dataclass(eq=False)
class _Flight:
    """A sample on its way."""

    sample: Sample
    flow: Flow
    policy: Policy
    request: Any = None
    since: int = 0  # the call of a network since which it waits
    clean: Any = None  # its newest clean estimate
    calls: float = 0.0  # made so far

    @property
    def left(self) -> float:
        """Calls that it is expected to need yet."""
        return max(0.0, self.sample.calls - self.calls)

    @property
    def backbone(self) -> Backbone:
        """Of its query: the sample's own, or the one of two networks that is asked."""
        own = self.sample.backbone
        if isinstance(own, PairedBackbone) and isinstance(self.request, Query):
            return own.backbone_for(self.request)
        return own

    @property
    def group(self) -> tuple[Any, ...]:
        """What must be the same of queries that share a call."""
        x = self.sample.problem.x
        return id(self.backbone), type(x), tuple(x.shape), str(x.dtype)

    @property
    def rows(self) -> int:
        """Rows of its query."""
        backbone = self.backbone
        full: int = getattr(backbone, "rows", backbone.branches)  # a student's branches are those of its teacher
        return max(1, full - len(self.request.known_outputs))


@dataclass(eq=False)
class Batcher:
    """All samples that are denoised at present; used by one thread.

    Args:
        rows: That enter a network at once, >= 1; a sample with more branches than that goes alone.
        patience: Calls of a network after which a sample that others go before is overdue.
        on_forward: Called after each call of a network.
    """

    rows: int = 32
    patience: int = PATIENCE
    on_forward: Callable[[Forward], None] | None = None
    _flights: dict[int, _Flight] = field(default_factory=dict, init=False)
    _done: dict[int, Result | Exception] = field(default_factory=dict, init=False)
    _noises: dict[int, int] = field(default_factory=dict, init=False)
    _numbers: Any = field(default_factory=itertools.count, init=False)
    _forwards: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._flights)

    def admit(self, sample: Sample) -> int:
        """Let a sample take part from the next call on; returns its number."""
        number: int = next(self._numbers)
        try:
            policy = add_controller(sample.solver, sample.policy)
            started = flow(sample.problem, sample.solver, policy.needs, policy.sites)
        except Exception as error:  # of a policy that cannot even say what it needs
            self._fail(number, error)
            return number
        self._flights[number] = _Flight(sample, started, policy)
        self._noises[number] = 0
        self._settle({number: None})
        return number

    def remove(self, number: int) -> None:
        """Forget a sample; nothing happens where it is not there."""
        self._noises.pop(number, None)
        if (flight := self._flights.pop(number, None)) is not None:
            flight.flow.close()

    def tick(self) -> dict[int, Result | Exception]:
        """Make one call of a network for those who are next; returns who is done, with the result or what failed."""
        waiting = {n: Turn(f.sample.rank, f.since, f.left) for n, f in self._flights.items()}
        if chosen := self._choose(in_order(waiting, self._forwards, self.patience)):
            self._settle(self._forward(chosen))
        done, self._done = self._done, {}
        return done

    def _choose(self, order: Iterable[int]) -> list[int]:
        """The first of the order, and those after it that can share a call with it, while there is room."""
        chosen: list[int] = []
        left, group = self.rows, None
        for number in order:
            flight = self._flights[number]
            group = flight.group if group is None else group
            if flight.group == group and (flight.rows <= left or not chosen):
                chosen.append(number)
                left -= flight.rows
        return chosen

    def _forward(self, chosen: list[int]) -> dict[int, Any]:
        """The answers of one call of a network; who got none has failed."""
        flights = [self._flights[n] for n in chosen]
        rows = sum(f.rows for f in flights)
        began = time.perf_counter()
        answers, short = predict_apart(flights[0].backbone, [f.request for f in flights])
        seconds = time.perf_counter() - began
        if short and len(chosen) > 1:
            self.rows = max(1, rows // 2)
        self._forwards += 1
        if self.on_forward is not None:
            self.on_forward(Forward(len(chosen), rows, chosen[0], seconds))
        inbox: dict[int, Any] = {}
        for number, answer, size in zip(chosen, answers, _sizes(answers), strict=True):
            if isinstance(answer, Exception):
                self._fail(number, answer)
            elif not abs(size) < float("inf"):  # NaN too
                self._fail(number, DrawingFailed("The sample became NaN or infinite. Try another seed or policy."))
            else:
                self._flights[number].clean = answer.x0
                self._flights[number].calls += answer.cost
                inbox[number] = answer
        return inbox

    def _settle(self, inbox: dict[int, Any]) -> None:
        """Send these answers, and answer all that needs no network, until every flow asks for it or is done."""
        while inbox:
            for number, answer in inbox.items():
                self._send(number, answer)
            inbox = self._plans(inbox) | self._answers(inbox)

    def _send(self, number: int, answer: Any) -> None:
        flight = self._flights[number]
        try:
            flight.request = flight.flow.send(answer)
            flight.since = self._forwards
        except StopIteration as end:
            self._end(number, end.value)
        except Exception as error:
            self._fail(number, error)

    def _plans(self, asked: Mapping[int, Any]) -> dict[int, Any]:
        """The plans of those among `asked` who are to decide, each by its own policy, alone."""
        plans: dict[int, Any] = {}
        for number in asked:
            flight = self._flights.get(number)
            if flight is None or not isinstance(flight.request, Run):
                continue
            run = flight.request
            try:
                if flight.sample.watch is not None:
                    flight.sample.watch(run, flight.clean)
                [plans[number]] = flight.policy.consult([run], [run.proposal()])
            except Exception as error:
                self._fail(number, error)
        return plans

    def _answers(self, asked: Mapping[int, Any]) -> dict[int, Any]:
        """Noise and numbers for those among `asked` who want them."""
        groups: dict[tuple[Any, ...], dict[int, Any]] = {}
        for number in asked:
            flight = self._flights.get(number)
            if flight is not None and not isinstance(flight.request, Run | Query):
                groups.setdefault(flight.group, {})[number] = flight.request
        answers: dict[int, Any] = {}
        for wanted in groups.values():
            while left := {n: r for n, r in wanted.items() if n not in answers}:
                flights = {n: self._flights[n] for n in left}
                problems = {n: f.sample.problem for n, f in flights.items()}
                backbone = next(iter(flights.values())).sample.backbone
                answers |= answer_requests(left, backbone, problems, self._noises)
        return answers

    def _end(self, number: int, result: Result | Exception) -> None:
        self.remove(number)
        self._done[number] = result

    def _fail(self, number: int, error: Exception) -> None:
        """End a sample by an error of ours, whatever was raised."""
        if not isinstance(error, SkipstoneError):
            text = f"{type(error).__name__}: {error}"[:MAX_ERROR_TEXT]
            failed = DrawingFailed(f"The run of this request failed, and no other: {text}")
            failed.__cause__ = error
            error = failed
        self._end(number, error)


def _sizes(answers: list[Estimate | Exception]) -> list[float]:
    """rms of each clean estimate, in one transfer from the device; 0 of what is none."""
    found = iter(to_floats([rms(a.x0) for a in answers if isinstance(a, Estimate)]))
    return [next(found) if isinstance(a, Estimate) else 0.0 for a in answers]
