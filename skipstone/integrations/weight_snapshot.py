"""What the weights of networks are now, taken in a few milliseconds, so that a change between two calls is noticed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

SAMPLED = 64  # values of each tensor, evenly spaced


class TensorMark(NamedTuple):
    """How a tensor is recognised: the object, how often it was written to in place, and where its values are."""

    tensor: weakref.ref[torch.Tensor]
    version: int  # counts in-place operations of autograd; those on `.data` it misses, for which there are the values
    shape: tuple[int, ...]
    group: tuple[torch.dtype, torch.device]
    start: int  # of its values within its group
    count: int


@dataclass(frozen=True)
class WeightSnapshot:
    """Every parameter and buffer of some networks, by a few of its values.

    Tensors themselves are not kept alive. Weights that are off-loaded to the `meta` device have no values to look at.

    Args:
        marks: Of each tensor, by its name.
        values: Of the tensors of one dtype and device, one after the other, as bytes.
    """

    marks: Mapping[str, TensorMark]
    values: Mapping[tuple[torch.dtype, torch.device], bytes]

    @staticmethod
    @torch.no_grad()
    def of(networks: Mapping[str, Any]) -> WeightSnapshot:
        """Look at the weights of networks, by their names."""
        marks: dict[str, TensorMark] = {}
        rows: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        ends: dict[tuple[torch.dtype, torch.device], int] = {}
        for name, tensor in _tensors(networks):
            group = (tensor.dtype, tensor.device)
            some = _some_values(tensor)
            start = ends.get(group, 0)
            version = 0 if tensor.is_inference() else tensor._version
            marks[name] = TensorMark(weakref.ref(tensor), version, tuple(tensor.shape), group, start, len(some))
            ends[group] = start + len(some)
            rows.setdefault(group, []).append(some)
        return WeightSnapshot(marks, {group: _bytes(torch.cat(some)) for group, some in rows.items()})

    def changed(self, before: WeightSnapshot) -> list[str]:
        """Names of tensors that are new, gone, of another dtype or shape, or have other values than before."""
        names = dict.fromkeys((*before.marks, *self.marks))
        return [name for name in names if self._facts(name) != before._facts(name)]

    def written(self, before: WeightSnapshot) -> list[str]:
        """Names of tensors that are the same objects as before and were written to in place since then."""
        return [
            name
            for name, mark in self.marks.items()
            if name in before.marks
            and mark.tensor() is before.marks[name].tensor()
            and mark.version != before.marks[name].version
        ]

    def _facts(self, name: str) -> tuple[Any, ...] | None:
        """What is compared of a tensor; where it is does not matter."""
        if (mark := self.marks.get(name)) is None:
            return None
        size = mark.group[0].itemsize
        some = self.values[mark.group][mark.start * size : (mark.start + mark.count) * size]
        return mark.group[0], mark.shape, mark.count, some


def _tensors(networks: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors; faster than `named_parameters`, which this is called too often for."""
    for name, network in networks.items():
        for inside, module in network.named_modules():
            for tensors in (module._parameters, module._buffers):
                for key, tensor in tensors.items():
                    if tensor is not None:
                        yield f"{name}.{inside}.{key}" if inside else f"{name}.{key}", tensor


def _some_values(tensor: torch.Tensor) -> torch.Tensor:
    """Evenly spaced values of a tensor, in the order of its memory; none where they cannot be looked at."""
    size = tensor.numel()
    own_dispatch = type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__  # of a quantized tensor, say
    if tensor.is_meta or own_dispatch or not size:
        return torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    count = min(SAMPLED, size)
    if tensor.is_contiguous():
        return tensor.as_strided((count,), (size // count,), tensor.storage_offset())
    return tensor.flatten()[:: size // count][:count]


def _bytes(row: torch.Tensor) -> bytes:
    return b"" if row.is_meta else row.contiguous().view(torch.uint8).cpu().numpy().tobytes()
