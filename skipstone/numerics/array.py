"""The few array operations the library relies on. No array library is imported here.

`torch.Tensor`, `mlx.core.array` and `numpy.ndarray` all serve; a sample's own type decides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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


ROWS_AT_ONCE = 32_768  # numbers that torch sums in one thread, whatever their shape

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


def rms_each(arrays: Sequence[Any], like: Any) -> list[Any]:
    """`rms` of each array, as scalars or 0-d arrays; those of views on the memory of tensors (`host_view`) in one go.

    Args:
        arrays: Of one shape.
        like: The array whose `host_view` they were made of. The result has the bits that its own library gives.
    """
    if not arrays or not _is_tensor(like) or not all(map(_is_view, arrays)):
        return [rms(from_view(array, like)) for array in arrays]
    import numpy as np

    torch = sys.modules["torch"]
    first = arrays[0]
    alike = all(a.size == first.size and a.dtype == first.dtype and a.flags.c_contiguous for a in arrays)
    if not alike or first.size * len(arrays) > ROWS_AT_ONCE:  # what is large is summed by several threads
        return [rms(torch.from_numpy(a)).numpy()[()] for a in arrays]
    squares = np.empty((len(arrays), first.size), first.dtype)
    for row, a in zip(squares, arrays, strict=True):
        flat = a.reshape(-1)
        np.multiply(flat, flat, out=row)
    return list((torch.from_numpy(squares).mean(1) ** 0.5).numpy())


def host_view(array: Any) -> Any:
    """A numpy view of a CPU tensor's memory, on which small operations cost a third; other arrays as they are.

    Elementwise arithmetic has the same bits there, but for half precision, which stays as it is. Views are read, never
    written.
    """
    if not _is_tensor(array) or not array.is_cpu or array.requires_grad or array.ndim == 0:
        return array
    return array if _is_half_precision(array.dtype) else array.numpy()


def from_view(array: Any, like: Any) -> Any:
    """What was made of views, in the library of `like`."""
    return sys.modules["torch"].from_numpy(array) if _is_tensor(like) and _is_view(array) else array


def quiet_arithmetic(like: Any) -> AbstractContextManager[Any]:
    """Views of the memory of tensors do not warn of NaN and infinity, as tensors do not."""
    if not _is_tensor(like):
        return nullcontext()
    import numpy as np

    return np.errstate(all="ignore")


def _is_tensor(array: Any) -> bool:
    return type(array).__module__ == "torch"


def _is_view(array: Any) -> bool:
    return type(array).__module__ == "numpy"


def to_floats(values: Sequence[Any]) -> list[float]:
    """Many 0-d arrays as Python floats, in one transfer from the device."""
    on_device = [v for v in values if not _is_view(v)]
    if not on_device:
        return [float(v) for v in values]
    found = iter(array_namespace(on_device[0]).stack(on_device).tolist())
    return [float(v) if _is_view(v) else float(next(found)) for v in values]
