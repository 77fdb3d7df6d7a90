"""A bare run costs what the pipeline asks for, step by step; what `scheduler.step` is told must be understood."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

import skipstone
from skipstone.errors import GuestError
from skipstone.integrations.diffusers.scheduler_specs import STEP_ARGUMENTS, list_scheduler_specs
from skipstone.testing.guest import count_rows

from .families import FAMILIES, build, with_scheduler
from .runs import BATCH, STEPS, call_inputs, run_bare

Switch = Callable[[int], bool]
SWITCHES: dict[str, Switch] = {
    "off": lambda step: step < 6,
    "on": lambda step: step >= 6,
    "off and on again": lambda step: not 4 <= step < 9,
    "an interval": lambda step: 4 <= step < 9,
    "at every other step": lambda step: step % 2 == 0,
    "never on": lambda step: False,
}


def switching(pipe: Any, on: Switch) -> dict[str, Any]:
    """Arguments of a call whose guidance is on at some steps only, by a callback that diffusers documents."""
    inputs = call_inputs(pipe)
    both = {}

    def switch(p: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        states = both.setdefault("states", values["prompt_embeds"])
        p._guidance_scale = 4.0 if on(step + 1) else 1.0
        if len(states) == 2 * BATCH:
            values["prompt_embeds"] = states if on(step + 1) else states[BATCH:]
        return values

    return {
        **inputs,
        "callback_on_step_end": switch,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }


@pytest.mark.parametrize("name", [n for n, on in SWITCHES.items() if on(0)])
def test_fixed_saves_nothing_whatever_guidance_does(pipe: Any, name: str) -> None:
    call = switching(pipe, SWITCHES[name])
    with count_rows(pipe) as counter:
        bare = pipe(**call).images
    asked = counter.rows
    assert BATCH * STEPS < asked <= 2 * BATCH * STEPS
    call = switching(pipe, SWITCHES[name])
    with skipstone.adapt(pipe, "fixed") as guest, count_rows(pipe) as counter:
        out = pipe(**call).images
    assert torch.equal(out, bare)
    assert counter.rows == asked
    assert guest.last.saved == 0.0
    assert all(s.calls == s.full_calls == asked / BATCH / 2 for s in guest.last)
    call = switching(pipe, SWITCHES[name])
    with skipstone.adapt(pipe, "interval(every=2)") as guest, count_rows(pipe) as counter:
        pipe(**call)
    assert guest.last.saved == pytest.approx(1 - counter.rows / asked)


@pytest.mark.parametrize("on", [lambda step: step >= 3, lambda step: 3 <= step < 6])
def test_guidance_that_begins_late_counts_as_it_is_asked_for(on: Switch) -> None:
    """A pipeline of one network call, and of two within an interval of its steps."""

    class Interval(diffusers.DiffusionPipeline):
        def __init__(self, unet: Any, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

        def __call__(self) -> torch.Tensor:
            self.scheduler.set_timesteps(10)
            x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
            for i, t in enumerate(self.scheduler.timesteps):
                output = self.unet(x, t)[0]
                if on(i):
                    output = output + 0.5 * (output - self.unet(-x, t)[0])
                x = self.scheduler.step(output, t, x).prev_sample
            return x

    tiny = build("ddim")
    pipe = Interval(tiny.unet, tiny.scheduler)
    with count_rows(pipe) as counter:
        bare = pipe()
    with skipstone.adapt(pipe, "fixed") as guest:
        assert torch.equal(pipe(), bare)
    assert guest.last.saved == 0.0
    assert guest.last[0].full_calls == counter.rows / 2 == 10 + sum(map(on, range(10)))


def test_an_interrupted_run_is_compared_with_what_it_asked_for(pipe: Any) -> None:
    def stop(p: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        p._interrupt = step == 9
        return values

    with skipstone.adapt(pipe, "fixed") as guest:
        run_bare(pipe, callback_on_step_end=stop)
    assert guest.last.saved == 0.0
    assert guest.last[0].full_calls == 10


# -- what scheduler.step is told --------------------------------------------------------------------


class Teller(diffusers.DiffusionPipeline):
    """A pipeline that tells its scheduler more than its network's output."""

    def __init__(self, unet: Any, scheduler: Any, told: dict[str, Any]) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.told = told

    def __call__(self) -> torch.Tensor:
        self.scheduler.set_timesteps(8)
        x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            x = self.scheduler.step(self.unet(scaled, t)[0], t, x, **self.told).prev_sample
        return x


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ("EulerDiscreteScheduler", {"s_churn": 1.0}),
        ("FlowMatchEulerDiscreteScheduler", {"s_churn": 1.0}),
        ("FlowMatchEulerDiscreteScheduler", {"per_token_timesteps": torch.full((1, 3), 500.0)}),
        ("EDMEulerScheduler", {"pred_original_sample": torch.zeros(1, 3, 8, 8)}),
    ],
)
def test_an_argument_of_step_that_changes_what_the_output_means_is_refused(scheduler: str, told: Any) -> None:
    pipe = Teller(build("ddim").unet, getattr(diffusers, scheduler)(), told)
    with skipstone.adapt(pipe, "fixed"), pytest.raises(GuestError, match=rf"{scheduler}.step with {next(iter(told))}"):
        pipe()


@pytest.mark.parametrize("told", [{"s_churn": 0.0}, {"s_tmin": 0.5}, {"generator": torch.Generator()}])
def test_arguments_of_step_at_their_defaults_or_known_are_not(told: dict[str, Any]) -> None:
    pipe = Teller(build("ddim").unet, diffusers.EulerDiscreteScheduler(), told)
    bare = pipe()
    with skipstone.adapt(pipe, "fixed"):
        assert torch.equal(pipe(), bare)


def is_available(kind: Any) -> bool:
    """Whether diffusers has a scheduler; where a library that it needs is missing, a placeholder is in its place."""
    return kind is not None and not hasattr(kind, "_backends")


def test_every_argument_of_every_declared_step_is_known_or_was_looked_at() -> None:
    """A new version of diffusers may bring arguments that nobody here has read about."""
    looked_at = {"s_churn", "per_token_timesteps", "pred_original_sample"}  # refused: they change the meaning
    for spec in list_scheduler_specs():
        for name in spec.schedulers:
            if is_available(kind := getattr(diffusers, name, None)):
                known = {"self", "model_output", "timestep", "sample"} | STEP_ARGUMENTS | looked_at
                assert not set(inspect.signature(kind.step).parameters) - known, name


def test_noise_by_eta_rules_a_takeover_out(pipe: Any) -> None:
    pipe = with_scheduler(pipe, "ddim")
    with skipstone.adapt(pipe, "adaptive_grid"), pytest.raises(GuestError, match=r"its scheduler adds noise \(eta\)"):
        run_bare(pipe, eta=0.5)
    with skipstone.adapt(pipe, "fixed"):
        assert torch.equal(run_bare(pipe, eta=0.5), run_bare(pipe, eta=0.5))


def test_a_scheduler_with_a_step_of_its_own_is_refused(pipe: Any) -> None:
    class Mine(diffusers.DDIMScheduler):
        def step(self, model_output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
            return super().step(-model_output, timestep, sample, **kwargs)

    class Kept(diffusers.DDIMScheduler):
        pass

    class DDIMScheduler(Mine):
        """A namesake of the one in diffusers."""

        step = Mine.step

    for kind in (Mine, DDIMScheduler):
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        with pytest.raises(GuestError, match=r"has a step of its own.*register_scheduler"):
            skipstone.adapt(pipe, "fixed")
    pipe.scheduler = Kept.from_config(pipe.scheduler.config)
    with skipstone.adapt(pipe, "third_order") as guest:
        run_bare(pipe)
    assert len(guest.last) == BATCH


def test_ltx_conditions_are_refused_by_name() -> None:
    """Times of each token turn the sign of the output around."""
    like = build("ltx")
    pipe = diffusers.LTXConditionPipeline(**like.components)
    pipe.set_progress_bar_config(disable=True)
    call = {k: v for k, v in FAMILIES["ltx"].inputs(like, 1, 6).items() if k != "latents"}
    with skipstone.adapt(pipe, "fixed"), pytest.raises(GuestError, match="step with per_token_timesteps"):
        pipe(**call)
