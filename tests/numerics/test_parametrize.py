"""Parametrizations: round trips, dtypes, and no infinity where alpha or sigma vanishes."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipstone.errors import SpecError
from skipstone.numerics.parametrize import PREDICTION_TYPES, from_x0, to_x0

VALUES = st.lists(st.floats(-4.0, 4.0, width=32), min_size=1, max_size=8)
ANGLES = st.floats(0.01, math.pi / 2 - 0.01)
every_kind = pytest.mark.parametrize("kind", PREDICTION_TYPES)
MAKERS = {
    "numpy64": (lambda v: np.asarray(v, "float64"), 1e-9),
    "numpy32": (lambda v: np.asarray(v, "float32"), 2e-3),
    "numpy16": (lambda v: np.asarray(v, "float16"), 0.5),
    "torch32": (lambda v: torch.tensor(v, dtype=torch.float32), 2e-3),
    "torch16": (lambda v: torch.tensor(v, dtype=torch.float16), 0.5),
    "torchb16": (lambda v: torch.tensor(v, dtype=torch.bfloat16), 3.0),
}
if importlib.util.find_spec("mlx"):
    import mlx.core as mx

    MAKERS |= {
        "mlx32": (lambda v: mx.array(v, dtype=mx.float32), 2e-3),
        "mlx16": (lambda v: mx.array(v, dtype=mx.float16), 0.5),
        "mlxb16": (lambda v: mx.array(v, dtype=mx.bfloat16), 3.0),
    }
every_library = pytest.mark.parametrize("library", MAKERS)


def floats(array: Any) -> list[float]:
    return [float(v) for v in array.reshape(-1).tolist()]


@every_kind
@every_library
@given(values=VALUES, angle=ANGLES)
def test_there_and_back(kind: str, library: str, values: list[float], angle: float) -> None:
    """`to_x0` inverts `from_x0`, as well as the dtype lets it (a division by alpha or sigma amplifies rounding)."""
    make, tolerance = MAKERS[library]
    x0, x = make(values), make([0.5 - v for v in values])
    a, s = math.cos(angle), math.sin(angle)
    output = from_x0(kind, x0, x, a, s)
    back = to_x0(kind, output, x, a, s)
    assert output.dtype == back.dtype == x.dtype
    slack = tolerance * (1.0 + max(map(abs, values))) * max(1.0, 0.05 / min(a, s))
    assert max(abs(p - q) for p, q in zip(floats(back), floats(x0), strict=True)) <= slack


@every_kind
@given(values=VALUES, noise=VALUES, angle=ANGLES)
def test_definitions(kind: str, values: list[float], noise: list[float], angle: float) -> None:
    """At x = alpha x0 + sigma eps: eps is eps, v is alpha eps - sigma x0, flow is eps - x0."""
    n = min(len(values), len(noise))
    x0, eps = np.asarray(values[:n]), np.asarray(noise[:n])
    a, s = math.cos(angle), math.sin(angle)
    x = a * x0 + s * eps
    said = {"x0": x0, "eps": eps, "v": a * eps - s * x0, "flow": eps - x0}[kind]
    assert np.allclose(from_x0(kind, x0, x, a, s), said, atol=1e-9 / min(a, s))
    assert np.allclose(to_x0(kind, said, x, a, s), x0, atol=1e-9 / min(a, s))


@every_kind
@every_library
@pytest.mark.parametrize(("alpha", "sigma"), [(0.0, 1.0), (1.0, 0.0), (1e-12, 1.0), (1.0, 1e-12)])
def test_finite_where_a_scale_vanishes(kind: str, library: str, alpha: float, sigma: float) -> None:
    """At alpha = 0, x is the noise; at sigma = 0, x is the picture."""
    make, _ = MAKERS[library]
    picture, noise = [0.5, -1.5, 0.0], [1.0, 0.25, -2.0]
    x0, x = make(picture), make(noise if alpha < 0.5 else picture)
    said = from_x0(kind, x0, x, alpha, sigma)
    back = to_x0(kind, said, x, alpha, sigma)
    assert said.dtype == back.dtype == x.dtype
    assert all(map(math.isfinite, floats(said) + floats(back)))


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_x0_survives_pure_noise(kind: str) -> None:
    """What eps cannot say at alpha = 0, the others can."""
    x0, x = np.asarray([0.5, -1.5, 0.0]), np.asarray([1.0, 0.25, -2.0])
    assert np.allclose(to_x0(kind, from_x0(kind, x0, x, 0.0, 1.0), x, 0.0, 1.0), x0)


def test_eps_at_pure_noise_is_the_noise() -> None:
    x = np.asarray([1.0, 0.25, -2.0])
    assert np.allclose(from_x0("eps", np.zeros(3), x, 0.0, 1.0), x)
    assert np.allclose(to_x0("eps", x, x, 0.0, 1.0), 0.0)


def test_half_precision_computes_in_float32() -> None:
    """x - sigma eps cancels: at 16 bits inside, only a few digits of x0 would be left."""
    x0, eps = np.float16(0.333), np.float16(1.234)
    a, s = 0.05, math.sqrt(1 - 0.05**2)
    x = np.asarray([a * float(x0) + s * float(eps)], "float16")
    exact = (float(x[0]) - s * float(eps)) / a
    assert float(to_x0("eps", np.asarray([eps]), x, a, s)[0]) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("convert", [to_x0, from_x0])
def test_unknown_kind(convert: Any) -> None:
    with pytest.raises(SpecError, match="eps, x0, v, flow"):
        convert("noise", np.zeros(1), np.zeros(1), 0.5, 0.5)
