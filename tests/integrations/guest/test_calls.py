"""Every way to call an adapted pipeline: what is asked of it, its times, random numbers, callbacks, interruptions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback

import skipstone
from skipstone.errors import GuestError, GuestWarning
from skipstone.testing.guest import count_rows

from .families import SCHEDULERS, with_scheduler
from .families.parts import generators
from .runs import BATCH, SPECS, STEPS, assert_near, assert_same_as, call_inputs, run_adapted, run_bare, tiny_pipeline

Values = dict[str, Any]


def one_generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def embeds(rows: int = BATCH) -> torch.Tensor:
    return torch.randn(rows, 16, 8, generator=torch.Generator().manual_seed(3))


# -- arguments ------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[], Values]] = {
    "no negative prompts": lambda: {"negative_prompt": None},
    "rescaled guidance": lambda: {"guidance_rescale": 0.7},
    "stochastic DDIM": lambda: {"eta": 0.8},
    "two pictures a prompt": lambda: {"num_images_per_prompt": 2, "generator": generators(2 * BATCH)},
    "one generator": lambda: {"generator": one_generator()},
    "latents": lambda: {"latents": torch.randn(BATCH, 4, 8, 8, generator=one_generator())},
    "embeddings": lambda: {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": embeds(),
        "negative_prompt_embeds": -embeds(),
    },
    "decoded": lambda: {"output_type": "np"},
}


@pytest.mark.parametrize("name", CALLS)
def test_fixed_changes_nothing_and_policies_save(pipe: Any, name: str) -> None:
    make = CALLS[name]
    samples = 2 * BATCH if name == "two pictures a prompt" else BATCH
    reference = torch.as_tensor(run_bare(pipe, **make()))
    assert torch.equal(torch.as_tensor(run_adapted(pipe, "fixed", **make()).output), reference)
    for spec in SPECS[:2]:
        ran = run_adapted(pipe, spec, **make())
        assert len(ran.account) == samples
        assert ran.account.saved > 0
        assert_near(torch.as_tensor(ran.output), reference, 0.2)


def test_without_guidance_there_is_one_branch_and_the_gate_changes_nothing(pipe: Any) -> None:
    unguided = {"guidance_scale": 1.0, "negative_prompt": None}
    reference = run_bare(pipe, **unguided)
    for spec in ("fixed", "guidance_gate(below=1.0)"):
        ran = run_adapted(pipe, spec, **unguided)
        assert torch.equal(ran.output, reference)
        assert (ran.rows, ran.account.saved) == (BATCH * STEPS, 0.0)
    assert run_adapted(pipe, SPECS[0], **unguided).rows == BATCH * (STEPS - 6)


def test_guidance_by_prompts_of_their_own(pipe: Any) -> None:
    """One sample alone has the same call as in a batch, and the same decisions."""
    for spec in SPECS:
        together = run_adapted(pipe, spec)
        arguments = call_inputs(pipe)
        for row in range(BATCH):
            alone = {k: v[row : row + 1] for k, v in arguments.items() if isinstance(v, list)}
            alone["generator"] = [generators(BATCH)[row]]
            ran = run_adapted(pipe, spec, **alone)
            assert ran.decisions == [together.decisions[row]]
            assert_near(ran.output[0], together.output[row], 1e-5)


# -- times ----------------------------------------------------------------------------------------


def test_timesteps_of_the_callers_own(plain: Any) -> None:
    pipe = with_scheduler(tiny_pipeline(), "ddpm")
    times = [960, 900, 830, 750, 680, 600, 520, 430, 350, 260, 180, 100, 40, 1]
    custom = {"timesteps": times, "num_inference_steps": None}
    reference = run_bare(pipe, **custom)
    assert torch.equal(run_adapted(pipe, "fixed", **custom).output, reference)
    ran = run_adapted(pipe, SPECS[0], **custom)
    assert {len(d) for d in ran.decisions} == {len(times)}
    assert ran.account.saved > 0


def test_sigmas_of_the_callers_own() -> None:
    pipe = tiny_pipeline("euler")
    custom = {"sigmas": [*(14.0 * 0.7**k for k in range(14)), 0.0], "num_inference_steps": None}
    reference = run_bare(pipe, **custom)
    assert torch.equal(run_adapted(pipe, "fixed", **custom).output, reference)
    for spec in ("interval(every=2)", "error_control(tol=0.1)"):
        ran = run_adapted(pipe, spec, **custom)
        assert {len(d) for d in ran.decisions} == {14}
        assert ran.account.saved > 0


@pytest.mark.parametrize("one", [True, False], ids=["one generator", "a generator each"])
@pytest.mark.parametrize("scheduler", ["ddpm", "euler-ancestral", "dpmpp-sde", "lcm"])
def test_random_numbers_are_drawn_as_by_the_bare_pipeline(scheduler: str, one: bool) -> None:
    pipe = tiny_pipeline(scheduler)

    def call() -> Values:
        made = [one_generator()] if one else generators(BATCH)
        drawn.append(made)
        return {"generator": made[0] if one else made}

    drawn: list[list[torch.Generator]] = []
    reference = run_bare(pipe, **call())
    assert torch.equal(run_adapted(pipe, "fixed", **call()).output, reference)
    for spec in SPECS:
        run_adapted(pipe, spec, **call())
    ends = [[g.get_state() for g in made] for made in drawn]
    assert all(torch.equal(a, b) for end in ends for a, b in zip(end, ends[0], strict=True))


def test_a_scheduler_replaced_between_calls(pipe: Any, plain: Any) -> None:
    with skipstone.adapt(pipe, SPECS[1]) as guest:
        for name in ("euler", "unipc", "ddim"):
            with_scheduler(pipe, name)
            expected = run_adapted(with_scheduler(plain, name), SPECS[1])
            assert torch.equal(run_bare(pipe), expected.output)
            assert [s.decisions for s in guest.last] == expected.decisions


def test_a_scheduler_replaced_within_a_call(pipe: Any) -> None:
    reference, first = run_bare(pipe), pipe.scheduler

    def replace(p: Any, step: int, t: Any, values: Values) -> Values:
        if step == 4:
            p.scheduler = SCHEDULERS["ddim"](p.scheduler.config)
            p.scheduler.set_timesteps(STEPS)
        return values

    with skipstone.adapt(pipe, SPECS[0]), pytest.raises(GuestError, match="between two calls"):
        run_bare(pipe, callback_on_step_end=replace)
    pipe.scheduler = first
    assert torch.equal(run_bare(pipe), reference)


# -- callbacks ------------------------------------------------------------------------------------


def nudge(p: Any, step: int, t: Any, values: Values) -> Values:
    """Edits the latents of one sample, twice."""
    if step in (3, 9):
        values["latents"] = values["latents"].clone()
        values["latents"][1] += 0.1
    return values


def test_a_callback_that_edits_latents(pipe: Any) -> None:
    edited = run_bare(pipe, callback_on_step_end=nudge)
    assert not torch.equal(edited, run_bare(pipe))
    assert torch.equal(run_adapted(pipe, "fixed", callback_on_step_end=nudge).output, edited)
    for spec in SPECS:
        ran, without = run_adapted(pipe, spec, callback_on_step_end=nudge), run_adapted(pipe, spec)
        assert ran.decisions[0] == without.decisions[0]
        assert_near(ran.output[0], without.output[0], 1e-5)
        assert not torch.allclose(ran.output[1], without.output[1], atol=1e-3)
        assert_near(ran.output, edited, 0.2)


def test_a_callback_that_edits_the_latents_in_place(pipe: Any) -> None:
    def scale(p: Any, step: int, t: Any, values: Values) -> Values:
        values["latents"].mul_(0.99)
        return values

    edited = run_bare(pipe, callback_on_step_end=scale)
    assert torch.equal(run_adapted(pipe, "fixed", callback_on_step_end=scale).output, edited)
    assert run_adapted(pipe, SPECS[1], callback_on_step_end=scale).account.saved > 0


def test_a_callback_sees_every_step_once(pipe: Any) -> None:
    def note(p: Any, step: int, t: Any, values: Values) -> Values:
        seen.append((step, int(t), tuple(values["latents"].shape)))
        return values

    seen: list[Any] = []
    run_bare(pipe, callback_on_step_end=note)
    expected, seen = seen, []
    for spec in SPECS:
        seen = []
        run_adapted(pipe, spec, callback_on_step_end=note)
        assert seen == expected


def test_a_callback_that_changes_the_guidance(pipe: Any) -> None:
    def weaker(p: Any, step: int, t: Any, values: Values) -> Values:
        p._guidance_scale = 4.0 - 0.2 * step
        return values

    reference = run_bare(pipe, callback_on_step_end=weaker)
    assert not torch.equal(reference, run_bare(pipe))
    assert torch.equal(run_adapted(pipe, "fixed", callback_on_step_end=weaker).output, reference)
    ran = run_adapted(pipe, SPECS[1], callback_on_step_end=weaker)
    assert_near(ran.output, reference, 0.2)
    assert ran.account.saved > 0


@pytest.mark.parametrize("spec", ["fixed", *SPECS, "guidance_gate(below=1.0)"])
def test_guidance_cut_off_in_the_middle(pipe: Any, spec: str) -> None:
    """diffusers' own callback: 2 rows before, 1 row after; the first call with 1 row is made whatever was planned."""

    def call() -> Values:
        one = {"prompt": "red fox", "negative_prompt": "wet dog", "generator": one_generator()}
        return {**one, "callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.5)}

    reference = run_bare(pipe, **call())
    with count_rows(pipe) as counter:
        run_bare(pipe, **call())
    full = counter.rows
    assert full == 2 * (STEPS // 2) + STEPS // 2 + 1
    with skipstone.adapt(pipe, spec) as guest, count_rows(pipe) as counter, warnings.catch_warnings():
        warnings.simplefilter("ignore", GuestWarning)
        output = run_bare(pipe, **call())
    (sample,) = guest.last
    assert counter.rows == 2 * sample.calls
    assert counter.rows - 2 * sample.run.cost in (0, 1)
    if spec == "fixed":
        assert torch.equal(output, reference)
    else:
        assert_near(output, reference, 0.3)
        assert counter.rows < full


# -- interruptions --------------------------------------------------------------------------------


def parts(pipe: Any) -> list[type]:
    return [type(pipe), *(type(c) for c in pipe.components.values())]


@pytest.mark.parametrize("spec", ["fixed", *SPECS])
def test_interrupted_by_the_user(pipe: Any, spec: str) -> None:
    def stop(p: Any, step: int, t: Any, values: Values) -> Values:
        p._interrupt = step >= 6
        return values

    reference = run_bare(pipe, callback_on_step_end=stop)
    ran = run_adapted(pipe, spec, callback_on_step_end=stop)
    assert {len(d) for d in ran.decisions} <= {7, 8}
    if spec == "fixed":
        assert torch.equal(ran.output, reference)
    assert_near(ran.output, reference, 0.2)
    assert torch.equal(run_adapted(pipe, "fixed").output, run_bare(pipe))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("where", ["callback", "network", "scheduler"])
def test_after_an_error_all_is_as_before(pipe: Any, plain: Any, where: str, error: type[BaseException]) -> None:
    before = parts(pipe)
    expected = run_adapted(plain, SPECS[1])

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise error("stop here")
        return args[3] if where == "callback" else None

    calls: list[int] = []
    more = {"callback_on_step_end": fail} if where == "callback" else {}
    with skipstone.adapt(pipe, SPECS[1]) as guest:
        whole = parts(pipe)
        if where == "network":
            hook = pipe.unet.register_forward_pre_hook(fail)
        elif where == "scheduler":
            inner = pipe.scheduler.scale_model_input
            pipe.scheduler.scale_model_input = lambda *a, **k: (fail(*a, **k), inner(*a, **k))[1]
        with pytest.raises(error, match="stop here"):
            run_bare(pipe, **more)
        assert parts(pipe) == whole
        assert 4 <= max(len(s.run.attempts) for s in guest.last) <= 6
        if where == "network":
            hook.remove()
        elif where == "scheduler":
            del pipe.scheduler.scale_model_input
        assert torch.equal(run_bare(pipe), expected.output)
        assert [s.decisions for s in guest.last] == expected.decisions
    assert parts(pipe) == before
    assert_same_as(pipe, plain, specs=())
