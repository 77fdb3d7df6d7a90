"""What a network is given in every step alike: kept from the first step, and compared in the later ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .rows import copy_containers

BATCH_ARGUMENTS = ("sample", "hidden_states", "x", "latents")  # of the argument that is the noisy batch
TIME_ARGUMENTS = ("timestep", "timesteps", "t")
FIRST, SECOND = "argument 1", "argument 2"  # what the batch and its time are called where they are not named


def batch_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Name of the argument that is the noisy batch; "" where there is none."""
    if args and isinstance(args[0], torch.Tensor):
        return FIRST
    return next((name for name in BATCH_ARGUMENTS if isinstance(kwargs.get(name), torch.Tensor)), "")


def time_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Name of the argument that is its time; "" where there is none."""
    named = next((name for name in TIME_ARGUMENTS if name in kwargs), "")
    return named or (SECOND if len(args) > 1 else "")


def name_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument under a name."""
    return {**{f"argument {i + 1}": value for i, value in enumerate(args)}, **kwargs}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything inside containers that is none itself, under the way to it."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from leaves(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, tuple | list):
        for i, one in enumerate(value):
            yield from leaves(one, f"{name}[{i}]")
    else:
        yield name, value


def _version(value: Any) -> int:
    """How often a tensor was written to in place."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0


@dataclass(frozen=True)
class Constants:
    """The arguments of a call that must be the same in every step: all but the sample, its time and what follows them.

    Args:
        values: Name -> value.
        versions: Name -> how often the tensor had been written to.
        ignored: Ids of the objects, and names of the arguments, that may change.
    """

    values: dict[str, Any]
    versions: dict[str, int]
    ignored: frozenset[str]

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: Mapping[str, Any], changing: frozenset[str] = frozenset()) -> Constants:
        """Keep the arguments of a call, but for the batch, its time and these (names, or ways into containers)."""
        ignored = changing | {batch_argument(args, kwargs), time_argument(args, kwargs)}
        found = dict(leaves(copy_containers(name_arguments(args, kwargs))))
        kept = {name: value for name, value in found.items() if name not in ignored}
        return Constants(kept, {name: _version(value) for name, value in kept.items()}, ignored)

    def first_difference(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Name of an argument that another call is given otherwise; "" where all are the same."""
        theirs = {n: v for n, v in leaves(name_arguments(args, kwargs)) if n not in self.ignored}
        for name in dict.fromkeys((*self.values, *theirs)):
            if name not in theirs or name not in self.values or not self._is_same(name, theirs[name]):
                return name
        return ""

    def _is_same(self, name: str, theirs: Any) -> bool:
        mine = self.values[name]
        if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
            return mine is theirs or (type(mine) is type(theirs) and bool(mine == theirs))
        if _version(mine) != self.versions[name]:
            return False  # somebody has written to it since
        return mine is theirs or (
            mine.shape == theirs.shape and mine.dtype == theirs.dtype and torch.equal(mine, theirs)
        )
