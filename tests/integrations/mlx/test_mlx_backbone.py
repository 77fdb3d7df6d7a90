"""A network of MLX as a backbone: what torch's backbone answers, one forward and one wait for a whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn as torch_nn

pytest.importorskip("mlx.core")

import mlx.core as mx
import mlx.nn as mlx_nn

from skipstone import registry
from skipstone.engine import drivers
from skipstone.engine.contracts import ATTENTION
from skipstone.engine.drivers import denoise, denoise_many
from skipstone.engine.requests import Problem, Query, Status
from skipstone.errors import BackboneError
from skipstone.integrations.mlx.backbone import MlxBackbone
from skipstone.integrations.mlx.denoiser import Denoiser
from skipstone.integrations.mlx.overflow import check_overflow
from skipstone.integrations.torch import ModuleBackbone
from skipstone.numerics.noise import standard_normal
from skipstone.numerics.schedule import FlowMatching
from skipstone.numerics.tables import CosineTable
from skipstone.solvers import DDIM
from skipstone.testing import compare_decisions

GRID = tuple(1 - k / 20 for k in range(21))
DECIDING = ("third_order(tol=0.02)", "error_control(tol=0.05)", "stride(tol=0.05)", "early_stop(tol=0.2)")


class TorchNet(torch_nn.Module):
    """A small denoiser whose output depends on every argument."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = torch_nn.Conv2d(4, 4, 3, padding=1)
        self.read = torch_nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        clock = torch.cos(timesteps / 300)[:, None]
        return torch.tanh(self.mix(x) + (self.read(cond) * clock)[:, :, None, None])


class MlxNet(mlx_nn.Module):
    """The same on MLX."""

    def __init__(self) -> None:
        super().__init__()
        net = TorchNet()
        self.mix, self.read = mlx_nn.Conv2d(4, 4, 3, padding=1), mlx_nn.Linear(3, 4)
        self.mix.weight = mx.array(net.mix.weight.detach().numpy()).transpose(0, 2, 3, 1)
        self.mix.bias = mx.array(net.mix.bias.detach().numpy())
        self.read.weight, self.read.bias = (mx.array(p.detach().numpy()) for p in (net.read.weight, net.read.bias))
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, x: Any, timesteps: Any, cond: Any) -> Any:
        self.seen.append(tuple(x.shape))
        clock = mx.cos(timesteps / 300)[:, None].astype(x.dtype)
        return mx.tanh(self.mix(x) + (self.read(cond) * clock)[:, None, None])


def call(network: Any, x: Any, timesteps: Any, condition: Mapping[str, Any]) -> Any:
    return network(x, timesteps, condition["words"])


def mlx_backbone(guidance: float = 3.0, network: Any = None, **options: Any) -> MlxBackbone:
    network = MlxNet() if network is None else network  # a module without weights is an empty dictionary
    return MlxBackbone(Denoiser(lambda: network, call, **options), CosineTable(), "v", guidance)


def torch_backbone(guidance: float = 3.0) -> ModuleBackbone:
    return ModuleBackbone(TorchNet().eval(), CosineTable(), "v", guidance)


def problem(seed: int, branches: int = 2) -> Problem:
    cond = {"cond": {"words": mx.full((3,), float(seed))}, "uncond": {"words": mx.zeros((3,))}}
    return Problem(CosineTable(), standard_normal(seed, 0, mx.zeros((4, 6, 8))), GRID, cond, seed, branches)


def torch_problem(seed: int, branches: int = 2) -> Problem:
    cond = {"cond": torch.full((3,), float(seed)), "uncond": torch.zeros(3)}
    return Problem(CosineTable(), standard_normal(seed, 0, torch.empty(4, 6, 8)), GRID, cond, seed, branches)


def query(seed: int, t: float, **more: Any) -> Query:
    return Query(problem(seed).x, t, problem(seed).cond, **more)


def close(ours: Any, theirs: Any, limit: float = 1e-5) -> bool:
    ours, theirs = np.array(ours), np.array(theirs)
    return bool(np.abs(ours - theirs).max() <= limit * np.abs(theirs).max())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_it_answers_what_torch_answers_each_query_at_its_own_time(guidance: float) -> None:
    ours, theirs = mlx_backbone(guidance), torch_backbone(guidance)
    asked = [(1, 0.5), (2, 0.25), (3, 1.0)]
    answers = ours.predict([query(s, t) for s, t in asked])
    expected = theirs.predict([Query(torch_problem(s).x, t, torch_problem(s).cond) for s, t in asked])
    for one, other in zip(answers, expected, strict=True):
        assert close(one.x0, other.x0)
        assert close(one.output, other.output)
        assert (one.cost, one.prediction) == (other.cost, other.prediction)
    assert ours.denoiser.network.seen == [(3 * ours.branches, 6, 8, 4)]


def test_a_given_branch_stays_out_of_the_network_and_is_used_as_it_is() -> None:
    model = mlx_backbone()
    (full,) = model.predict([query(1, 0.5, wanted_sites=frozenset({"cond", "uncond"}))])
    with model.denoiser.count() as counted:
        known = {"uncond": full.features["uncond"]}
        (half,) = model.predict([query(1, 0.5, known_outputs=known, wanted_sites=frozenset({"cond"}))])
        (free,) = model.predict([query(1, 0.5, known_outputs=dict(full.features))])
    assert (counted.rows, counted.forwards, half.cost, free.cost) == (1, 1, 0.5, 0.0)
    assert half.features.keys() == {"cond"}
    assert close(half.output, full.output)
    assert close(free.output, full.output)


def test_what_entered_is_counted_in_the_block_alone() -> None:
    model = mlx_backbone()
    with model.denoiser.count() as outer:
        model.predict([query(1, 0.5)])
        with model.denoiser.count() as inner:
            model.predict([query(1, 0.5), query(2, 0.5)])
    model.predict([query(1, 0.5)])
    assert (outer.rows, inner.rows, outer.forwards, inner.forwards) == (6, 4, 2, 1)


class Waits:
    """Counts what makes Python wait for MLX, and what starts a computation without waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fetched = self.values = self.started = 0
        own, started = drivers.to_floats, mx.async_eval

        def to_floats(values: Any) -> list[float]:
            self.fetched += 1
            self.values += len(values)
            return own(values)

        def async_eval(*arrays: Any) -> None:
            self.started += 1
            started(*arrays)

        def evaluate(*arrays: Any) -> None:
            raise AssertionError("A step waited outside of the transfer of its signals.")

        monkeypatch.setattr(drivers, "to_floats", to_floats)
        monkeypatch.setattr(mx, "async_eval", async_eval)
        monkeypatch.setattr(mx, "eval", evaluate)


@pytest.mark.parametrize("spec", ["fixed", *DECIDING])
def test_a_step_of_the_whole_batch_is_waited_for_once(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of samples that decide alike; the transfer at the end finds NaN."""
    model, waits, policy = mlx_backbone(), Waits(monkeypatch), registry.parse("policy", spec)
    results = denoise_many(model, [problem(1)] * 3, DDIM(), policy)
    attempts = results[0].run.attempts
    # A step that is tried again is judged by the signals of its call, which are not fetched anew.
    assert 1 <= waits.fetched <= sum(bool(a.signals) for a in attempts) + 1 <= len(attempts) + 1
    assert waits.started == len(model.denoiser.network.seen) == sum(a.cost > 0 for a in attempts)


@pytest.mark.parametrize("spec", DECIDING)
def test_samples_that_decide_differently_wait_once_for_each_of_their_steps(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample that skips goes on while others call, so that its next call is in one forward with theirs."""
    model, waits, policy = mlx_backbone(), Waits(monkeypatch), registry.parse("policy", spec)
    runs = [r.run for r in denoise_many(model, [problem(s) for s in range(3)], DDIM(), policy)]
    assert len(runs) <= waits.values <= sum(len(a.signals) for run in runs for a in run.attempts) + len(runs)
    most = max(sum(a.cost > 0 for a in run.attempts) for run in runs)
    assert most <= waits.started <= sum(a.cost > 0 for run in runs for a in run.attempts) / 2
    skipped = sum(a.cost == 0 for run in runs for a in run.attempts)
    assert waits.fetched <= waits.started + skipped + 1


@pytest.mark.parametrize("spec", DECIDING)
def test_runs_are_those_of_torch_and_a_batch_is_its_samples(spec: str) -> None:
    policy = registry.parse("policy", spec)
    together = denoise_many(mlx_backbone(), [problem(s) for s in range(3)], DDIM(), policy)
    for seed, ours in enumerate(together):
        theirs = denoise(torch_backbone(), torch_problem(seed), DDIM(), policy)
        assert compare_decisions(policy, [theirs], [ours], rel=0.0).agree
        assert ours.run.cost == theirs.run.cost
        assert close(ours.x, theirs.x, 1e-4)


def test_a_compiled_denoiser_is_compiled_once_for_each_number_of_rows() -> None:
    model, plain = mlx_backbone(compiled=True), mlx_backbone()
    policy = registry.parse("policy", "third_order(tol=0.02)")
    problems = [problem(s) for s in range(3)]
    compiled, expected = (denoise_many(b, problems, DDIM(), policy) for b in (model, plain))
    shapes = set(plain.denoiser.network.seen)
    assert len(shapes) < len(plain.denoiser.network.seen)  # samples skip at different steps: batches differ in size
    assert model.denoiser.compilations == len(shapes)
    for one, other in zip(compiled, expected, strict=True):
        assert close(one.x, other.x)
    model.denoiser.release()
    model.predict([query(1, 0.5)])
    assert (model.denoiser.compilations, plain.denoiser.compilations) == (1, 0)


def test_a_denoiser_computes_in_its_dtype_and_answers_in_that_of_the_sample() -> None:
    network = MlxNet()
    network.set_dtype(mx.bfloat16)
    seen = []

    def spy(network: Any, x: Any, timesteps: Any, condition: Mapping[str, Any]) -> Any:
        seen.append((x.dtype, timesteps.dtype, condition["words"].dtype))
        return call(network, x, timesteps, condition)

    denoiser = Denoiser(lambda: network, spy, mx.bfloat16)
    (answer,) = MlxBackbone(denoiser, CosineTable(), "v", 1.0).predict([query(1, 0.5)])
    assert seen == [(mx.bfloat16, mx.float32, mx.bfloat16)]
    assert answer.output.dtype == answer.x0.dtype == mx.float32
    assert (denoiser.dtype, denoiser.device.split()[0]) == ("bfloat16", "mlx")


class Overflows(mlx_nn.Module):
    """A network that puts out infinity below t = 0.5."""

    def __call__(self, x: Any, timesteps: Any, cond: Any) -> Any:
        return mx.where(timesteps[:, None, None, None] < 500, mx.array(60000.0).astype(x.dtype) * 2, x)


def test_an_overflow_is_found_at_its_step() -> None:
    model = mlx_backbone(1.0, Overflows(), dtype=mx.float16)
    policy = registry.parse("policy", "fixed")
    one = replace(problem(1), branches=1)
    result = denoise(model, one, DDIM(), policy)
    assert result.status is Status.nonfinite
    with pytest.raises(BackboneError, match=r"at t=0\.5 .*float16.*dtype='bfloat16'"):
        check_overflow(model, one, DDIM(), result.run, "float16")


def test_what_it_cannot_do_is_said() -> None:
    model = mlx_backbone()
    with pytest.raises(BackboneError, match="refine"):
        model.predict([query(1, 0.5, wanted_sites=frozenset({ATTENTION}))])
    with pytest.raises(BackboneError, match="Sites of this model: cond, uncond"):
        model.predict([query(1, 0.5, known_outputs={"mid": mx.zeros((4, 6, 8))})])
    with pytest.raises(BackboneError, match="mapping with 'cond', got list"):
        model.predict([replace(query(1, 0.5), cond=[1])])
    with pytest.raises(BackboneError, match="Expected conditions"):
        model.predict([query(1, 0.5), replace(query(1, 0.5), cond={"cond": {}, "uncond": {}})])
    wrong = MlxBackbone(Denoiser(lambda: None, lambda n, x, t, c: x[:, :1]), FlowMatching(), "flow", 1.0)
    with pytest.raises(BackboneError, match="answered"):
        wrong.predict([query(1, 0.5)])
