"""Callbacks, interruptions and errors within a run."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import callbacks

from . import BATCH, Case, assert_near, check

STEP = 3  # at which callbacks act
CALLBACK = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")
Values = dict[str, Any]


@check(*CALLBACK)
def a_callback_that_reads(case: Case) -> None:
    """It sees every step once, in order, with its latents, whatever the network was called for."""
    seen: list[Any] = []

    def read(pipe: Any, step: int, t: Any, values: Values) -> Values:
        assert pipe is case.pipe
        seen.append((step, float(t), sorted(values), tuple(values["latents"].shape)))
        case.note(values["latents"])
        return {}

    whole = case.run(callback_on_step_end=read)
    case.note(seen, exact=True)
    assert [step for step, *_ in seen] == list(range(len(seen)))
    assert len(seen) >= STEP + 2
    assert_near(case.run(), whole, "without the callback", gap=0)


@check(*CALLBACK)
def a_callback_that_reads_every_tensor(case: Case) -> None:
    """Every tensor that the pipeline names may be asked for, by itself."""
    case.steps = 2
    for name in case.pipe._callback_tensor_inputs:

        def read(pipe: Any, step: int, t: Any, values: Values) -> Values:
            for key, value in values.items():
                case.note((step, key, tuple(getattr(value, "shape", ()))), exact=True)
            return values

        case.attempt(callback_on_step_end=read, callback_on_step_end_tensor_inputs=[name])


def _edit(case: Case, in_place: bool) -> None:
    def edit(pipe: Any, step: int, t: Any, values: Values) -> Values:
        if step == STEP:
            latents = values["latents"] if in_place else values["latents"].clone()
            latents[1] += 0.1
            return values if in_place else {"latents": latents}
        return values

    plain, decided = case.run(), case.decisions()
    edited = case.run(callback_on_step_end=edit)
    assert len(edited) == BATCH
    assert case.decisions()[:1] == decided[:1]
    assert_near(edited[0], plain[0], "the sample that was not edited")
    assert not torch.allclose(edited[1], plain[1], atol=1e-4), "the edit did nothing"
    assert_near(case.run(), plain, "without the callback again", gap=0)


@check(*CALLBACK)
def a_callback_that_returns_other_latents(case: Case) -> None:
    """Latents that a callback returns take the place of the pipeline's; the other sample goes on as it was."""
    _edit(case, in_place=False)


@check(*CALLBACK)
def a_callback_that_writes_into_the_latents(case: Case) -> None:
    """The same by writing into the tensor."""
    _edit(case, in_place=True)


@check(*CALLBACK, when=lambda pipe: "prompt_embeds" in pipe._callback_tensor_inputs)
def a_callback_that_changes_the_prompt(case: Case) -> None:
    """Embeddings that a callback returns are those of the later steps."""

    def change(pipe: Any, step: int, t: Any, values: Values) -> Values:
        return {"prompt_embeds": values["prompt_embeds"] * (0.5 if step == STEP else 1.0)}

    plain = case.run()
    changed = case.attempt(callback_on_step_end=change, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    case.note(changed is not None and not torch.equal(changed, plain), exact=True)
    assert_near(case.run(), plain, "without the callback again", gap=0)


@check(*CALLBACK, when=lambda pipe: hasattr(type(pipe), "guidance_scale"))
def a_callback_that_changes_the_guidance(case: Case) -> None:
    """A scale that a callback sets is that of the later steps."""

    def change(pipe: Any, step: int, t: Any, values: Values) -> Values:
        if step == STEP and isinstance(pipe._guidance_scale, float):
            pipe._guidance_scale *= 0.75
        return values

    plain = case.run()
    case.run(callback_on_step_end=change)
    assert_near(case.run(), plain, "without the callback again", gap=0)


@check(*CALLBACK, when=lambda pipe: hasattr(type(pipe), "guidance_scale"))
def guidance_switched_off_and_on_within_a_run(case: Case) -> None:
    """A callback that sets the scale to 1 and back, where the pipeline asks in every step whether to guide."""
    scale: list[Any] = []

    def switch(pipe: Any, step: int, t: Any, values: Values) -> Values:
        scale.append(pipe._guidance_scale)
        if step in (STEP - 1, STEP + 1) and isinstance(scale[0], float):
            pipe._guidance_scale = 1.0 if step < STEP else scale[0]
        return values

    plain = case.run()
    case.attempt(callback_on_step_end=switch)
    assert_near(case.run(), plain, "without the callback again", gap=0)


CUTOFFS = {
    "StableDiffusionPipeline": callbacks.SDCFGCutoffCallback,
    "StableDiffusionXLPipeline": callbacks.SDXLCFGCutoffCallback,
    "StableDiffusionXLControlNetPipeline": callbacks.SDXLControlnetCFGCutoffCallback,
    "StableDiffusion3Pipeline": callbacks.SD3CFGCutoffCallback,
}


@check(*CALLBACK, when=lambda pipe: type(pipe).__name__ in CUTOFFS)
def callbacks_that_diffusers_ships(case: Case) -> None:
    """Guidance cut off by diffusers' own callback, which is for one sample."""
    case.batch = 1
    plain = case.run()
    cut = case.run(callback_on_step_end=CUTOFFS[type(case.pipe).__name__](cutoff_step_ratio=0.5))
    assert not torch.equal(cut, plain), "the guidance was not cut off"
    assert_near(case.run(), plain, "without the callback again", gap=0)


@check(*CALLBACK)
def callbacks_of_the_wrong_kind(case: Case) -> None:
    """The pipeline's own errors: one that returns nothing, one that takes too little, names that are not known."""
    first = case.run()
    case.attempt(callback_on_step_end=lambda *_: None)
    case.attempt(callback_on_step_end=lambda pipe: {})
    case.attempt(callback_on_step_end=lambda *a: a[-1], callback_on_step_end_tensor_inputs=["no such"])
    assert_near(case.run(), first, "after the errors", gap=0)


@check("callback", "callback_steps")
def a_callback_of_the_old_kind(case: Case) -> None:
    """It is called with the step, its time and the latents, every second step."""
    seen: list[Any] = []

    def read(step: int, t: Any, latents: torch.Tensor) -> None:
        seen.append((step, float(t), tuple(latents.shape)))
        case.note(latents)

    case.run(callback=read, callback_steps=2)
    case.note(seen, exact=True)
    assert seen


@check(*CALLBACK, when=lambda pipe: hasattr(type(pipe), "interrupt"))
def interrupted_runs(case: Case) -> None:
    """`_interrupt` in a callback ends the run there; the next one is whole."""
    seen: list[int] = []

    def stop(pipe: Any, step: int, t: Any, values: Values) -> Values:
        seen.append(step)
        pipe._interrupt = step >= STEP
        return values

    whole = case.run()
    cut = case.run(callback_on_step_end=stop)
    case.note(seen, exact=True)
    assert not torch.equal(cut, whole), "the run was not interrupted"
    assert_near(case.run(), whole, "after the interruption", gap=0)


@check(*CALLBACK)
def errors_in_a_callback(case: Case) -> None:
    """An error leaves the pipeline as it was."""

    def fail(pipe: Any, step: int, t: Any, values: Values) -> Values:
        if step == STEP:
            raise RuntimeError("stop here")
        return values

    whole = case.run()
    assert case.attempt(callback_on_step_end=fail) is None
    assert_near(case.run(), whole, "after the error", gap=0)


@check()
def errors_in_the_network(case: Case) -> None:
    """An error in the network leaves the pipeline as it was."""
    whole, calls = case.run(), []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == STEP:
            raise RuntimeError("stop here")

    hook = case.network.register_forward_pre_hook(fail)
    assert case.attempt() is None
    hook.remove()
    assert_near(case.run(), whole, "after the error", gap=0)
