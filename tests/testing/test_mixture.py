"""The exact denoiser of a mixture: against quadrature, with guidance, given outputs, and three array libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipstone.engine.requests import Query
from skipstone.errors import BackboneError, SpecError
from skipstone.numerics.schedule import FlowMatching
from skipstone.testing.backbones import Gaussian, Mixture

GUIDED = Mixture(guidance=3.0)
X = np.linspace(-2.0, 2.0, 7)
BRANCHES = frozenset({"cond", "uncond"})


def by_quadrature(mixture: Mixture, x: float, t: float) -> float:
    """E[x0 | x] as the ratio of two integrals over x0."""
    x0 = np.linspace(-6.0, 6.0, 20_001)
    density = sum(
        w / s * np.exp(-0.5 * ((x0 - m) / s) ** 2)
        for w, m, s in zip(mixture.weights, mixture.means, mixture.stds, strict=True)
    )
    a, s = mixture.schedule.alpha(t), mixture.schedule.sigma(t)
    joint = density * np.exp(-0.5 * ((x - a * x0) / s) ** 2)
    return float((x0 * joint).sum() / joint.sum())


@given(x=st.floats(-2.5, 2.5), t=st.floats(0.1, 0.95))
def test_the_estimate_is_the_posterior_mean(x: float, t: float) -> None:
    [estimate] = Mixture().predict([Query(np.asarray([x]), t)])
    assert float(estimate.x0[0]) == pytest.approx(by_quadrature(Mixture(), x, t), abs=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_one_component_is_the_gaussian(prediction: str) -> None:
    one = Mixture((0.5,), (0.7,), (1.0,), prediction=prediction)  # type: ignore[arg-type]
    for t in (0.95, 0.5, 0.05):
        [ours], [theirs] = one.predict([Query(X, t)]), Gaussian().predict([Query(X, t)])
        assert np.allclose(ours.x0, theirs.x0, atol=1e-9)


def test_far_out_no_component_underflows() -> None:
    [estimate] = Mixture().predict([Query(np.asarray([-80.0, 80.0], "float32"), 0.02)])
    assert np.isfinite(estimate.x0).all()


def test_guidance_combines_the_branches() -> None:
    t, w = 0.6, GUIDED.guidance
    [guided] = GUIDED.predict([Query(X, t, cond=2, wanted_sites=BRANCHES)])
    [cond] = Mixture().predict([Query(X, t, cond=2)])
    [uncond] = Mixture().predict([Query(X, t)])
    assert np.allclose(guided.x0, uncond.x0 + w * (cond.x0 - uncond.x0))
    assert np.allclose(guided.output, uncond.output + w * (cond.output - uncond.output))
    assert (guided.cost, GUIDED.branches, set(GUIDED.sites)) == (1.0, 2, BRANCHES)
    assert np.allclose(guided.features["cond"], cond.output)
    assert np.allclose(guided.features["uncond"], uncond.output)


def test_a_given_branch_is_used_and_not_paid_for() -> None:
    [full] = GUIDED.predict([Query(X, 0.6, cond=0, wanted_sites=BRANCHES)])
    stale = full.features["uncond"] + 0.5
    [half] = GUIDED.predict([Query(X, 0.6, cond=0, known_outputs={"uncond": stale}, wanted_sites=BRANCHES)])
    assert half.cost == 0.5
    assert set(half.features) == {"cond"}
    assert np.allclose(half.output - full.output, (1 - GUIDED.guidance) * 0.5)
    [free] = GUIDED.predict([Query(X, 0.6, cond=0, known_outputs=dict(full.features))])
    assert free.cost == 0.0
    assert np.allclose(free.x0, full.x0)


def test_only_wanted_outputs_are_returned() -> None:
    [estimate] = GUIDED.predict([Query(X, 0.6, cond=1, wanted_sites=frozenset({"cond"}))])
    assert set(estimate.features) == {"cond"}
    assert Mixture().sites == ()
    assert Mixture().branches == 1


def test_libraries_agree_and_keep_their_dtype() -> None:
    mx = pytest.importorskip("mlx.core")
    x = X.astype("float32")
    [expected] = GUIDED.predict([Query(X, 0.6, cond=1)])
    for array in (x, torch.from_numpy(x), mx.array(x)):
        [estimate] = GUIDED.predict([Query(array, 0.6, cond=1)])
        assert estimate.x0.dtype == array.dtype
        assert np.allclose(np.asarray(estimate.x0.tolist()), expected.x0, atol=1e-4)


def test_at_the_ends_of_a_flow() -> None:
    """At pure noise the estimate is the mean of the data; close to the data it is the sample."""
    flow = Mixture(schedule=FlowMatching(), prediction="x0")
    mean = sum(w * m for w, m in zip(flow.weights, flow.means, strict=True))
    [noise], [data] = flow.predict([Query(X, 1.0)]), flow.predict([Query(X, 1e-6)])
    assert np.allclose(noise.x0, mean)
    assert np.allclose(data.x0, X, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"means": ()}, {"stds": (0.1, 0.0, 0.2)}, {"weights": (0.5, 0.5, 0.5)}])
def test_settings_that_are_no_mixture(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(SpecError, match="mixture: expected"):
        Mixture(**wrong)  # type: ignore[arg-type]


def test_a_strange_condition_or_site() -> None:
    with pytest.raises(BackboneError, match=r"component 0\.\.2"):
        Mixture().predict([Query(X, 0.5, cond=3)])
    with pytest.raises(BackboneError, match="none"):
        Mixture().predict([Query(X, 0.5, known_outputs={"cond": X})])
