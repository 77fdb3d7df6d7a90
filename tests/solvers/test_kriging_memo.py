"""What steps from one call share is made once, and neither that nor views of memory change a bit of a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from skipstone import registry
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Estimate, Problem, Result
from skipstone.numerics import array
from skipstone.numerics.noise import standard_normal
from skipstone.solvers import kriging
from skipstone.testing.backbones import Mixture

BACKBONE = Mixture(guidance=3.0)


class Forgetful(dict[str, Any]):
    """A memo that keeps nothing."""

    def __setitem__(self, key: str, value: Any) -> None:
        pass


def run(policy: str, like: Any, clip: bool = False) -> Result:
    grid = tuple(1.0 - 0.998 * k / 40 for k in range(41))
    x = like(standard_normal(5, 0, np.empty((2, 5, 7))))
    bounded = (lambda clean: clean.clip(-2.0, 2.0)) if clip else None
    problem = Problem(BACKBONE.schedule, x, grid, cond=1, seed=5, branches=BACKBONE.branches, x0_filter=bounded)
    return denoise(BACKBONE, problem, registry.parse("solver", "kriging"), registry.parse("policy", policy))


def as_tensor(dtype: torch.dtype) -> Any:
    return lambda noise: torch.from_numpy(noise).to(dtype)


LIKES = [as_tensor(torch.float32), as_tensor(torch.float64), as_tensor(torch.bfloat16), lambda noise: noise]
POLICIES = ["adaptive_grid(calls=12)", "adaptive_grid(calls=12) | guidance_gate", "random_skip", "stride", "fixed"]


@pytest.mark.parametrize("like", LIKES, ids=["float32", "float64", "bfloat16", "numpy"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("clip", [False, True])
def test_neither_memo_nor_views_change_a_bit(
    policy: str, like: Any, clip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = run(policy, like, clip)
    made = Estimate.__init__

    def forget(self: Estimate, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        object.__setattr__(self, "memo", Forgetful())

    monkeypatch.setattr(Estimate, "__init__", forget)
    monkeypatch.setattr(array, "_is_tensor", lambda one: False)  # so that nothing is a view
    plain = run(policy, like, clip)
    assert plain.run == fast.run
    assert np.array_equal(
        np.asarray(plain.x.float() if hasattr(plain.x, "float") else plain.x),
        np.asarray(fast.x.float() if hasattr(fast.x, "float") else fast.x),
    )


def test_a_step_that_is_taken_again_weighs_its_forecasts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]
    shares = kriging.forecast_shares

    def count(*args: Any) -> Any:
        calls[0] += 1
        return shares(*args)

    monkeypatch.setattr(kriging, "forecast_shares", count)
    found = run("adaptive_grid(calls=12)", as_tensor(torch.float32)).run
    assert any(a.accepted is False for a in found.past)
    assert calls[0] == found.cost


def test_a_copy_of_an_estimate_with_another_array_does_not_use_its_memo() -> None:
    from skipstone.engine.requests import Node, view_clean, view_prediction

    x = torch.ones(3)
    node = Node(0.5, x, Estimate(torch.full((3,), 2.0)))
    schedule = BACKBONE.schedule
    before = view_clean(node), view_prediction(node, "v", schedule), kriging.find_clean_node(node, schedule)
    other = node._replace(estimate=replace(node.estimate, x0=torch.full((3,), 4.0)))
    assert other.estimate.memo is node.estimate.memo
    assert (view_clean(other) == 4.0).all()
    assert (view_prediction(other, "v", schedule) != before[1]).all()
    assert (kriging.find_clean_node(other, schedule).clean == 4.0).all()
    assert view_clean(node).tolist() == before[0].tolist()


@pytest.mark.parametrize("shape", [(2, 3), (3, 4, 5), (4, 64, 64), (1,), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_rms_of_several_has_the_bits_of_each(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [(torch.randn(shape, generator=generator) * 3.0**k).to(dtype) for k in range(5)]
    found = array.rms_each([array.host_view(one) for one in tensors], tensors[0])
    assert [float(one) for one in found] == [float(array.rms(one)) for one in tensors]
    turned = [one.transpose(0, -1) for one in tensors if one.ndim > 1]
    found = array.rms_each([array.host_view(one) for one in turned], tensors[0])
    assert [float(one) for one in found] == [float(array.rms(one)) for one in turned]


def test_floats_come_from_scalars_and_tensors_alike() -> None:
    values = [np.float32(1.5), torch.tensor(2.0), 3.0 * np.float64(1.0), torch.tensor(4.0, dtype=torch.float64)]
    assert array.to_floats([values[0], values[1], values[2]]) == [1.5, 2.0, 3.0]
    assert array.to_floats([]) == []
