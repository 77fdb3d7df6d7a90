"""How a pipeline runs within a limit of memory: in stages, in tiles, in fewer rows; or not, before it would swap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...errors import ModelError
from .layers import slice_attention
from .memory import TILE, MemoryEstimate, estimate_memory

GIGABYTE = 10**9
OVERLAP = 4  # neighbouring tiles share this part of their side: a quarter
QUERIES = 1024  # rows of attention that are computed at once where it is sliced


@dataclass(frozen=True)
class MemoryPlan:
    """What is done so that a pipeline keeps within a limit.

    Args:
        limit: Bytes.
        needed: Bytes that are needed at most, as estimated.
        tiled: Whether pictures are decoded in tiles, which changes them a little.
        staged: Whether text encoders, denoiser and autoencoder are in memory one kind after another.
        query_rows: Rows of attention that are computed at once; 0 is all.
        max_rows: Rows of a batch that enter the denoiser at once, >= 1.
    """

    limit: int
    needed: int
    tiled: bool = False
    staged: bool = False
    query_rows: int = 0
    max_rows: int = 1

    def __str__(self) -> str:
        said = [
            "decodes in tiles" if self.tiled else "",
            "loads the parts one after another" if self.staged else "",
            f"computes attention {self.query_rows} rows at a time" if self.query_rows else "",
        ]
        ways = ", ".join(filter(None, said)) or "changes nothing"
        return (
            f"Within {_size(self.limit)} MLX {ways}; {_size(self.needed)} are estimated for one "
            f"picture, and {self.max_rows} rows enter the denoiser at once."
        )


def _size(count: int) -> str:
    """Bytes as people say them: "7.25 GB", "24 MB"."""
    return f"{count / GIGABYTE:.2f} GB" if count >= GIGABYTE / 10 else f"{1000 * count / GIGABYTE:.0f} MB"


def plan_memory(folder: Path, dtype: str, bits: int | None, size: tuple[int, int], limit: int, rows: int) -> MemoryPlan:
    """The least that has to be done for one picture.

    Args:
        folder: Of the pipeline.
        dtype, bits: Of the weights.
        size: Height and width of the pictures, in pixels.
        limit: Bytes.
        rows: Of one picture in the denoiser: its guidance branches.

    Raises:
        ModelError: the limit is too small whatever is done; the message says what would fit.
    """
    needed = 0
    for estimate, tiled, staged, query_rows in _ways(folder, dtype, bits, size):
        needed = estimate.peak(tiled, staged).least
        if needed <= limit:
            most = _rows_that_fit(estimate, staged, limit, rows)
            return MemoryPlan(limit, needed, tiled, staged, query_rows, most)
    quarter = "" if bits == 4 else ", --bits 4 (in Python bits=4)"
    raise ModelError(
        f"The pipeline in {folder} needs {_size(needed)} on MLX for a picture of {size[0]} x {size[1]} pixels in "
        f"{dtype}{f', {bits} bits' if bits else ''}, its parts loaded one after another, and the limit is "
        f"{_size(limit)}. Allow more{quarter}, or make smaller pictures."
    )


def _ways(
    folder: Path, dtype: str, bits: int | None, size: tuple[int, int]
) -> Iterator[tuple[MemoryEstimate, bool, bool, int]]:
    """(estimate, tiled, staged, rows of attention), from what costs nothing to what is slowest."""
    device: Any = "metal" if mx.metal.is_available() else "cpu"
    whole = estimate_memory(folder, dtype, bits, size, device=device)
    yield whole, False, False, 0
    yield whole, False, True, 0  # the same pictures, loaded again for each batch
    yield whole, True, True, 0
    with slice_attention(QUERIES):
        sliced = estimate_memory(folder, dtype, bits, size, device=device)
    yield sliced, True, True, QUERIES


def _rows_that_fit(estimate: MemoryEstimate, staged: bool, limit: int, rows: int) -> int:
    """Rows of the denoiser for which there is room; what one needs grows with their number."""
    (denoiser,) = (one for one in estimate.components if one.part in ("unet", "transformer"))
    held = denoiser.weights if staged else estimate.weights
    each = max(1, denoiser.call.least // rows)
    return max(1, (limit - held) // each)


def apply_limit(limit: int) -> None:
    """Tell MLX: it waits for running work rather than hold more, and on a Mac keeps so much from being swapped out."""
    mx.set_memory_limit(limit)
    if mx.metal.is_available():
        most = int(mx.device_info().get("max_recommended_working_set_size", limit))
        mx.set_wired_limit(min(limit, most))


def decode_tiled(network: Any, latent: mx.array, factor: int, tile: int = TILE) -> mx.array:
    """The picture (height, width, channels) of a latent (rows, columns, channels), decoded in overlapping tiles.

    A tile fades into its neighbours over a quarter of its side, as in diffusers' `enable_tiling`.

    Args:
        network: An autoencoder.
        latent: As the network takes it, without batch axis.
        factor: Pixels on a side of a cell.
        tile: Pixels on a side of a tile.
    """
    rows, columns, _ = latent.shape
    side = max(1, tile // factor)
    total: Any = 0.0
    weight: Any = 0.0
    for top in _starts(rows, side):
        for left in _starts(columns, side):
            few = latent[top : top + side, left : left + side]
            pixels = network.decode(few[None])[0].astype(mx.float32)
            share = (_ramp(few.shape[0], factor)[:, None] * _ramp(few.shape[1], factor)[None])[..., None]
            around = [
                (top * factor, (rows - top - few.shape[0]) * factor),
                (left * factor, (columns - left - few.shape[1]) * factor),
                (0, 0),
            ]
            total, weight = total + mx.pad(pixels * share, around), weight + mx.pad(share, around)
            mx.eval(total, weight)
    picture: mx.array = total / weight
    return picture


def _starts(cells: int, side: int) -> list[int]:
    """First cells of tiles that cover a side, a quarter of a tile shared between neighbours."""
    if cells <= side:
        return [0]
    step = max(1, side - side // OVERLAP)
    return [*range(0, cells - side, step), cells - side]


def _ramp(cells: int, factor: int) -> mx.array:
    """Weights of the pixels of a tile's side: they rise over a quarter, and fall over a quarter."""
    pixels = cells * factor
    edge = max(1, pixels // OVERLAP)
    up = (mx.arange(pixels) + 0.5) / edge
    return mx.minimum(1.0, mx.minimum(up, up[::-1]))
