"""Models that are called before the denoiser and read by it alone, such as a ControlNet, within a takeover."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .constants import leaves
from .refusal import TakeoverRefused
from .row_slicing import NetworkCall, RowSlicer
from .rows import scatter_rows

if TYPE_CHECKING:
    from .batch_router import CompanionCall

ROWS = "skipstone_rows"  # an argument that tells a combined call which rows it is given


@dataclass(frozen=True)
class Link:
    """Where an output of a companion enters the denoiser.

    Args:
        companion: Its index among the companions.
        output: The index of the tensor among its outputs.
        where: The way to it in the denoiser's arguments.
        marker: A tensor that stands there in between.
    """

    companion: int
    output: int
    where: str
    marker: torch.Tensor


@dataclass(frozen=True)
class CompanionLinks:
    """All outputs of the companions that enter one call of the denoiser.

    Args:
        calls: The companions' calls of the first step.
        links: Where their outputs enter.
    """

    calls: Sequence[CompanionCall]
    links: Sequence[Link]

    @staticmethod
    def find(calls: Sequence[CompanionCall], kwargs: Mapping[str, Any], rows: int) -> CompanionLinks:
        """Find every output of these calls among the named arguments of a denoiser's call of this many rows.

        Raises:
            TakeoverRefused: one is not there, or the denoiser was given something made of it.
        """
        found = []
        given = {n: v for n, v in leaves(kwargs) if isinstance(v, torch.Tensor) and v.ndim > 0 and v.shape[0] == rows}
        for c, call in enumerate(calls):
            for o, output in enumerate(_outputs(call.made)):
                ways = [name for name, value in given.items() if _enters(value, output)]
                if not ways:
                    raise TakeoverRefused(
                        f"an output of {type(call.model).__name__} does not enter the denoiser as it is, so Skipstone "
                        f"cannot make it for other times"
                    )
                found += [Link(c, o, way, torch.zeros(())) for way in ways]
        return CompanionLinks(calls, found)

    @property
    def names(self) -> frozenset[str]:
        """The ways to what they write in the denoiser's arguments."""
        return frozenset(link.where for link in self.links)

    def mark(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The named arguments with markers in place of the outputs, which are let go."""
        markers = {link.where: link.marker for link in self.links}
        return {name: _replace(value, name, markers) for name, value in kwargs.items()}

    def combine(self, call: NetworkCall, inputs: Sequence[NetworkCall], slicer: RowSlicer) -> NetworkCall:
        """A call of the denoiser that calls the companions with the same rows before it.

        Args:
            call: Of the denoiser, with markers.
            inputs: Of the companions, for all of their rows.
            slicer: Which takes rows out of them.
        """
        if not self.links:
            return call
        run = functools.partial(self._run, call.run, call.rows, inputs, slicer)
        return NetworkCall(call.module, run, call.args, {**call.kwargs, ROWS: torch.arange(call.rows)}, call.rows)

    def _run(
        self,
        run: Callable[..., Any],
        rows: int,
        inputs: Sequence[NetworkCall],
        slicer: RowSlicer,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        entering: list[int] = kwargs.pop(ROWS).tolist()
        made = [_some_rows(one, [r - (rows - one.rows) for r in entering], slicer) for one in inputs]
        values = {id(link.marker): made[link.companion][link.output] for link in self.links}
        return run(*args, **{name: _substitute(value, values) for name, value in kwargs.items()})


def _outputs(made: Any) -> list[torch.Tensor]:
    """Every tensor in what a companion returns."""
    return [value for _, value in leaves(made) if isinstance(value, torch.Tensor)]


def _enters(given: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether an argument is this output, or this output behind rows of zeros (guess mode)."""
    before = given.shape[0] - output.shape[0]
    if before <= 0 or given.shape[1:] != output.shape[1:]:
        return given is output
    return not given[:before].any() and torch.equal(given[before:], output)


def _some_rows(call: NetworkCall, wanted: Sequence[int], slicer: RowSlicer) -> list[torch.Tensor]:
    """A companion's outputs for these of its rows, of which negative ones are zero."""
    own = [i for i, r in enumerate(wanted) if r >= 0]
    made = slicer.run_rows(call, slicer.spec.shared, [wanted[i] for i in own] or [0])
    if not own:
        return [value.new_zeros((len(wanted), *value.shape[1:])) for value in _outputs(made)]
    return _outputs(scatter_rows(made, torch.tensor(own), len(wanted)) if len(own) < len(wanted) else made)


def _replace(value: Any, name: str, markers: Mapping[str, torch.Tensor]) -> Any:
    """A container with other things at these ways."""
    if name in markers:
        return markers[name]
    if isinstance(value, dict):
        return {key: _replace(one, f"{name}.{key}", markers) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_replace(one, f"{name}[{i}]", markers) for i, one in enumerate(value))
    return value


def _substitute(value: Any, values: Mapping[int, torch.Tensor]) -> Any:
    """A container with tensors in place of their markers; always a new one, for networks may empty it."""
    if isinstance(value, dict):
        return {key: _substitute(one, values) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_substitute(one, values) for one in value)
    return values.get(id(value), value)
