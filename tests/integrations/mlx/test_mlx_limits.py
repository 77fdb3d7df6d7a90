"""A limit of memory: what is done within it, that pictures stay what they are, and what is refused beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
from integrations.guest.families import build

import skipstone
import skipstone_pebble
from skipstone.engine.drivers import denoise_many
from skipstone.errors import ModelError
from skipstone.integrations.mlx import limits
from skipstone.integrations.mlx.limits import MemoryPlan, decode_tiled, plan_memory
from skipstone.integrations.mlx.memory import estimate_memory
from skipstone.policies import Fixed
from skipstone.solvers import DDIM


@pytest.fixture(autouse=True)
def own_limit() -> Any:
    """The limit of MLX is that of the process: it is put back."""
    before = mx.get_memory_limit()
    yield
    mx.set_memory_limit(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL."""
    found = tmp_path_factory.mktemp("limits") / "sdxl"
    build("sdxl").save_pretrained(found)
    return found


def test_the_plan_does_the_least_that_fits_and_refuses_what_does_not() -> None:
    """Each way needs less than the one before, and is taken exactly where the one before does not fit."""
    pebble = skipstone_pebble.path()
    estimate = estimate_memory(pebble, "float32", device="cpu" if not mx.metal.is_available() else "metal")
    whole, staged = estimate.peak().least, estimate.peak(staged=True).least
    assert staged < whole

    def plan(limit: int) -> MemoryPlan:
        return plan_memory(pebble, "float32", None, (64, 64), limit, 2)

    assert plan(whole) == MemoryPlan(whole, whole, max_rows=plan(whole).max_rows)
    assert plan(whole - 1) == MemoryPlan(whole - 1, staged, staged=True, max_rows=plan(whole - 1).max_rows)
    assert plan(10 * whole).max_rows > plan(whole).max_rows >= 1
    with pytest.raises(
        ModelError, match=r"The pipeline in .* needs .* [GM]B on MLX .* the limit is .* [GM]B\. Allow more, .*bits"
    ):
        plan(staged // 2)


def test_a_limit_too_small_is_refused_before_a_network_is_loaded(folder: Path, monkeypatch: Any) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("A network was loaded.")

    monkeypatch.setattr("skipstone.integrations.mlx.parts.load_module", load)
    monkeypatch.setattr(limits, "GIGABYTE", 10**6)
    pipe = skipstone.mlx.load(folder, memory_limit="1GB")
    assert pipe.plan is not None
    with pytest.raises(ModelError, match="Allow more"):
        pipe.limited(10)
    with pytest.raises(ModelError, match=r"2048 x 2048 .* smaller pictures"):
        pipe.limited(10**7).sized(2048, 2048)


def test_within_a_limit_pictures_are_the_same(folder: Path) -> None:
    free = skipstone.mlx.load(folder)
    problems = [free.problem("red fox", seed, 3) for seed in range(3)]
    expected = denoise_many(free.backbone, problems, DDIM(), Fixed())
    need = estimate_memory(folder, "float32", device="cpu").peak(staged=True).least
    pipe = skipstone.mlx.load(folder, memory_limit=10**6).limited(max(need, 1))
    assert pipe.plan is not None
    assert pipe.plan.staged
    assert pipe.unet.max_rows == pipe.plan.max_rows
    assert mx.get_memory_limit() == max(need, 1)
    pipe.unet.max_rows = 4
    entered, call = [], pipe.unet.call

    def spy(network: Any, x: Any, *more: Any) -> Any:
        entered.append(len(x))
        return call(network, x, *more)

    pipe.unet.call = spy
    with pipe.unet.count() as counted:
        results = denoise_many(pipe.backbone, problems, DDIM(), Fixed())
    assert (counted.rows, counted.forwards, entered) == (18, 3, [4, 2] * 3)
    assert pipe.parts.loaded == ("unet",)
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(np.array(one.x), np.array(other.x), rtol=1e-5, atol=1e-5)
    assert "one after another" in str(pipe.plan)


class Doubling:
    """An autoencoder that decodes each cell to 2 x 2 pixels of its value, so that tiles show any seam."""

    def decode(self, z: Any) -> Any:
        return mx.repeat(mx.repeat(z[..., :3], 2, axis=1), 2, axis=2)


@pytest.mark.parametrize("size", [(8, 8), (9, 20), (31, 7), (32, 32)])
def test_tiles_cover_a_picture_without_seams(size: tuple[int, int]) -> None:
    z = mx.random.normal((*size, 4), key=mx.random.key(1))
    made = decode_tiled(Doubling(), z, factor=2, tile=16)
    np.testing.assert_allclose(np.array(made), np.array(Doubling().decode(z[None])[0]), rtol=1e-5, atol=1e-6)


def test_tiles_of_a_real_decoder_are_close_to_the_whole(folder: Path) -> None:
    pipe = skipstone.mlx.load(folder)
    network = pipe.parts.network("vae")
    z = mx.random.normal((40, 40, 4), key=mx.random.key(1))
    whole, tiled = network.decode(z[None])[0], decode_tiled(network, z, pipe.size.factor, tile=64)
    assert whole.shape == tiled.shape
    error = np.abs(np.array(whole) - np.array(tiled))
    assert 0 < np.median(error) < 0.2 * np.std(np.array(whole))


class Averaging:
    """An autoencoder whose pictures are the mean of their latent, so that neighbouring tiles differ."""

    def decode(self, z: Any) -> Any:
        return mx.broadcast_to(z[..., :3].mean(axis=(1, 2), keepdims=True), (1, 2 * z.shape[1], 2 * z.shape[2], 3))


def test_a_tile_fades_into_its_neighbour() -> None:
    """Two tiles of means 0 and 1 overlap by a quarter, 4 cells or 8 pixels: no step between pixels is a jump."""
    z = mx.broadcast_to((mx.arange(28) >= 12)[None, :, None].astype(mx.float32), (16, 28, 4))
    row = np.array(decode_tiled(Averaging(), z, factor=2, tile=32))[8, :, 0]
    steps = np.diff(row)
    assert row[-1] - row[0] == pytest.approx(0.75)
    assert 0 <= steps.min() <= steps.max() <= 0.75 / 6
