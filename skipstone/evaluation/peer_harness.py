"""Install a peer on a pipeline, remove it completely, and count the calls that it saves."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

FULL, SAVED = "C", "c"


@dataclass(eq=False)
class SavingsCounter:
    """Which calls of the denoiser a peer saved something in.

    Args:
        runs: A text for each run of the pipeline, with a letter for each call: C a full one, c one of which a part
            was not computed.
    """

    runs: list[str] = field(default_factory=list)

    @property
    def last(self) -> str:
        """The last run: one letter for each call; empty before the first run."""
        return self.runs[-1] if self.runs else ""

    @property
    def calls(self) -> int:
        """Calls of the denoiser in all runs."""
        return sum(map(len, self.runs))

    @property
    def saved(self) -> int:
        """Number of those calls in which a part of the network was not computed."""
        return sum(run.count(SAVED) for run in self.runs)

    @contextmanager
    def run(self) -> Iterator[None]:
        """Context to open around each run."""
        self.runs.append("")
        yield

    def add(self, saved: bool) -> None:
        """Count one more call."""
        if not self.runs:
            self.runs.append("")
        self.runs[-1] += SAVED if saved else FULL


@contextmanager
def restore_modules(pipe: Any) -> Iterator[None]:
    """Whatever is set on the denoisers' modules inside the block is gone after it, also where a peer forgets some.

    Modules keep their hooks, parameters and children in dictionaries of their own, which stay what they are.
    """
    parts = [part for name in ("unet", "transformer") if (part := getattr(pipe, name, None)) is not None]
    before = [(module, dict(module.__dict__)) for part in parts for module in part.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)


@contextmanager
def around_each_run(
    pipe: Any, instead: Callable[[Any, Callable[..., Any], Mapping[str, Any]], Any] | None = None
) -> Iterator[list[Callable[[Mapping[str, Any]], AbstractContextManager[Any]]]]:
    """A list of what to open around each call of the pipeline inside the block, given its arguments.

    `instead` runs in place of the call, with the pipeline, the call itself, and its arguments by name.

    The pipeline gets a class of its own for as long, so that others of its class are left alone, also by peers
    that change the class.
    """
    cls = type(pipe)
    around: list[Callable[[Mapping[str, Any]], AbstractContextManager[Any]]] = []
    signature = inspect.signature(cls.__call__)

    @functools.wraps(cls.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        call_arguments = bind_arguments(signature, self, *args, **kwargs)
        with ExitStack() as stack:
            for opened in around:
                stack.enter_context(opened(call_arguments))
            return (
                cls.__call__(self, *args, **kwargs) if instead is None else instead(self, cls.__call__, call_arguments)
            )

    pipe.__class__ = type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__, "bare": cls})
    try:
        yield around
    finally:
        pipe.__class__ = cls


def bind_arguments(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name, with its defaults, as another call would take them."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    call_arguments = dict(bound.arguments)
    call_arguments.pop("self", None)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            call_arguments |= call_arguments.pop(name, {})
    return call_arguments


@contextmanager
def watch_savings(denoiser: Any, probes: list[Any]) -> Iterator[SavingsCounter]:
    """Counts the denoiser's calls, and those in which a probe did not run or was given fewer rows than another time.

    A hook on the denoiser and one on each probe: two or three small Python calls for each call of the network.
    """
    savings = SavingsCounter()
    rows: dict[int, int] = {}  # of each probe, in this call of the denoiser
    most: dict[int, int] = {}  # of each probe, in a full call of this run

    def ran(index: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        rows[index] = rows.get(index, 0) + int(batch_rows(args, kwargs))

    def started(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        rows.clear()
        if not savings.last:
            most.clear()

    def ended(module: Any, args: Any, output: Any) -> None:
        savings.add(any(rows.get(i, 0) < most.get(i, 0) for i in range(len(probes))))
        for i, count in rows.items():
            most[i] = max(most.get(i, 0), count)

    def counting(index: int) -> Callable[..., None]:
        return lambda module, args, kwargs: ran(index, args, kwargs)

    hooks = [denoiser.register_forward_pre_hook(started, with_kwargs=True), denoiser.register_forward_hook(ended)]
    hooks += [probe.register_forward_pre_hook(counting(i), with_kwargs=True) for i, probe in enumerate(probes)]
    try:
        yield savings
    finally:
        for hook in hooks:
            hook.remove()


def batch_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Length of the first tensor with an axis among the arguments of a module."""
    return next((len(v) for v in (*args, *kwargs.values()) if getattr(v, "ndim", 0)), 0)


def first_leaf(module: Any) -> Any:
    """The first module inside that has parameters and no children."""
    return next(
        m for m in module.modules() if not any(True for _ in m.children()) and any(True for _ in m.parameters())
    )
