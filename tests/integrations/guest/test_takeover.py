"""Takeover: our own first-order solver on the pipeline's own times must be the pipeline's first-order scheduler."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

import skipstone
from skipstone.errors import GuestError

from .families import FAMILIES, build, with_scheduler

FIRST_ORDER = {
    "sd15": ("ddim", "euler", "euler-karras", "ddim-v", "euler-v"),
    "sd15-img2img": ("ddim", "euler"),
    "sdxl": ("euler", "ddim-trailing"),
    "pixart": ("ddim",),
    "latte": ("ddim",),
    "animatediff": ("ddim",),
    "sd3": ("own",),
    "flux": ("own",),
    "flux-truecfg": ("own",),
    "flux-img2img": ("own",),
    "auraflow": ("own",),
    "chroma": ("own",),
    "ltx": ("own",),
    "hunyuan-video": ("own",),
    "cogvideox": ("own",),
}
REFUSED = {
    "controlnet-sd": "ControlNet",
    "sd15-inpaint": "blended",
    "sd15-inpaint9": "given more than the sample|blended",
    "dit": "more rows than there are samples",
    "text-to-video-sd": "more rows than there are samples",
    "wan22": "take turns",
    "kandinsky22": "adds noise",
    "lumina2": "receives a timestep that is not the scheduler's",
    "cogview4": "names times in a way of its own",
    "qwenimage": "guidance of this run",
    "flux-kontext": "given more than the sample",
    "pag": "attention processors",
    "sd3-slg": "changes the guidance on the way",
    "stable-audio": "names times|receives a timestep|adds noise",
}


def made(pipe: Any, family: str, steps: int, **more: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return FAMILIES[family].after(pipe(**FAMILIES[family].inputs(pipe, 2, steps), **more))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize(("family", "scheduler"), [(f, s) for f, names in FIRST_ORDER.items() for s in names])
def test_our_ddim_is_the_pipelines_first_order_scheduler(family: str, scheduler: str) -> None:
    pipe = build(family) if scheduler == "own" else with_scheduler(build(family), scheduler)
    bare = made(pipe, family, 10)  # divides 1000: else diffusers' DDIM steps beside its own timesteps
    with skipstone.adapt(pipe, "fixed", solver="ddim") as guest:
        assert gap(made(pipe, family, 10), bare) < 5e-5
    assert guest.last.saved == 0


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_taken_over_is_refused(family: str) -> None:
    pipe = build(family)
    with skipstone.adapt(pipe, "fixed", solver="ddim"), pytest.raises(GuestError, match=REFUSED[family]):
        made(pipe, family, 8)
    made(pipe, family, 4)  # and leaves nothing behind


@pytest.mark.parametrize("family", ["controlnet-sd", "lumina2", "qwenimage", "flux-kontext"])
def test_who_named_a_policy_alone_is_told_of_another_policy(family: str) -> None:
    pipe = build(family)
    with skipstone.adapt(pipe, "stride"), pytest.raises(GuestError, match=r"with a policy .* such as error_control\."):
        made(pipe, family, 8)


def test_a_takeover_clips_as_the_scheduler_does() -> None:
    pipe = with_scheduler(build("sd15"), "ddim-clip")
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *a, **k: step(*a, **{**k, "use_clipped_model_output": True})
    bare = made(pipe, "sd15", 12)
    del pipe.scheduler.step
    with skipstone.adapt(pipe, "fixed", solver="ddim"):
        assert gap(made(pipe, "sd15", 12), bare) < 5e-5


def test_a_solver_that_draws_noise_is_refused() -> None:
    pipe = with_scheduler(build("sd15"), "ddim")
    with skipstone.adapt(pipe, "fixed", solver="ddpm"), pytest.raises(GuestError, match="noise of its own"):
        made(pipe, "sd15", 8)


@pytest.mark.parametrize("given", [3, diffusers.DDIMScheduler()])
def test_what_is_no_solver_is_refused(given: Any) -> None:
    with pytest.raises(GuestError, match="Expected a solver"):
        skipstone.adapt(build("sd15"), "fixed", solver=given)


def test_a_controlnet_computes_all_rows_where_the_network_does() -> None:
    pipe = build("controlnet-sd")
    bare = made(pipe, "controlnet-sd", 8)
    with (
        skipstone.adapt(pipe, "guidance_gate(below=1.0)", per_sample=False) as guest,
        pytest.warns(skipstone.errors.GuestWarning, match="more than were wanted"),
    ):
        assert gap(made(pipe, "controlnet-sd", 8), bare) < 1e-5
    assert guest.last.saved == 0


def test_the_first_call_after_a_switch_of_networks_is_whole() -> None:
    pipe = build("wan22")
    with skipstone.adapt(pipe, "guidance_gate(below=1.0)") as guest:
        made(pipe, "wan22", 8)
    decisions, run = guest.last[0].decisions, guest.last[0].run
    switch = next(i for i, a in enumerate(run.past) if a.t < pipe.config.boundary_ratio)
    assert decisions[0] == decisions[switch] == "C"
    assert set(decisions) == {"C", "c"}
