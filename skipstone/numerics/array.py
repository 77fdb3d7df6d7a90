"""The few array operations the library relies on. No array library is imported here.

`torch.Tensor`, `mlx.core.array` and `numpy.ndarray` all serve; a sample's own type decides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar


class Array(Protocol):
    """Operations that a tensor must support."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __abs__(self) -> Any: ...
    def mean(self) -> Any: ...


A = TypeVar("A", bound=Array)


def array_namespace(array: Any) -> Any:
    """The module that an array comes from: torch, mlx.core or numpy (already imported by its owner)."""
    root = type(array).__module__.partition(".")[0]
    return sys.modules["mlx.core" if root == "mlx" else root]


def upcast(array: Any) -> Any:
    """The array in at least float32, so that sums of half-precision values do not drown."""
    if not _is_half_precision(array.dtype):
        return array
    float32 = array_namespace(array).float32
    return array.to(float32) if hasattr(array, "to") else array.astype(float32)


@lru_cache(maxsize=64)
def _is_half_precision(dtype: Any) -> bool:
    """Whether a dtype has 16 bits; asked at every step, and numpy takes long to say a dtype's name."""
    return "16" in str(dtype)


def cast_like(array: Any, like: Any) -> Any:
    """The array in the dtype of `like`."""
    if array.dtype == like.dtype:
        return array
    return array.to(like.dtype) if hasattr(array, "to") else array.astype(like.dtype)


def weighted_sum(weights: Sequence[float], arrays: Sequence[A]) -> A:
    """sum_j weights[j] * arrays[j]: the one tensor operation that solvers and forecasts are made of.

    Zero weights are left out, so that a weight of 0 hides an infinity instead of making a NaN.
    """
    terms = [(w, a) for w, a in zip(weights, arrays, strict=True) if w != 0.0]
    if not terms:
        return arrays[0] * 0.0  # type: ignore[no-any-return]
    total = terms[0][1] if terms[0][0] == 1.0 else terms[0][1] * terms[0][0]
    for weight, array in terms[1:]:
        total = total + array * weight
    return total


def mean_abs(array: Array) -> Any:
    """mean(|a|) over all elements, float32 inside; a 0-d array that has not been waited for."""
    return abs(upcast(array)).mean()


def rms(array: Array) -> Any:
    """sqrt(mean(a^2)) over all elements, float32 inside; a 0-d array that has not been waited for."""
    a = upcast(array)
    return (a * a).mean() ** 0.5


def to_floats(values: Sequence[Any]) -> list[float]:
    """Many 0-d arrays as Python floats, in one transfer from the device."""
    if not values:
        return []
    xp = array_namespace(values[0])
    if xp.__name__ == "numpy":
        return [float(v) for v in values]
    return [float(v) for v in xp.stack(list(values)).tolist()]
