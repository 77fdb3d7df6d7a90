"""What cannot be adapted says so, what to type instead, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import nn

import skipstone
from skipstone.errors import GuestError, GuestWarning, SpecError
from skipstone.testing.guest import FreezeAt, count_rows

from .families import build, with_scheduler
from .families.parts import generators
from .runs import BATCH, SPECS, assert_near, call_inputs, run_adapted, run_bare, tiny_pipeline

PID = {"policy": "pid", "solver": "dpm_adaptive"}


class Bare(DiffusionPipeline):
    """A pipeline with these components, whose loop the tests write."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.register_modules(**parts)


class Mean(nn.Module):
    """A denoiser; `coupling` makes its rows depend on each other, or on an argument that holds no rows."""

    def __init__(self, coupling: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.coupling = coupling

    def forward(self, sample: torch.Tensor, timestep: Any, table: torch.Tensor | None = None) -> tuple[torch.Tensor]:
        said = torch.tanh(self.weight * sample + float(timestep) / 1000)
        return (said + self.coupling * sample.mean(dim=0, keepdim=True),)


class Plain(Bare):
    """The smallest pipeline there is, with a denoiser under one of the usual names."""

    def __call__(self, batch: int = 3, steps: int = 12) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        x = torch.stack([torch.randn(2, 4, 4, generator=g) for g in generators(batch)])
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t, table=torch.zeros(7))[0], t, x).prev_sample
        return x


def small(model: Any) -> Plain:
    return Plain(unet=model, scheduler=DDIMScheduler(clip_sample=False))


# -- at adapt() -----------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", ["unet", "text", None, 3, object()], ids=["network", "text", "None", "3", "object"])
def test_what_is_not_a_pipeline(pipe: Any, thing: Any) -> None:
    got = pipe.unet if thing == "unet" else thing
    with pytest.raises(GuestError, match=rf"Expected a diffusers pipeline, got {type(got).__name__}.*from_pretrained"):
        skipstone.adapt(got, "third_order")


def test_a_pipeline_without_denoiser_or_scheduler(pipe: Any) -> None:
    with pytest.raises(GuestError, match=r"Bare has none of unet.*PipelineSpec\(\('Bare',\)"):
        skipstone.adapt(Bare(scheduler=pipe.scheduler, net=pipe.unet))
    with pytest.raises(GuestError, match="no scheduler"):
        skipstone.adapt(Bare(unet=pipe.unet))


@pytest.mark.parametrize("name", ["Bare", "StableDiffusionPipeline"])
def test_a_pipeline_without_a_loop(pipe: Any, name: str) -> None:
    kind = type(name, (Bare,), {})
    with pytest.raises(GuestError, match=rf"{name} has no __call__.*Define __call__"):
        skipstone.adapt(kind(unet=pipe.unet, scheduler=pipe.scheduler))


def test_a_denoiser_that_is_not_a_torch_module(pipe: Any) -> None:
    class OnnxRuntimeModel:
        config: Any = None

    pipe.unet = OnnxRuntimeModel()
    with pytest.raises(GuestError, match=r"OnnxRuntimeModel, not a torch module.*PyTorch weights"):
        skipstone.adapt(pipe, "fixed")


@pytest.mark.parametrize(
    ("policy", "kind", "says"),
    [
        ("thrid_order", SpecError, "third_order"),
        ("third_order(tol=-1)", SpecError, "tol"),
        ("third_order(", SpecError, "third_order"),
        (None, GuestError, "Expected a policy"),
        (7, GuestError, "got int"),
        ("pid", GuestError, "solver='dpm_adaptive'"),
        ("pid | third_order", GuestError, "solver='dpm_adaptive'"),
    ],
)
def test_a_policy_that_will_not_do(pipe: Any, policy: Any, kind: type[Exception], says: str) -> None:
    before = type(pipe)
    with pytest.raises(kind, match=says.replace("(", r"\(").replace(")", r"\)")):
        skipstone.adapt(pipe, policy)
    assert type(pipe) is before


def test_a_solver_that_will_not_do(pipe: Any) -> None:
    with pytest.raises(SpecError, match="dpm_adaptive"):
        skipstone.adapt(pipe, "pid", solver="dpm_adaptiv")
    assert "skipstone" not in repr(vars(type(pipe)).keys())


# -- at the call ----------------------------------------------------------------------------------


def test_too_few_steps_to_save_any(pipe: Any) -> None:
    with pytest.warns(GuestWarning, match="interval always calls the first 3 and the last 1 steps, and this run has 4"):
        ran = run_adapted(pipe, "interval(every=2)", steps=4)
    assert ran.account.saved == 0
    assert torch.equal(ran.output, run_bare(pipe, steps=4))


@pytest.mark.filterwarnings("error::skipstone.errors.GuestWarning")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_runs(pipe: Any, steps: int) -> None:
    for spec in ("fixed", "early_stop(tol=1.0)", "guidance_gate(below=1.0)"):
        assert_near(run_adapted(pipe, spec, steps=steps).output, run_bare(pipe, steps=steps), 0.3 * (spec != "fixed"))


def test_a_mistake_in_the_call_is_the_pipelines_to_tell(pipe: Any) -> None:
    def error(**wrong: Any) -> tuple[type, str]:
        with pytest.raises(Exception, match=r".") as caught:
            run_bare(pipe, **wrong)
        return caught.type, str(caught.value)

    mistakes: list[dict[str, Any]] = [
        {"generator": generators(2)},
        {"prompt": None},
        {"prompt": 7},
        {"callback_on_step_end_tensor_inputs": ["no such"]},
        {"prompt_embeds": torch.zeros(BATCH, 16, 8)},
        {"prompt": None, "negative_prompt": None, "prompt_embeds": torch.zeros(BATCH, 16, 5), "guidance_scale": 1.0},
    ]
    expected = [error(**wrong) for wrong in mistakes]
    reference, classes = run_bare(pipe), [type(c) for c in pipe.components.values()]
    with skipstone.adapt(pipe, SPECS[1]):
        for wrong, (kind, text) in zip(mistakes, expected, strict=True):
            got, said = error(**wrong)
            assert got is kind
            assert said == text or kind is TypeError
            assert [type(c) for c in pipe.components.values()] == classes
    assert torch.equal(run_bare(pipe), reference)


def test_a_pipeline_that_never_steps(pipe: Any) -> None:
    class Stepless(Plain):
        def __call__(self, steps: int = 12) -> torch.Tensor:
            self.scheduler.set_timesteps(steps)
            x = torch.zeros(2, 2, 4, 4)
            for t in self.scheduler.timesteps:
                x = x - 0.01 * self.unet(x, t)[0]
            return x

    stepless = Stepless(unet=Mean(), scheduler=DDIMScheduler())
    with skipstone.adapt(stepless, "fixed"), pytest.raises(GuestError, match="cannot be adapted"):
        stepless()
    with skipstone.adapt(stepless, "fixed"), pytest.raises(GuestError, match=r"never the step of DDIMScheduler"):
        stepless(steps=3)
    assert type(stepless.unet) is Mean
    assert stepless(steps=3).isfinite().all()


# -- rows that are not independent ----------------------------------------------------------------


def test_an_undeclared_pipeline_verifies_its_rows() -> None:
    good = small(Mean())
    reference = good()
    with skipstone.adapt(good, "fixed") as guest:
        assert torch.equal(good(), reference)
    assert [s.decisions for s in guest.last] == ["C" * 12] * 3
    coupled = small(Mean(coupling=0.5))
    expected = coupled()
    with skipstone.adapt(coupled, "fixed", verify_rows=True):
        assert torch.equal(coupled(), expected), "nothing enters apart"
    with skipstone.adapt(coupled, FreezeAt(6, 0), verify_rows=True), pytest.raises(GuestError) as caught:
        coupled()
    for word in ("Mean", "not independent", "table (7,)", "per_sample=False"):
        assert word in str(caught.value)
    assert type(coupled.unet) is Mean


def test_rows_that_depend_on_each_other_enter_together_without_per_sample() -> None:
    coupled = small(Mean(coupling=0.5))
    reference = coupled()
    entered: list[int] = []
    coupled.unet.register_forward_pre_hook(lambda module, args: entered.append(args[0].shape[0]))
    for spec in ("fixed", *SPECS):
        with skipstone.adapt(coupled, spec, per_sample=False) as guest:
            assert_near(coupled(), reference, 0.0 if spec == "fixed" else 0.3)
        assert len({s.decisions for s in guest.last}) == 1
    assert set(entered) == {3}


# -- taking the loop over -------------------------------------------------------------------------


def test_pid_with_a_solver_of_its_own(pipe: Any) -> None:
    steps = 100
    with skipstone.adapt(pipe, **PID) as guest, count_rows(pipe) as counter:
        taken = run_bare(pipe, steps=steps)
    assert counter.rows == 2 * sum(s.calls for s in guest.last) == 2 * sum(s.run.cost for s in guest.last)
    assert guest.last.saved > 0.5
    assert_near(taken, run_bare(pipe, steps=steps), 0.02)


def refused(pipe: Any, says: str, family: str = "sd15", **more: Any) -> None:
    reference = run_bare(pipe, family=family, **more)
    with skipstone.adapt(pipe, **PID), pytest.raises(GuestError, match=says):
        run_bare(pipe, family=family, **more)
    assert torch.equal(run_bare(pipe, family=family, **more), reference)


def test_pid_where_something_else_acts_between_the_steps(pipe: Any) -> None:
    def edit(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] + 0.1}

    refused(pipe, "a callback changed latents", callback_on_step_end=edit)
    refused(with_scheduler(pipe, "euler-ancestral"), "adds noise at every step")
    refused(with_scheduler(pipe, "ddim"), "adds noise", eta=0.5)


def test_pid_with_a_controlnet_that_leaves_on_the_way() -> None:
    refused(build("controlnet-sd"), "control_guidance_end changes", "controlnet-sd", control_guidance_end=0.5)


# -- before the first call ------------------------------------------------------------------------


def test_before_the_first_call_there_is_no_account() -> None:
    pipe = tiny_pipeline()
    with skipstone.adapt(pipe, "third_order") as guest:
        with pytest.raises(GuestError, match=r"has not run yet: call pipe\(\.\.\.\) first"):
            _ = guest.last
        assert repr(guest) == "<StableDiffusionPipeline adapted by third_order>"
        pipe(**call_inputs(pipe))
        assert len(guest.last) == BATCH
