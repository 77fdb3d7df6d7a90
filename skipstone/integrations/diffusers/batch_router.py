"""Which rows of a batch enter the denoiser: all, some, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...engine.contracts import COND
from ...errors import GuestError
from .constants import BATCH_ARGUMENTS, Constants, time_argument
from .refusal import TakeoverBroken
from .row_slicing import NetworkCall, RowSlicer, Split
from .rows import copy_containers, empty_like, main_output, replace_main_output, scatter_rows
from .sample_place import SamplePlace

MAX_CALLS_PER_STEP = 8  # denoiser calls, in those of the first step, after which a step of the scheduler must have come


@dataclass(frozen=True)
class RowRequest:
    """One sample's request for the next iteration: whether to run the network, and which branches are given instead."""

    compute: bool = True
    known_outputs: Mapping[str, Any] = field(default_factory=dict)

    def needs_branch(self, branch: str) -> bool:
        """Whether the row of this branch is to be computed."""
        return self.compute and branch not in self.known_outputs


@dataclass
class DenoiserCall:
    """One of the denoiser calls that make up an iteration, as it was when it last ran in full or in part."""

    module: Any
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int
    template: Any  # what the call returned, without its prediction
    output: torch.Tensor
    branches: tuple[str, ...] = ()
    constants: Constants | None = None  # under a takeover: what later iterations must give it too
    place: SamplePlace = field(default_factory=SamplePlace)
    rest: torch.Tensor | None = None  # what lies behind the samples in its batch
    batch: torch.Tensor | None = None  # that it was last given, and its time
    time: Any = None
    extra: bool = False  # whether only some steps make it, such as that of a skipped layer
    ran: frozenset[int] = frozenset()  # rows that entered in this iteration

    @property
    def call(self) -> NetworkCall:
        """The call with its arguments."""
        return NetworkCall(self.module, self.run, self.args, self.kwargs, self.rows)


@dataclass
class CompanionCall:
    """A call of a model beside the denoiser in the first iteration, such as a ControlNet."""

    model: Any
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int
    made: Any  # what it returned
    constants: Constants | None = None  # under a takeover: what later iterations must give it too

    @property
    def call(self) -> NetworkCall:
        """The call with its arguments."""
        return NetworkCall(self.model, self.run, self.args, self.kwargs, self.rows)


@dataclass
class BatchRouter:
    """Decides which rows enter the denoiser, for the length of one trajectory.

    The first iteration passes through it and shows how the pipeline calls its network. From then on each
    sample's request decides whether its rows enter. The others get their last output, for which the scheduler's
    side of the guest substitutes what was forecast.
    """

    slicer: RowSlicer
    all_or_none: bool = False  # let all rows enter where one does
    samples: int = 0  # 0 in the first iteration: not known yet
    denoiser_calls: dict[int, DenoiserCall] = field(default_factory=dict)  # ordinal within the iteration -> call
    row_requests: Sequence[RowRequest] = ()
    ordinal: int = 0
    branches: int = 0  # rows of one sample in a bare step
    num_rows: list[int] = field(default_factory=list)  # rows that entered so far, for each sample
    asked_rows: int = 0  # rows that the pipeline asked for so far, for each sample: those of a bare run
    verified: int = 0  # rows that entered only to show that rows are independent
    forced_reason: str = ""  # why more rows entered than were wanted, where they did
    num_forced_rows: int = 0  # how many those were
    is_companion_sliced: bool = False  # whether the coming call has residuals for some of its rows only
    taken_over: bool = False
    changed: str = ""  # how the network is called otherwise in a later iteration than in the first one
    companion_calls: list[CompanionCall] = field(default_factory=list)  # of the first iteration
    companion_ordinal: int = 0
    _shapes: dict[int, Any] = field(default_factory=dict)  # what the models beside the denoiser return, hollow

    def open(self, samples: int) -> None:
        """End the first iteration, whose rows these samples have shared."""
        entered = [p.rows for p in self.denoiser_calls.values()]
        if not entered or any(rows % samples for rows in entered):
            raise GuestError(
                f"The denoiser was given batches of {entered or 'no'} rows for {samples} samples, and the guest cannot "
                f"tell whose they are. Declare the layout of this pipeline: PipelineSpec(frames=..., doubled=...)."
            )
        self.samples, self.branches = samples, sum(entered) // samples
        self.num_rows, self.asked_rows = [self.branches] * samples, self.branches
        names = iter(self._names(self.branches))
        for p in self.denoiser_calls.values():
            p.branches = tuple(next(names) for _ in range(p.rows // samples))

    def _names(self, count: int) -> tuple[str, ...]:
        if count == len(self.slicer.spec.branches):
            return self.slicer.spec.branches
        return (COND,) if count == 1 else tuple(f"branch {i + 1}" for i in range(count))

    def begin_iteration(self, requests: Sequence[RowRequest]) -> None:
        """Begin an iteration."""
        self.row_requests, self.ordinal, self.companion_ordinal, self.is_companion_sliced = requests, 0, 0, False
        for p in self.denoiser_calls.values():
            p.ran = frozenset()

    def check_takeover(self) -> None:
        """Raise GuestError where the pipeline calls its network otherwise than in its first step."""
        if not self.changed and self.ordinal != len(self.denoiser_calls):
            self.changed = f"{self.ordinal} calls of it in a step, and not {len(self.denoiser_calls)}"
        if not self.changed and self.companion_ordinal != len(self.companion_calls):
            self.changed = "another number of calls of the model beside it"
        if self.changed:
            raise TakeoverBroken(f"the pipeline calls its network otherwise than in its first step: {self.changed}")

    def drop_arguments(self) -> None:
        """Let go of the arguments of the first iteration: a ControlNet's residuals are large."""
        for p in self.denoiser_calls.values():
            p.args, p.kwargs = (), {}
        for c in self.companion_calls:
            c.args, c.kwargs, c.made = (), {}, None

    def get_new_outputs(self, sample: int) -> dict[str, torch.Tensor]:
        """The network's new outputs for a sample in this iteration, by branch."""
        said = {}
        for p in self.denoiser_calls.values():
            for j, branch in enumerate(p.branches):
                if j * self.samples + sample in p.ran:
                    said[branch] = p.output[j * self.samples + sample]
        return said

    def denoise(self, module: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stand in for a call of the denoiser."""
        here, self.ordinal = self.ordinal, self.ordinal + 1
        if here >= MAX_CALLS_PER_STEP * max(1, len(self.denoiser_calls)) or here >= 64:
            raise GuestError(
                f"{type(module).__name__} was called {here} times without a step of the scheduler: this pipeline does "
                f"not update its sample through scheduler.step, and cannot be adapted."
            )
        rows = find_batch(module, args, kwargs).shape[0]
        if not self.samples:
            return self._first(here, rows, module, run, args, kwargs)
        p = self.denoiser_calls.get(here)
        if p is None or p.rows != rows:
            p = self.denoiser_calls[here] = self._new_call(p, here, rows, module, run)
            self.changed = self.changed or f"{rows} rows of it"
        elif self.taken_over:
            self._compare(p, args, kwargs)
            p.module = module
        self.asked_rows += rows // self.samples
        wanted = [r for r in range(rows) if self._wanted(r, p.branches)]
        if len(wanted) == rows:
            made = run(*args, **kwargs)
            p.output = main_output(made)
            self._count(p, wanted)
            return made
        p.output = p.output.clone()  # the pipeline may write into what it was given
        self._write_given(p)
        if wanted:
            self.compute(p, NetworkCall(module, run, args, kwargs, rows), wanted)
        self.is_companion_sliced = False
        return replace_main_output(p.template, p.output)

    def _compare(self, p: DenoiserCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note whether a call under a takeover differs from that of the first iteration, and which time it is given."""
        name = time_argument(args, kwargs)
        p.time = kwargs[name] if name in kwargs else args[1] if len(args) > 1 else None
        p.batch = find_batch(p.module, args, kwargs)
        rest = p.place.rest(p.batch)
        if p.rest is not None and (rest is None or rest.shape != p.rest.shape or not torch.equal(rest, p.rest)):
            self.changed = self.changed or "the part of its batch that is not the sample is another"
        if p.constants is not None and (differing := p.constants.first_difference(args, kwargs)):
            self.changed = self.changed or f"{differing} is another"

    def compute(self, p: DenoiserCall, call: NetworkCall, wanted: Sequence[int]) -> None:
        """Let these rows of a call enter, and others with them that may not stay out; updates `p.output`.

        Every call of the network that not all rows were asked of goes through here, a takeover's too.
        """
        self.slicer.look()
        for split, entering in self._choose_rows(p, wanted):
            if self.slicer.is_due(call, split):
                self._prove(p, call, split, wanted)
                return
            rule = self.slicer.rule(call, split)
            if rule is not None:
                part = main_output(self.slicer.run_rows(call, rule, entering))
                self._put(p, entering, part, entered=entering, wanted=wanted)
                return
            self.all_or_none |= split is Split.SAMPLES  # from now on, samples decide together
        whole = main_output(call.run(*call.args, **call.kwargs))
        fresh = wanted if self.is_companion_sliced else range(p.rows)  # where residuals of other rows are zero
        self._put(p, fresh, whole[list(fresh)], entered=range(p.rows), wanted=wanted)

    def _choose_rows(self, p: DenoiserCall, wanted: Sequence[int]) -> Iterator[tuple[Split, list[int]]]:
        """Ways in which these rows could enter without all others, that with the fewest rows first."""
        if self.all_or_none or len(wanted) == p.rows:
            return
        samples = {r % self.samples for r in wanted}
        complete = [r for r in range(p.rows) if r % self.samples in samples]
        if len(wanted) < len(complete):
            yield Split.BRANCHES, list(wanted)
        if len(complete) < p.rows:
            yield Split.SAMPLES, complete

    def _prove(self, p: DenoiserCall, call: NetworkCall, split: Split, wanted: Sequence[int]) -> None:
        """Compute the whole batch, and all of it again in parts, to see whether these may enter apart."""
        args, kwargs = copy_containers(call.args), copy_containers(call.kwargs)  # a network may empty its lists
        states = self.slicer.watch.processor_states()
        whole = main_output(call.run(*args, **kwargs))
        self.verified += p.rows - len(wanted)
        if self.slicer.watch.processor_states() != states:
            self.slicer.refuse(call, split)
        else:
            parts = dict.fromkeys(tuple(part) for part in (*self._list_parts(p, split), wanted))
            self.verified += self.slicer.prove(call, split, whole, list(parts))
        self._put(p, wanted, whole[list(wanted)], entered=wanted, wanted=wanted)
        if self.slicer.strict:
            self.slicer.rule(call, split)

    def _list_parts(self, p: DenoiserCall, split: Split) -> list[list[int]]:
        """All rows, as small parts as they may enter in."""
        if split is Split.BRANCHES:
            return [[row] for row in range(p.rows)]
        return [list(range(s, p.rows, self.samples)) for s in range(self.samples)]

    def check_independent(self) -> None:
        """Raise GuestError where samples of the first iteration may not be told apart; compares them if need be."""
        self.slicer.strict = True
        self.slicer.look()
        for p in self.denoiser_calls.values():
            if self.slicer.is_due(p.call, Split.SAMPLES):
                parts = self._list_parts(p, Split.SAMPLES)
                self.verified += self.slicer.prove(p.call, Split.SAMPLES, p.output, parts)
            self.slicer.rule(p.call, Split.SAMPLES)

    def _put(
        self, p: DenoiserCall, rows: Sequence[int], outputs: torch.Tensor, entered: Sequence[int], wanted: Sequence[int]
    ) -> None:
        """Keep the new outputs of these rows, and count those that entered."""
        p.output[torch.tensor(list(rows), device=outputs.device)] = outputs
        if len(entered) > len(wanted):
            self.forced_reason = self.slicer.reason or "rows enter together (per_sample=False, or a cache of diffusers)"
            self.num_forced_rows += len(entered) - len(wanted)
        self._count(p, entered)
        p.ran = frozenset(rows)

    def _first(
        self, here: int, rows: int, module: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call of the first iteration."""
        kept, named = copy_containers(args), copy_containers(kwargs)  # a network may empty the lists that it is given
        made = run(*args, **kwargs)
        output = main_output(made)
        template = replace_main_output(made, output[:0])
        self.denoiser_calls[here] = DenoiserCall(
            module, run, kept, named, rows, template, output, ran=frozenset(range(rows))
        )
        return made

    def _new_call(
        self, before: DenoiserCall | None, here: int, rows: int, module: Any, run: Callable[..., Any]
    ) -> DenoiserCall:
        """A call that was not in the first iteration, or had other rows there; rows that stay out get what is known.

        Guidance that is switched off in mid-run changes the rows; a skipped layer adds a call to some steps.
        """
        count = rows // self.samples
        extra = before is None or before.extra
        names = tuple(f"extra {here}.{j}" for j in range(count)) if extra else self._names(count)
        known = {
            b: p.output[j * self.samples :][: self.samples]
            for p in self.denoiser_calls.values()
            for j, b in enumerate(p.branches)
        }
        some = known.get(COND, next(iter(known.values())))
        output = torch.cat([known.get(name, some) for name in names])
        return DenoiserCall(module, run, (), {}, rows, self.denoiser_calls[0].template, output, names, extra=extra)

    def _wanted(self, row: int, branches: Sequence[str]) -> bool:
        return self.row_requests[row % self.samples].needs_branch(branches[row // self.samples])

    def _count(self, p: DenoiserCall, rows: Sequence[int]) -> None:
        p.ran = frozenset(rows)
        for r in rows:
            self.num_rows[r % self.samples] += 1

    def _write_given(self, p: DenoiserCall) -> None:
        for s, request in enumerate(self.row_requests):
            for j, branch in enumerate(p.branches):
                if request.compute and branch in request.known_outputs:
                    p.output[j * self.samples + s] = request.known_outputs[branch]

    def call_companion(self, model: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stand in for a model whose only reader is the denoiser, such as a ControlNet: the same rows enter."""
        rows = find_batch(model, args, kwargs).shape[0]
        if not self.samples:
            kept, named = copy_containers(args), copy_containers(kwargs)
            made = run(*args, **kwargs)
            self._shapes[id(model)] = empty_like(made)
            self.companion_calls.append(CompanionCall(model, run, kept, named, rows, made))
            return made
        if self.taken_over:
            self._compare_companion(model, args, kwargs)
        p = self.denoiser_calls.get(self.ordinal)  # the denoiser's call that is about to be made
        known = self._shapes.get(id(model))
        if p is None or p.rows != rows or known is None:  # guess mode: the conditional rows alone
            return run(*args, **kwargs) if any(w.compute for w in self.row_requests) or known is None else known
        wanted = [r for r in range(rows) if self._wanted(r, p.branches)]
        if not wanted:
            return known
        call = NetworkCall(model, run, args, kwargs, rows)
        self.slicer.look()
        for split, entering in self._choose_rows(p, wanted):
            rule = None if self.slicer.is_due(call, split) else self.slicer.rule(call, split)
            if rule is not None:
                self.is_companion_sliced = True
                return scatter_rows(self.slicer.run_rows(call, rule, entering), torch.tensor(entering), rows)
        return run(*args, **kwargs)

    def _compare_companion(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note whether a call under a takeover differs from that of the first iteration."""
        here, self.companion_ordinal = self.companion_ordinal, self.companion_ordinal + 1
        first = self.companion_calls[here] if here < len(self.companion_calls) else None
        if first is None or first.constants is None or first.model is not model:
            self.changed = self.changed or "another call of the model beside it"
        elif differing := first.constants.first_difference(args, kwargs):
            self.changed = self.changed or f"{differing} of {type(model).__name__} is another"


def find_batch(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The noisy batch among the arguments of a denoiser."""
    candidates = [*args[:1], *(kwargs[name] for name in BATCH_ARGUMENTS if name in kwargs)]
    for value in candidates:
        if isinstance(value, torch.Tensor):
            return value
    got = type(candidates[0]).__name__ if candidates else f"only {', '.join(kwargs)}"
    raise GuestError(
        f"Expected {type(module).__name__} to be called with its noisy batch as a tensor, first or named "
        f"{' or '.join(BATCH_ARGUMENTS)}; got {got}. This pipeline cannot be adapted."
    )
