"""Attention in slices is attention, and so is a window that covers the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipstone.errors import SpecError
from skipstone_pebble.attention import (
    MaskedJointAttnProcessor,
    SlicedJointAttnProcessor,
    WindowedJointAttnProcessor,
)
from skipstone_pebble.model import Pebble
from skipstone_train.architecture.cost import PeakMemory

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def parts(rows: int, heads: int, lines: int, words: int, seed: int) -> tuple[list[torch.Tensor], torch.Tensor, int]:
    """Queries, keys and values, a mask, and how many of the tokens are the picture's."""
    generator, cells = torch.Generator().manual_seed(seed), lines**2
    made = [torch.randn(rows, heads, cells + words, 4, generator=generator) for _ in range(3)]
    return made, torch.randn(rows, 1, 1, cells + words, generator=generator), cells


@given(st.tuples(*[st.integers(1, 4)] * 4), st.tuples(*[st.integers(0, 6)] * 3), st.booleans(), st.integers(0, 99))
def test_slices_of_any_size_are_the_whole(size: Any, slices: Any, masked: bool, seed: int) -> None:
    given_parts, mask, cells = parts(*size, seed)
    told = (mask if masked else None, cells)
    whole = MaskedJointAttnProcessor().attend(*given_parts, *told)
    torch.testing.assert_close(SlicedJointAttnProcessor(*slices).attend(*given_parts, *told), whole, **CLOSE)


@given(st.tuples(*[st.integers(1, 4)] * 4), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_a_window_that_covers_the_picture_is_the_whole(size: Any, band: int, masked: bool, seed: int) -> None:
    given_parts, mask, cells = parts(*size, seed)
    told = (mask if masked else None, cells)
    whole = MaskedJointAttnProcessor().attend(*given_parts, *told)
    window = WindowedJointAttnProcessor(size[2] - 1, band)
    torch.testing.assert_close(window.attend(*given_parts, *told), whole, **CLOSE)


@given(st.integers(2, 5), st.integers(0, 3), st.integers(1, 5), st.integers(0, 99))
def test_a_window_is_what_a_mask_of_distances_does(lines: int, window: int, band: int, seed: int) -> None:
    (query, key, value), mask, cells = parts(2, 2, lines, 3, seed)
    places = torch.stack(torch.meshgrid(torch.arange(lines), torch.arange(lines), indexing="ij"), -1).reshape(-1, 2)
    far = (places[:, None] - places).abs().amax(-1) > window
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3) + mask
    scores[:, :, :cells, :cells] = scores[:, :, :cells, :cells].masked_fill(far, -torch.inf)
    made = WindowedJointAttnProcessor(window, band).attend(query, key, value, mask, cells)
    torch.testing.assert_close(made, scores.softmax(-1) @ value, **CLOSE)


@pytest.mark.parametrize(
    "processor", [SlicedJointAttnProcessor(1, 1, 16), WindowedJointAttnProcessor(7, 2)], ids=lambda p: p.name
)
def test_the_model_answers_the_same_and_keeps_the_processor(processor: Any, tiny_dit: Path) -> None:
    model = Pebble.load(tiny_dit)
    problem = model.problem("a red apple on a blue background")
    x, condition = problem.x[None].repeat(2, 1, 1, 1), torch.stack([problem.cond["cond"], problem.cond["uncond"]])

    @torch.no_grad()
    def answer() -> torch.Tensor:
        output: torch.Tensor = model.family.forward(model.unet, x, torch.full((2,), 500.0), condition)
        return output

    whole = answer()
    model.unet.set_attn_processor(processor)
    torch.testing.assert_close(answer(), whole, **CLOSE)
    assert all(one == processor for one in model.unet.attn_processors.values())
    model.unet.set_attn_processor(WindowedJointAttnProcessor(0))
    assert (answer() - whole).abs().max() > 1e-3  # and a small window is another network


def test_slices_and_windows_need_less_memory() -> None:
    given_parts, mask, cells = parts(2, 2, 24, 8, 0)
    peaks = {}
    for processor in (MaskedJointAttnProcessor(), SlicedJointAttnProcessor(queries=32), WindowedJointAttnProcessor(3)):
        with torch.no_grad(), PeakMemory() as memory:
            processor.attend(*given_parts, mask, cells)
        peaks[type(processor).__name__] = memory.peak
    scores = 2 * 2 * (cells + 8) ** 2 * 4
    assert peaks["MaskedJointAttnProcessor"] >= 2 * scores
    assert peaks["SlicedJointAttnProcessor"] < scores / 4
    assert peaks["WindowedJointAttnProcessor"] < 1.5 * scores


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SlicedJointAttnProcessor(queries=-1), "expected queries to be a whole number in 0..1,000,000, got -1"),
        (lambda: WindowedJointAttnProcessor(1, 0), "expected band to be a whole number in 1..1,000,000, got 0"),
        (lambda: WindowedJointAttnProcessor(1, lines=3).attend(*parts(1, 1, 2, 1, 0)[0], None, 4), "3 lines, got 4"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(make: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make()


def test_slices_of_diffusers_are_the_unets_attention() -> None:
    from diffusers.models.attention_processor import SlicedAttnProcessor

    model = Pebble.load()
    problem = model.problem("a red apple on a blue background")
    x, states = problem.x[None], problem.cond["cond"][None]
    with torch.no_grad():
        whole = model.family.forward(model.unet, x, torch.tensor([500]), states)
        model.unet.set_attn_processor(SlicedAttnProcessor(1))
        torch.testing.assert_close(model.family.forward(model.unet, x, torch.tensor([500]), states), whole, **CLOSE)
