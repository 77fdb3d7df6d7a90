"""What an adapted run holds: a short history of outputs while it runs, and nothing after it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import skipstone

from .families import build
from .runs import BATCH, SPECS, call_inputs, run_bare

# Latents per sample: six moments and six calls, each with its latent, output and clean estimate, and what steps from a
# call share.
HELD = 48


class Alive(TorchDispatchMode):
    """Knows the tensors made while it is on, and how many bytes of theirs are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.made[value] = None
        return result

    @property
    def bytes(self) -> int:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in list(self.made.keys())}
        return sum(storages.values())


def peak(pipe: Any, spec: str | None, **more: Any) -> int:
    """The most bytes alive at the end of a step, in a bare run or an adapted one."""

    def note(p: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        gc.collect()
        most.append(alive.bytes)
        return values

    most: list[int] = []
    guest = skipstone.adapt(pipe, spec) if spec else None
    with Alive() as alive:
        run_bare(pipe, callback_on_step_end=note, **more)
    if guest:
        guest.remove()
    return max(most)


LATENT = 4 * 4 * 8 * 8  # bytes


@pytest.fixture(autouse=True)
def fast_collections() -> Any:
    """What exists before the test is no garbage: collections look at the test's own objects alone."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("spec", ["error_control(tol=0.1)", "guidance_gate(below=1.0)"])
def test_a_run_holds_a_short_history_however_many_steps(pipe: Any, spec: str) -> None:
    short, long = (peak(pipe, spec, steps=n) - peak(pipe, None, steps=2) for n in (16, 32))
    assert 0 < long <= HELD * LATENT * BATCH
    assert long <= 1.1 * short


def test_residuals_of_a_controlnet_are_let_go() -> None:
    """They are far larger than the latents."""
    pipe = build("controlnet-sd")
    arguments = {"family": "controlnet-sd", "steps": 8}
    more = peak(pipe, "interval(every=2)", **arguments) - peak(pipe, None, **arguments)
    assert more <= HELD * LATENT * BATCH


@pytest.mark.parametrize("spec", ["fixed", *SPECS, "guidance_gate(below=1.0)"])
@pytest.mark.parametrize("ends", ["well", "in an error"])
def test_after_the_call_nothing_is_kept(pipe: Any, spec: str, ends: str) -> None:
    latents: list[Any] = []
    outputs: list[Any] = []

    def note(p: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(weakref.ref(values["latents"]))
        if ends == "in an error" and step == 9:
            raise RuntimeError("stop here")
        return values

    def keep(module: Any, args: Any, output: Any) -> None:
        outputs.append(weakref.ref(output[0]))

    hook = pipe.unet.register_forward_hook(keep)
    with skipstone.adapt(pipe, spec) as guest:
        if ends == "well":
            run_bare(pipe, callback_on_step_end=note)
        else:
            with pytest.raises(RuntimeError, match="stop here"):
                run_bare(pipe, callback_on_step_end=note)
        hook.remove()
        gc.collect()
        assert len(latents) >= 10
        assert outputs
        pipe.scheduler.set_timesteps(2)  # whatever the scheduler itself remembers
        alive = [ref for ref in (*latents, *outputs) if ref() is not None]
        assert not alive
        assert guest.last is not None


def test_an_adapted_pipeline_that_is_dropped_is_freed() -> None:
    pipe = build("sd15")
    guest = skipstone.adapt(pipe, SPECS[1])
    pipe(**call_inputs(pipe, batch=1, steps=6))
    parts = [weakref.ref(pipe), weakref.ref(pipe.unet), weakref.ref(pipe.scheduler), weakref.ref(guest)]
    del pipe, guest
    gc.collect()
    assert [ref() for ref in parts] == [None] * 4
