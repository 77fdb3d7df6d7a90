"""Which rows of a batch belong to which sample, and how some of them are taken out and put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import GuestError

PLAIN_TYPES = (bool, int, float, complex, str, torch.Tensor, torch.dtype, torch.device, torch.Size)


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Where samples lie in the batch that the scheduler steps.

    Args:
        samples: How many there are.
        width: Rows of one sample, side by side: 1, or the frames of a video.
        copies: Times that the whole batch is repeated: 1, or 2 where the scheduler steps both guidance halves.
    """

    samples: int
    width: int = 1
    copies: int = 1

    def take(self, batch: torch.Tensor, sample: int) -> torch.Tensor:
        """A sample of a batch, without batch axis where it is one row."""
        if self.width == 1:
            return batch[sample]
        return batch[sample * self.width : (sample + 1) * self.width]

    def row_of(self, sample: torch.Tensor) -> torch.Tensor:
        """A sample as the network is given it: frames lie behind the channels."""
        return sample if self.width == 1 else sample.transpose(0, 1)

    def sample_of(self, row: torch.Tensor) -> torch.Tensor:
        """What the network gives for a sample, as the scheduler is given it."""
        return row if self.width == 1 else row.transpose(0, 1)

    def put(self, batch: torch.Tensor, sample: int, value: torch.Tensor) -> None:
        """Write a sample, or its first channels, into a batch; into each copy of it."""
        for copy in range(self.copies):
            first = (copy * self.samples + sample) * self.width
            place = batch[first] if self.width == 1 else batch[first : first + self.width]
            axis = 0 if self.width == 1 else 1
            place.narrow(axis, 0, value.shape[axis]).copy_(value)


def main_output(output: Any) -> Any:
    """The prediction in what a denoiser returns: a tensor, a tuple, or one of diffusers' output classes."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, tuple | list):
        return output[0]
    return next(iter(output.values())) if isinstance(output, Mapping) else output.sample


def replace_main_output(output: Any, value: torch.Tensor) -> Any:
    """Return the same kind of output with another prediction in it."""
    if isinstance(output, torch.Tensor):
        return value
    if isinstance(output, tuple | list):
        return type(output)([value, *output[1:]])
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        first = dataclasses.fields(output)[0].name
        return dataclasses.replace(output, **{first: value})
    return type(output)(sample=value)


def slice_rows(value: Any, index: torch.Tensor, rows: int) -> Any:
    """Every tensor inside `value` whose first axis has `rows` entries, with those of `index` only."""
    if isinstance(value, torch.Tensor):
        fits = value.ndim > 0 and value.shape[0] == rows
        return value[index.to(value.device)] if fits else value
    if type(value) is dict:
        return {k: slice_rows(v, index, rows) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(slice_rows(v, index, rows) for v in value))
    if type(value) in (tuple, list):
        return type(value)(slice_rows(v, index, rows) for v in value)
    return value


def has_nested_rows(value: Any, rows: int, nested: bool = False) -> bool:
    """Whether a container holds a tensor whose first axis has `rows` entries: rows, or as many of something else."""
    if isinstance(value, torch.Tensor):
        return nested and value.ndim > 0 and value.shape[0] == rows
    items = value.values() if type(value) is dict else value if isinstance(value, tuple | list) else ()
    return any(has_nested_rows(v, rows, nested=True) for v in items)


def outline(value: Any) -> Any:
    """What kind of thing an argument is, without its numbers: shapes of tensors, in containers too."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if type(value) is dict:
        return {name: outline(v) for name, v in value.items()}
    if isinstance(value, tuple | list):
        return [outline(v) for v in value]
    return type(value).__name__


def is_plain(value: Any) -> bool:
    """Whether a value is numbers, texts and tensors in built-in containers: nothing that can keep state."""
    if type(value) is dict:
        return all(map(is_plain, value.values()))
    if type(value) in (tuple, list) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return all(map(is_plain, value))
    return value is None or isinstance(value, PLAIN_TYPES)


def copy_containers(value: Any) -> Any:
    """Copy the containers but not the tensors in them."""
    if isinstance(value, Mapping):
        return {k: copy_containers(v) for k, v in value.items()}
    return type(value)(map(copy_containers, value)) if type(value) in (tuple, list) else value


def scatter_rows(part: Any, index: torch.Tensor, rows: int) -> Any:
    """What `slice_rows` takes apart: tensors of some rows as tensors of all, zero where nothing was computed."""
    if isinstance(part, torch.Tensor):
        if part.ndim == 0 or part.shape[0] != len(index):
            return part
        whole = part.new_zeros((rows, *part.shape[1:]))
        whole[index.to(part.device)] = part
        return whole
    if isinstance(part, tuple | list):
        return type(part)(scatter_rows(v, index, rows) for v in part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return dataclasses.replace(
            part, **{f.name: scatter_rows(getattr(part, f.name), index, rows) for f in dataclasses.fields(part)}
        )
    return part


def empty_like(like: Any) -> Any:
    """Zeros of the same shapes, taking no memory: for residuals that nobody will read."""
    if isinstance(like, torch.Tensor):
        return like.new_zeros(()).expand(like.shape)
    if isinstance(like, tuple | list):
        return type(like)(empty_like(v) for v in like)
    if dataclasses.is_dataclass(like) and not isinstance(like, type):
        return dataclasses.replace(
            like, **{f.name: empty_like(getattr(like, f.name)) for f in dataclasses.fields(like)}
        )
    return like


def slice_repeated(value: Any, index: Sequence[int], rows: int) -> torch.Tensor | None:
    """Rows of an argument that holds each row several times side by side, as a video's text per frame; or None.

    Raises:
        GuestError: it does not hold each row equally often.
    """
    if value is None:
        return None
    if not isinstance(value, torch.Tensor) or value.ndim == 0 or value.shape[0] % rows:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise GuestError(f"Expected an argument that holds each of {rows} rows equally often, got {got}.")
    each = value.shape[0] // rows
    return value[torch.tensor([r * each + j for r in index for j in range(each)], device=value.device)]
