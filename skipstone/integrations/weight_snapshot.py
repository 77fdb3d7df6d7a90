"""What the weights of networks are now, taken in a few milliseconds, so that a change between two calls is noticed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .identity import stored_tensor
from .plain_tensors import has_values, plain_tensors

SAMPLED = 64  # values of each tensor, evenly spaced


class Place(NamedTuple):
    """Where the values of a tensor are in a snapshot."""

    shape: torch.Size
    group: tuple[torch.dtype, torch.device]
    start: int
    end: int


@dataclass(frozen=True)
class WeightSnapshot:
    """Every parameter and buffer of some networks, by a few of its values.

    Tensors themselves are not kept alive. Of those that accelerate off-loads, what it keeps is looked at; of quantised
    ones, the tensors that they are made of.

    Args:
        places: Of each tensor by its name.
        values: Of the tensors of one dtype and device, one after the other, as bytes.
        objects: Each tensor, and how often it was written to in place. Writing to `.data` is not counted; that, the
            values show.
    """

    places: Mapping[str, Place]
    values: Mapping[tuple[torch.dtype, torch.device], bytes]
    objects: Mapping[str, tuple[weakref.ref[torch.Tensor], int]]

    @staticmethod
    @torch.no_grad()
    def of(networks: Mapping[str, Any]) -> WeightSnapshot:
        """Look at the weights of networks, by their names."""
        places: dict[str, Place] = {}
        objects: dict[str, tuple[weakref.ref[torch.Tensor], int]] = {}
        rows: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        ends: dict[tuple[torch.dtype, torch.device], int] = {}
        for name, tensor in _tensors(networks):
            group = (tensor.dtype, tensor.device)
            some = _some_values(tensor)
            start = ends.get(group, 0)
            ends[group] = start + len(some)
            places[name] = Place(tensor.shape, group, start, ends[group])
            objects[name] = weakref.ref(tensor), 0 if tensor.is_inference() else tensor._version
            rows.setdefault(group, []).append(some)
        return WeightSnapshot(places, {group: _bytes(torch.cat(some)) for group, some in rows.items()}, objects)

    def changed(self, before: WeightSnapshot) -> list[str]:
        """Names of tensors that are new, gone, of another dtype or shape, or have other values than before."""
        if self.values == before.values and self.places == before.places:
            return []
        names = dict.fromkeys((*before.places, *self.places))
        return [name for name in names if self._facts(name) != before._facts(name)]

    def written(self, before: WeightSnapshot) -> list[str]:
        """Names of tensors that are the same objects as before and were written to in place since then."""
        return [
            name
            for name, (tensor, version) in self.objects.items()
            if name in before.objects and version != before.objects[name][1] and tensor() is before.objects[name][0]()
        ]

    def _facts(self, name: str) -> tuple[Any, ...] | None:
        """What is compared of a tensor; where it is does not matter."""
        if (place := self.places.get(name)) is None:
            return None
        size = place.group[0].itemsize
        return place.group[0], place.shape, self.values[place.group][place.start * size : place.end * size]


def _tensors(networks: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors; several times as fast as `named_parameters`, for this is called before every call."""
    left = list(networks.items())
    seen = set()
    while left:
        name, module = left.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    stored = stored_tensor(module, key, tensor) if tensor.is_meta else tensor
                    yield from plain_tensors(f"{name}.{key}", stored)
        left += [(f"{name}.{key}", inside) for key, inside in module._modules.items()]


def _some_values(tensor: torch.Tensor) -> torch.Tensor:
    """Evenly spaced values of a tensor, in the order of its memory; none where they cannot be looked at."""
    size = tensor.numel()
    if not size or not has_values(tensor):
        return torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    count = min(SAMPLED, size)
    with torch._C.DisableTorchFunctionSubclass():  # what is taken out of GGUF's parameters is an ordinary tensor
        if tensor.is_contiguous():
            return tensor.as_strided((count,), (size // count,), tensor.storage_offset())
        return tensor.flatten()[:: size // count][:count]


def _bytes(row: torch.Tensor) -> bytes:
    return b"" if row.is_meta else row.contiguous().view(torch.uint8).cpu().numpy().tobytes()
