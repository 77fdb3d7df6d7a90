"""What the guest promises beside the matrix: accounts, cut runs, declarations of third parties, saved policies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import skipstone
from skipstone.engine.trace import load
from skipstone.errors import GuestError, SpecError
from skipstone.integrations.diffusers import pipeline_specs as families
from skipstone.integrations.diffusers import scheduler_specs as schedulers
from skipstone.integrations.diffusers.noise_levels import table_levels
from skipstone.testing import check_id
from skipstone.testing.guest import FreezeAt, GuestSetup, guest_checks

from .families import FAMILIES, build, with_scheduler


def setup(name: str, **change: Any) -> GuestSetup:
    family = FAMILIES[name]
    return GuestSetup(lambda: build(name), lambda *a: family.inputs(*a) | change, family.after)


# -- runs that end before the scheduler does ------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["euler", "ddim", "dpmpp", "heun", "euler-ancestral"])
def test_a_frozen_sample_meets_denoising_end_at_its_noise_level(scheduler: str) -> None:
    tried = setup("sdxl", denoising_end=0.6)
    pipe = with_scheduler(tried.make(), scheduler)
    bare = tried.bare(pipe)
    ahead = bare.trajectory
    assert ahead is not None
    assert not ahead.reaches_end
    assert ahead.end.sigma > 0.1
    k = ahead.stages[0] + ahead.stages[1] - 1  # the last call before the decision after two steps
    output, x = bare.calls[k]
    x0 = ahead.x0(k, output[0], x[0])
    start = ahead.calls[k + 1]
    at_start = bare.calls[k + 1][1][0] * start.scale
    noise = (at_start - start.alpha * x0) / start.sigma
    expected = (ahead.end.alpha * x0 + ahead.end.sigma * noise) / ahead.end.scale
    made, guest, _ = tried.adapted(pipe, FreezeAt(2, 0))
    assert (made[0] - expected).norm() / expected.norm() < 1e-5
    assert guest.last[0].calls == k + 1
    assert guest.last[1].calls == len(ahead.calls)


def test_base_and_refiner_make_one_run() -> None:
    from .families.unets import base_and_refiner

    base, fine = build("sdxl"), build("sdxl-refiner")
    bare = base_and_refiner(base, fine, 2, 10, 0.6)
    with skipstone.adapt(base, "fixed") as first, skipstone.adapt(fine, "fixed") as second:
        assert torch.equal(base_and_refiner(base, fine, 2, 10, 0.6), bare)
    assert first.last[0].full_calls + second.last[0].full_calls == 10
    with skipstone.adapt(base, "interval(warmup=2)") as first, skipstone.adapt(fine, "interval(warmup=2)") as second:
        made = base_and_refiner(base, fine, 2, 10, 0.6)
    assert torch.isfinite(made).all()
    assert first.last.saved > 0
    assert second.last.saved > 0


# -- the account ----------------------------------------------------------------------------------


@pytest.fixture
def adapted() -> skipstone.Adapted:
    pipe = build("sd15")
    with skipstone.adapt(pipe, "interval(warmup=2)") as guest:
        pipe(**FAMILIES["sd15"].inputs(pipe, 3, 8))
    return guest


def test_the_account_tells_calls_and_decisions(adapted: skipstone.Adapted) -> None:
    last = adapted.last
    assert len(last) == 3
    assert last[0].decisions == "CC.C.C.C"
    assert last.policy == "interval(warmup=2)"
    assert last[0].calls == 6  # PNDM calls twice in its first step
    assert last[0].full_calls == 9
    assert last.saved == pytest.approx(1 / 3)
    assert last.summary().splitlines()[0].startswith("interval(warmup=2): 6 calls over 3 samples, 33% saved")
    assert "the bare run makes 9" in last[0].explain()
    read = json.loads(last.to_json())
    assert [s["decisions"] for s in read["samples"]] == ["CC.C.C.C"] * 3
    assert sum(s["seconds"] for s in read["samples"]) <= read["seconds"]


def test_the_account_plots_and_saves(adapted: skipstone.Adapted, tmp_path: Path) -> None:
    adapted.last.plot().savefig(tmp_path / "decisions.png")
    assert (tmp_path / "decisions.png").read_bytes().startswith(b"\x89PNG")
    adapted.last[1].save(tmp_path / "run.json", prompt="a frog")
    trace = load(tmp_path / "run.json")
    assert trace.run == adapted.last[1].run
    assert trace.meta["prompt"] == "a frog"


# -- policies -------------------------------------------------------------------------------------


def test_a_saved_policy_is_loaded_by_its_folder(tmp_path: Path) -> None:
    skipstone.save_policy("third_order(tol=0.5) | budget(calls=6)", tmp_path / "mine", prompts=300)
    pipe = build("sd15")
    for given in (tmp_path / "mine", str(tmp_path / "mine")):
        with skipstone.adapt(pipe, given) as guest:
            pipe(**FAMILIES["sd15"].inputs(pipe, 1, 8))
        assert guest.last.policy == "third_order(tol=0.5) | budget(calls=6)"
        assert guest.last[0].calls <= 6


@pytest.mark.parametrize("content", [None, "", "{}", '{"policy": 3}', '{"policy": "nonsense"}', "[]"])
def test_what_is_no_saved_policy_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "policy.json").write_text(content)
    with pytest.raises(SpecError, match="policy"):
        skipstone.load_policy(tmp_path)


# -- third parties --------------------------------------------------------------------------------


class FurtherPipeline(diffusers.DDIMPipeline):
    """Its denoiser has a name of its own."""

    def __init__(self, network: torch.nn.Module, scheduler: Any) -> None:
        diffusers.DiffusionPipeline.__init__(self)
        self.register_modules(network=network, scheduler=scheduler)

    @property
    def unet(self) -> Any:
        return self.network


class FurtherScheduler(diffusers.SchedulerMixin, diffusers.ConfigMixin):
    """DDIM by another name and without its class."""

    order = 1

    @diffusers.configuration_utils.register_to_config
    def __init__(self, num_train_timesteps: int = 1000) -> None:
        self.inner = diffusers.DDIMScheduler(clip_sample=False)
        self.init_noise_sigma = 1.0

    def __getattr__(self, name: str) -> Any:
        if name in ("timesteps", "alphas_cumprod"):
            return getattr(self.inner, name)
        return super().__getattr__(name)

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        self.inner.set_timesteps(*args, **kwargs)

    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        return sample

    def step(self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.0, **kwargs: Any) -> Any:
        return self.inner.step(model_output, timestep, sample, eta=eta, **kwargs)


@pytest.fixture
def declared() -> Any:
    before = dict(families._SPECS), dict(schedulers._SPECS)
    yield
    families._SPECS.clear()
    families._SPECS.update(before[0])
    schedulers._SPECS.clear()
    schedulers._SPECS.update(before[1])


def further() -> Any:
    unet = build("ddim").unet
    pipe = FurtherPipeline(unet, FurtherScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_what_nobody_declared_is_refused_with_what_to_type(declared: Any) -> None:
    with pytest.raises(GuestError, match=r"FurtherScheduler is not a scheduler that is known.*SchedulerSpec"):
        skipstone.adapt(further(), "fixed")


def test_a_declared_pipeline_and_scheduler_pass_the_public_checks(declared: Any) -> None:
    families.register_pipeline(families.PipelineSpec(("FurtherPipeline",), "Further", denoisers=("network",)))
    schedulers.register_scheduler(schedulers.SchedulerSpec("further", ("FurtherScheduler",), table_levels))
    checks: list[Callable[[], None]] = list(
        guest_checks(GuestSetup(further, FAMILIES["ddim"].inputs, FAMILIES["ddim"].after))
    )
    assert len({check_id(c) for c in checks}) == 5
    for check in checks:
        check()


class NobodysPipeline(diffusers.DiffusionPipeline):
    """DDIM that nobody declared."""

    def __init__(self, unet: torch.nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    __call__ = diffusers.DDIMPipeline.__call__


def test_an_undeclared_pipeline_is_verified_once() -> None:
    pipe = build("ddim")
    mine = NobodysPipeline(pipe.unet, pipe.scheduler)
    mine.set_progress_bar_config(disable=True)
    with skipstone.adapt(mine, "fixed") as guest:
        mine(**FAMILIES["ddim"].inputs(mine, 2, 4))
        assert guest.last.verified == 0, "nothing enters apart"
    with skipstone.adapt(mine, FreezeAt(2, 0)) as guest:
        mine(**FAMILIES["ddim"].inputs(mine, 2, 4))
        assert guest.last.verified == 3, "both rows one by one, and the frozen one in the whole batch"
        assert [s.calls for s in guest.last] == [2, 4]
        mine(**FAMILIES["ddim"].inputs(mine, 2, 4))
        assert guest.last.verified == 0
