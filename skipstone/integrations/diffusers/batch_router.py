"""Which rows of a batch enter the denoiser: all, some, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...engine.contracts import COND
from ...errors import GuestError
from .pipeline_specs import PipelineSpec
from .rows import (
    copy_containers,
    empty_like,
    main_output,
    replace_main_output,
    scatter_rows,
    slice_repeated,
    slice_rows,
)

BATCH_ARGUMENTS = ("sample", "hidden_states", "x", "latents")  # of the argument that is the noisy batch
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
    extra: bool = False  # whether only some steps make it, such as that of a skipped layer
    ran: frozenset[int] = frozenset()  # rows that entered in this iteration


@dataclass
class BatchRouter:
    """Decides which rows enter the denoiser, for the length of one trajectory.

    The first iteration passes through it and shows how the pipeline calls its network. From then on each
    sample's request decides whether its rows enter. The others get their last output, for which the scheduler's
    side of the guest substitutes what was forecast.
    """

    spec: PipelineSpec
    all_or_none: bool = False  # let all rows enter where one does
    samples: int = 0  # 0 in the first iteration: not known yet
    denoiser_calls: dict[int, DenoiserCall] = field(default_factory=dict)  # ordinal within the iteration -> call
    row_requests: Sequence[RowRequest] = ()
    ordinal: int = 0
    branches: int = 0  # rows of one sample in a bare step
    num_rows: list[int] = field(default_factory=list)  # rows that entered so far, for each sample
    extra: list[int] = field(default_factory=list)  # those of calls that only some steps make
    verified: int = 0  # rows spent on verification
    forced_reason: str = ""  # why more rows entered than were wanted, where they did
    num_forced_rows: int = 0  # how many those were
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
        self.num_rows, self.extra = [self.branches] * samples, [0] * samples
        names = iter(self._names(self.branches))
        for p in self.denoiser_calls.values():
            p.branches = tuple(next(names) for _ in range(p.rows // samples))

    def _names(self, count: int) -> tuple[str, ...]:
        if count == len(self.spec.branches):
            return self.spec.branches
        return (COND,) if count == 1 else tuple(f"branch {i + 1}" for i in range(count))

    def begin_iteration(self, requests: Sequence[RowRequest]) -> None:
        """Begin an iteration."""
        self.row_requests, self.ordinal = requests, 0
        for p in self.denoiser_calls.values():
            p.ran = frozenset()

    def drop_arguments(self) -> None:
        """Let go of the arguments of the first iteration: a ControlNet's residuals are large."""
        for p in self.denoiser_calls.values():
            p.args, p.kwargs = (), {}

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
        wanted = self._rows_to_compute(p)
        if len(wanted) > (requested := sum(self._wanted(r, p.branches) for r in range(rows))):
            self.forced_reason = "its rows may not be told apart (per_sample=False, or a cache)"
            self.num_forced_rows += len(wanted) - requested
        if len(wanted) == rows:
            made = run(*args, **kwargs)
            p.output = main_output(made)
        else:
            p.output = p.output.clone()  # the pipeline may write into what it was given
            self._write_given(p)
            if wanted:
                part = main_output(run(*self.select_rows(args, wanted, rows), **self.select_rows(kwargs, wanted, rows)))
                p.output[torch.tensor(wanted, device=part.device)] = part
            made = replace_main_output(p.template, p.output)
        self._count(p, wanted)
        return made

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
        return DenoiserCall(module, run, (), {}, rows, self.denoiser_calls[0].template, output, names, extra)

    def _rows_to_compute(self, p: DenoiserCall) -> list[int]:
        """Rows that enter: those that are wanted, or all where one is and they may not be told apart."""
        wanted = [r for r in range(p.rows) if self._wanted(r, p.branches)]
        return list(range(p.rows)) if self.all_or_none and wanted else wanted

    def _wanted(self, row: int, branches: Sequence[str]) -> bool:
        return self.row_requests[row % self.samples].needs_branch(branches[row // self.samples])

    def _count(self, p: DenoiserCall, rows: Sequence[int]) -> None:
        p.ran = frozenset(rows)
        for r in rows:
            self.num_rows[r % self.samples] += 1
            self.extra[r % self.samples] += p.extra

    def _write_given(self, p: DenoiserCall) -> None:
        for s, request in enumerate(self.row_requests):
            for j, branch in enumerate(p.branches):
                if request.compute and branch in request.known_outputs:
                    p.output[j * self.samples + s] = request.known_outputs[branch]

    def select_rows(self, arguments: Any, wanted: Sequence[int], rows: int) -> Any:
        """The arguments of a call for some of its rows."""
        if not isinstance(arguments, dict):
            return slice_rows(arguments, torch.tensor(wanted), rows)
        index = torch.tensor(wanted)
        some = {}
        for name, value in arguments.items():
            if name in self.spec.repeated:
                some[name] = slice_repeated(value, wanted, rows)
            else:
                some[name] = value if name in self.spec.shared else slice_rows(value, index, rows)
        return some

    def call_companion(self, model: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stand in for a model whose only reader is the denoiser, such as a ControlNet: the same rows enter."""
        if not self.samples:
            made = run(*args, **kwargs)
            self._shapes[id(model)] = empty_like(made)
            return made
        rows = find_batch(model, args, kwargs).shape[0]
        p = self.denoiser_calls.get(self.ordinal)  # the denoiser's call that is about to be made
        known = self._shapes.get(id(model))
        if p is None or p.rows != rows or known is None:  # guess mode: the conditional rows alone
            return run(*args, **kwargs) if any(w.compute for w in self.row_requests) or known is None else known
        wanted = self._rows_to_compute(p)
        if len(wanted) == rows:
            return run(*args, **kwargs)
        if not wanted:
            return known
        part = run(*self.select_rows(args, wanted, rows), **self.select_rows(kwargs, wanted, rows))
        return scatter_rows(part, torch.tensor(wanted), rows)

    def verify(self, tolerance: float = 1e-2) -> None:
        """Compute the last sample of the first iteration by itself, or its last branch, and compare.

        Raises:
            GuestError: they differ; names the arguments that were not sliced.
        """
        for p in self.denoiser_calls.values():
            some = [r for r in range(p.rows) if r % self.samples == self.samples - 1]
            if self.samples == 1:
                some = some[-1:] if len(some) == len(self.spec.branches) else []
            if not some or len(some) == p.rows:
                continue
            alone = main_output(
                p.run(*self.select_rows(p.args, some, p.rows), **self.select_rows(p.kwargs, some, p.rows))
            )
            together = p.output[some]
            gap = float((alone - together).detach().float().norm() / together.detach().float().norm().clamp_min(1e-12))
            self.verified += len(some)
            for r in some:
                self.num_rows[r % self.samples] += 1
            if not gap <= tolerance:
                raise GuestError(
                    f"Rows of {type(p.module).__name__} are not independent: computed by themselves they differ by "
                    f"{gap:.2g} (relative) from the same rows of the batch. Arguments that were not sliced: "
                    f"{', '.join(list_unsliced(p.args, p.kwargs, p.rows, self.spec)) or 'none'}. Declare them in a "
                    f"PipelineSpec(shared=..., repeated=...), or adapt with per_sample=False."
                )


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


def list_unsliced(args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int, spec: PipelineSpec) -> list[str]:
    """Names of tensor arguments that a sub-batch would be given whole."""
    named = {**{f"argument {i + 1}": a for i, a in enumerate(args)}, **kwargs}
    return [
        f"{name} {tuple(value.shape)}"
        for name, value in named.items()
        if isinstance(value, torch.Tensor)
        and value.ndim > 0
        and name not in spec.repeated
        and (value.shape[0] != rows or name in spec.shared)
    ]
