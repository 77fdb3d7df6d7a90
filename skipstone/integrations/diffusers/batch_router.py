"""Who of a batch enters the denoiser: all rows, some, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...errors import GuestError
from .pipeline_specs import PipelineSpec
from .rows import copied, hollow, main_output, repeated, sliced, spread, with_main

NAMES = ("sample", "hidden_states", "x", "latents")  # of the argument that is the noisy batch
RESTLESS = 8  # denoiser calls, in those of the first step, after which a step of the scheduler must have come


@dataclass(frozen=True)
class Wish:
    """What one sample wants of the next iteration: the network at all, and which branches are given instead."""

    compute: bool = True
    given: Mapping[str, Any] = field(default_factory=dict)

    def wants(self, branch: str) -> bool:
        """Whether the row of this branch is to be computed."""
        return self.compute and branch not in self.given


@dataclass
class Pass:
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
class Gate:
    """The door of the denoiser, for the length of one trajectory.

    The first iteration passes through it and shows how the pipeline calls its network. From then on each
    sample's wish decides whether its rows enter. The others find their last output, for which the scheduler's
    side of the guest substitutes what was forecast.
    """

    spec: PipelineSpec
    whole: bool = False  # let all rows enter where one does
    samples: int = 0  # 0 in the first iteration: not known yet
    passes: dict[int, Pass] = field(default_factory=dict)  # ordinal within the iteration -> call
    wishes: Sequence[Wish] = ()
    ordinal: int = 0
    branches: int = 0  # rows of one sample in a bare step
    spent: list[int] = field(default_factory=list)  # rows that entered so far, for each sample
    extra: list[int] = field(default_factory=list)  # those of calls that only some steps make
    verified: int = 0  # rows spent on verification
    forced: str = ""  # why more rows entered than were wanted, where they did
    unwanted: int = 0  # how many those were
    _shapes: dict[int, Any] = field(default_factory=dict)  # what the models beside the denoiser return, hollow

    def open(self, samples: int) -> None:
        """End the first iteration, whose rows these samples have shared."""
        entered = [p.rows for p in self.passes.values()]
        if not entered or any(rows % samples for rows in entered):
            raise GuestError(
                f"The denoiser was given batches of {entered or 'no'} rows for {samples} samples, and the guest cannot "
                f"tell whose they are. Declare the layout of this pipeline: PipelineSpec(frames=..., doubled=...)."
            )
        self.samples, self.branches = samples, sum(entered) // samples
        self.spent, self.extra = [self.branches] * samples, [0] * samples
        names = iter(self._names(self.branches))
        for p in self.passes.values():
            p.branches = tuple(next(names) for _ in range(p.rows // samples))

    def _names(self, count: int) -> tuple[str, ...]:
        if count == len(self.spec.branches):
            return self.spec.branches
        return ("cond",) if count == 1 else tuple(f"branch {i + 1}" for i in range(count))

    def next(self, wishes: Sequence[Wish]) -> None:
        """Begin an iteration."""
        self.wishes, self.ordinal = wishes, 0
        for p in self.passes.values():
            p.ran = frozenset()

    def forget(self) -> None:
        """Let go of the arguments of the first iteration: a ControlNet's residuals are large."""
        for p in self.passes.values():
            p.args, p.kwargs = (), {}

    def fresh(self, sample: int) -> dict[str, torch.Tensor]:
        """What the network said in this iteration about a sample, by branch."""
        said = {}
        for p in self.passes.values():
            for j, branch in enumerate(p.branches):
                if j * self.samples + sample in p.ran:
                    said[branch] = p.output[j * self.samples + sample]
        return said

    def denoise(self, module: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stand in for a call of the denoiser."""
        here, self.ordinal = self.ordinal, self.ordinal + 1
        if here >= RESTLESS * max(1, len(self.passes)) or here >= 64:
            raise GuestError(
                f"{type(module).__name__} was called {here} times without a step of the scheduler: this pipeline moves "
                f"its sample by other means than scheduler.step, and cannot be adapted."
            )
        rows = batch_of(module, args, kwargs).shape[0]
        if not self.samples:
            return self._first(here, rows, module, run, args, kwargs)
        p = self.passes.get(here)
        if p is None or p.rows != rows:
            p = self.passes[here] = self._unseen(p, here, rows, module, run)
        wanted = self._entering(p)
        if len(wanted) > (wished := sum(self._wanted(r, p.branches) for r in range(rows))):
            self.forced = "its rows may not be told apart (per_sample=False, or a cache)"
            self.unwanted += len(wanted) - wished
        if len(wanted) == rows:
            made = run(*args, **kwargs)
            p.output = main_output(made)
        else:
            p.output = p.output.clone()  # the pipeline may write into what it was given
            self._write_given(p)
            if wanted:
                part = main_output(run(*self.some(args, wanted, rows), **self.some(kwargs, wanted, rows)))
                p.output[torch.tensor(wanted, device=part.device)] = part
            made = with_main(p.template, p.output)
        self._count(p, wanted)
        return made

    def _first(
        self, here: int, rows: int, module: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call of the first iteration."""
        kept, named = copied(args), copied(kwargs)  # a network may empty the lists that it is given
        made = run(*args, **kwargs)
        output = main_output(made)
        template = with_main(made, output[:0])
        self.passes[here] = Pass(module, run, kept, named, rows, template, output, ran=frozenset(range(rows)))
        return made

    def _unseen(self, before: Pass | None, here: int, rows: int, module: Any, run: Callable[..., Any]) -> Pass:
        """A call that was not in the first iteration, or had other rows there; rows that stay out get what is known.

        Guidance that is switched off in mid-run changes the rows; a skipped layer adds a call to some steps.
        """
        count = rows // self.samples
        extra = before is None or before.extra
        names = tuple(f"extra {here}.{j}" for j in range(count)) if extra else self._names(count)
        known = {
            b: p.output[j * self.samples :][: self.samples]
            for p in self.passes.values()
            for j, b in enumerate(p.branches)
        }
        some = known.get("cond", next(iter(known.values())))
        output = torch.cat([known.get(name, some) for name in names])
        return Pass(module, run, (), {}, rows, self.passes[0].template, output, names, extra)

    def _entering(self, p: Pass) -> list[int]:
        """Rows that enter: those that are wanted, or all where one is and they may not be told apart."""
        wanted = [r for r in range(p.rows) if self._wanted(r, p.branches)]
        return list(range(p.rows)) if self.whole and wanted else wanted

    def _wanted(self, row: int, branches: Sequence[str]) -> bool:
        return self.wishes[row % self.samples].wants(branches[row // self.samples])

    def _count(self, p: Pass, rows: Sequence[int]) -> None:
        p.ran = frozenset(rows)
        for r in rows:
            self.spent[r % self.samples] += 1
            self.extra[r % self.samples] += p.extra

    def _write_given(self, p: Pass) -> None:
        for s, wish in enumerate(self.wishes):
            for j, branch in enumerate(p.branches):
                if wish.compute and branch in wish.given:
                    p.output[j * self.samples + s] = wish.given[branch]

    def some(self, arguments: Any, wanted: Sequence[int], rows: int) -> Any:
        """The arguments of a call for some of its rows."""
        if not isinstance(arguments, dict):
            return sliced(arguments, torch.tensor(wanted), rows)
        index = torch.tensor(wanted)
        some = {}
        for name, value in arguments.items():
            if name in self.spec.repeated:
                some[name] = repeated(value, wanted, rows)
            else:
                some[name] = value if name in self.spec.shared else sliced(value, index, rows)
        return some

    def accompany(self, model: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stand in for a model whose only reader is the denoiser, such as a ControlNet: the same rows enter."""
        if not self.samples:
            made = run(*args, **kwargs)
            self._shapes[id(model)] = hollow(made)
            return made
        rows = batch_of(model, args, kwargs).shape[0]
        p = self.passes.get(self.ordinal)  # the denoiser's call that is about to be made
        known = self._shapes.get(id(model))
        if p is None or p.rows != rows or known is None:  # guess mode: the conditional rows alone
            return run(*args, **kwargs) if any(w.compute for w in self.wishes) or known is None else known
        wanted = self._entering(p)
        if len(wanted) == rows:
            return run(*args, **kwargs)
        if not wanted:
            return known
        part = run(*self.some(args, wanted, rows), **self.some(kwargs, wanted, rows))
        return spread(part, torch.tensor(wanted), rows)

    def verify(self, tolerance: float = 1e-2) -> None:
        """Compute the last sample of the first iteration by itself, or its last branch, and compare.

        Raises:
            GuestError: they differ; names the arguments that were not sliced.
        """
        for p in self.passes.values():
            some = [r for r in range(p.rows) if r % self.samples == self.samples - 1]
            if self.samples == 1:
                some = some[-1:] if len(some) == len(self.spec.branches) else []
            if not some or len(some) == p.rows:
                continue
            alone = main_output(p.run(*self.some(p.args, some, p.rows), **self.some(p.kwargs, some, p.rows)))
            together = p.output[some]
            gap = float((alone - together).detach().float().norm() / together.detach().float().norm().clamp_min(1e-12))
            self.verified += len(some)
            for r in some:
                self.spent[r % self.samples] += 1
            if not gap <= tolerance:
                raise GuestError(
                    f"Rows of {type(p.module).__name__} are not independent: computed by themselves they differ by "
                    f"{gap:.2g} (relative) from the same rows of the batch. Arguments that were not sliced: "
                    f"{', '.join(unsliced(p.args, p.kwargs, p.rows, self.spec)) or 'none'}. Declare them in a "
                    f"PipelineSpec(shared=..., repeated=...), or adapt with per_sample=False."
                )


def batch_of(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The noisy batch among the arguments of a denoiser."""
    candidates = [*args[:1], *(kwargs[name] for name in NAMES if name in kwargs)]
    for value in candidates:
        if isinstance(value, torch.Tensor):
            return value
    got = type(candidates[0]).__name__ if candidates else f"only {', '.join(kwargs)}"
    raise GuestError(
        f"Expected {type(module).__name__} to be called with its noisy batch as a tensor, first or named "
        f"{' or '.join(NAMES)}; got {got}. This pipeline cannot be adapted."
    )


def unsliced(args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int, spec: PipelineSpec) -> list[str]:
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
