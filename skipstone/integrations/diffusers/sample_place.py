"""Where a sample lies in the batch that a network is given: alone, or before something that stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .refusal import TakeoverRefused

RELATIVE, ABSOLUTE = 1e-3, 1e-4  # how far a sample that the pipeline has scaled may be from ours


@dataclass(frozen=True)
class SamplePlace:
    """The part of a batch that is the samples; what lies behind it (a mask, a picture) is the same in every step.

    Args:
        axis: Along which the batch is longer than the samples, or 0 where it is not.
        size: Of the samples along that axis.
    """

    axis: int = 0
    size: int = 0

    @staticmethod
    def find(batch: torch.Tensor, samples: torch.Tensor, network: str) -> SamplePlace:
        """Find the samples, repeated for each branch, in a batch.

        Args:
            batch: That the network was given.
            samples: (samples, ...) in engine coordinates, which scaled model inputs are in.
            network: Its name, for the error.

        Raises:
            TakeoverRefused: they are not there, or not at the start.
        """
        expected = torch.cat([samples] * (batch.shape[0] // samples.shape[0])).to(batch.dtype)
        place = _longer_axis(batch.shape, expected.shape)
        if place is None or not torch.allclose(place.samples(batch), expected, RELATIVE, ABSOLUTE):
            raise TakeoverRefused(
                f"{network} is given something else than the sample, or more than the sample with a part behind it, so "
                f"Skipstone cannot make its input"
            )
        return place

    def samples(self, batch: torch.Tensor) -> torch.Tensor:
        """The part of a batch that is the samples."""
        return batch.narrow(self.axis, 0, self.size) if self.axis else batch

    def rest(self, batch: torch.Tensor) -> torch.Tensor | None:
        """The part that stays the same; None where there is none."""
        return batch.narrow(self.axis, self.size, batch.shape[self.axis] - self.size) if self.axis else None


def _longer_axis(whole: Sequence[int], part: Sequence[int]) -> SamplePlace | None:
    """Where shapes differ in one axis at most, in which the first is longer; None where they differ otherwise."""
    if len(whole) != len(part):
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(whole, part, strict=True)) if a != b]
    if not differing:
        return SamplePlace()
    axis = differing[0]
    return SamplePlace(axis, part[axis]) if axis > 0 and len(differing) == 1 and whole[axis] > part[axis] else None


def fit(output: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The part of an output that belongs to a sample of this shape: before a learned variance, or other tokens."""
    for axis, size in enumerate(shape):
        output = output.narrow(axis, 0, size)
    return output
