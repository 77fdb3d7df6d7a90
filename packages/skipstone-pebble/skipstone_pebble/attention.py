"""Joint attention of Pebble-DiT with a mask: whole, in slices, or in windows, chosen by `set_attn_processor`.

model = Pebble.load("pebble-dit")
model.unet.set_attn_processor(SlicedJointAttnProcessor(queries=16))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from skipstone.errors import SpecError
from skipstone.settings import Ranges, check_settings

LARGEST = 1_000_000


class MaskedJointAttnProcessor:
    """Joint attention of SD3 with a mask, which diffusers' own processor leaves out.

    Empty rows of a prompt have no place, so that all of them are the same in every block. One row whose
    attention is raised by log n is n of them, exactly, at a fifth of the cost.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs of the picture's tokens and of the words."""

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(*x.shape[:2], attn.heads, -1).transpose(1, 2)

        def joined(x: torch.Tensor, x_norm: Any, words: torch.Tensor, words_norm: Any) -> torch.Tensor:
            own, other = heads(x), heads(words)
            return torch.cat([x_norm(own) if x_norm else own, words_norm(other) if words_norm else other], 2)

        x, words = hidden_states, encoder_hidden_states
        query = joined(attn.to_q(x), attn.norm_q, attn.add_q_proj(words), attn.norm_added_q)
        key = joined(attn.to_k(x), attn.norm_k, attn.add_k_proj(words), attn.norm_added_k)
        value = joined(attn.to_v(x), None, attn.add_v_proj(words), None)
        made = self.attend(query, key, value, attention_mask, x.shape[1]).transpose(1, 2).flatten(2)
        own, other = made[:, : x.shape[1]], made[:, x.shape[1] :]
        return attn.to_out[0](own), other if attn.context_pre_only else attn.to_add_out(other)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, cells: int
    ) -> torch.Tensor:
        """What each token takes from the others.

        Args:
            query, key, value: (rows, heads, tokens, channels), the picture's tokens first.
            mask: Added to the scores, (rows, 1, 1, tokens); None adds nothing.
            cells: Tokens of the picture.
        """
        return weigh(query, key, value, mask)


def weigh(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention written out: with so few tokens the backward pass of torch's fused attention is slower."""
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    if mask is not None:
        weights = weights + mask.to(weights.dtype)
    made: torch.Tensor = weights.softmax(-1).to(value.dtype) @ value
    return made


@dataclass(frozen=True)
class SlicedJointAttnProcessor(MaskedJointAttnProcessor):
    """The same in slices one after the other, so that the scores of a slice alone are in memory; equal to rounding.

    Args:
        rows: Samples of a slice, in 0..1,000,000; 0 is all.
        heads: Of a slice, in 0..1,000,000; 0 is all.
        queries: Tokens of a slice that look at the others, in 0..1,000,000; 0 is all.

    Raises:
        SpecError: a number out of its range.
    """

    rows: int = 0
    heads: int = 0
    queries: int = 0
    name: ClassVar[str] = "sliced attention"
    ranges: ClassVar[Ranges] = dict.fromkeys(("rows", "heads", "queries"), (0, LARGEST))

    def __post_init__(self) -> None:
        check_settings(self)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, cells: int
    ) -> torch.Tensor:
        made = torch.empty_like(query)
        for rows in _slices(len(query), self.rows):
            own = None if mask is None else mask[rows if len(mask) > 1 else slice(None)]
            for heads in _slices(query.shape[1], self.heads):
                k, v = key[rows, heads], value[rows, heads]
                for some in _slices(query.shape[2], self.queries):
                    made[rows, heads, some] = weigh(query[rows, heads, some], k, v, own)
        return made


@dataclass(frozen=True)
class WindowedJointAttnProcessor(MaskedJointAttnProcessor):
    """A token of the picture looks at the words, and at those of the picture no further away than the window.

    Words look at everything. It is full attention where the window covers the picture; elsewhere it is another network,
    which wants training. Bands of the picture are computed one after the other.

    Args:
        window: Tokens to each side, in 0..1,000,000.
        band: Lines of the picture that are computed together, in 1..1,000,000.
        lines: Of the picture; 0 is a square.

    Raises:
        SpecError: a number out of its range; a picture that has not so many lines.
    """

    window: int
    band: int = 4
    lines: int = 0
    name: ClassVar[str] = "windowed attention"
    ranges: ClassVar[Ranges] = {"window": (0, LARGEST), "band": (1, LARGEST), "lines": (0, LARGEST)}

    def __post_init__(self) -> None:
        check_settings(self)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, cells: int
    ) -> torch.Tensor:
        lines = self.lines or math.isqrt(cells)
        if cells % lines or (not self.lines and lines**2 != cells):
            raise SpecError(f"{self.name}: expected a picture of {lines} lines, got {cells} tokens; give lines.")
        columns, made = cells // lines, torch.empty_like(query)
        for first in range(0, lines, self.band):
            last = min(lines, first + self.band)
            start, end = max(0, first - self.window), min(lines, last + self.window)
            near = _near(range(first, last), range(start, end), columns, self.window, query)
            some, seen = slice(first * columns, last * columns), slice(start * columns, end * columns)
            picture = near if mask is None else near + mask[..., seen]
            words = near.new_zeros(1, 1, 1, 1) if mask is None else mask[..., cells:]
            words = words.expand(*picture.shape[:-1], query.shape[2] - cells)
            keys, values = (torch.cat([one[:, :, seen], one[:, :, cells:]], 2) for one in (key, value))
            made[:, :, some] = weigh(query[:, :, some], keys, values, torch.cat([picture, words], -1))
        made[:, :, cells:] = weigh(query[:, :, cells:], key, value, mask)
        return made


def _near(here: range, there: range, columns: int, window: int, like: torch.Tensor) -> torch.Tensor:
    """0 where a token of some lines sees one of others, minus infinity where it does not: (1, 1, tokens, tokens)."""
    line, other = torch.arange(here.start, here.stop), torch.arange(there.start, there.stop)
    column = torch.arange(columns)
    lines = (line[:, None] - other).abs() <= window
    across = (column[:, None] - column).abs() <= window
    seen = (lines[:, None, :, None] & across[None, :, None, :]).flatten(2, 3).flatten(0, 1)
    found = torch.zeros(seen.shape, dtype=like.dtype).masked_fill(~seen, -math.inf)
    return found.to(like.device)[None, None]


def _slices(length: int, size: int) -> list[slice]:
    """Parts of a length, each of at most `size`; 0 is one part."""
    size = size or length
    return [slice(start, start + size) for start in range(0, length, size)]
