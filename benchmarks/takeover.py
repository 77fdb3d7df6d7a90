"""Which pipelines and options let a solver of ours take the loop over, and which do not: writes takeover.md

    python benchmarks/takeover.py [words of the cases to run]

Tiny pipelines with random weights on the CPU, batch 2, 10 steps. Taken over: our own DDIM on the pipeline's own times,
made within its first step, gives what the bare pipeline gives with its first-order scheduler. Exit status 1 where it
gives anything else, or ends in an error that is no refusal.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matrix import quiet, versions

import skipstone
from skipstone.errors import GuestError
from tests.integrations.guest.families import FAMILIES, build, with_scheduler

PAGE = Path(__file__).with_name("takeover.md")
BATCH, STEPS = 2, 10
FIRST_ORDER = ("ddim", "flow-euler")  # the first of these that a family takes; otherwise its own scheduler
LIMIT = 5e-5  # relative distance to the bare pipeline
OTHERWISE = {  # why the two differ by more, where they do
    "ldm": "the scheduler ends at its first noise level (set_alpha_to_one=False), a takeover at the clean picture",
}
Change = Callable[[Any], None]


def read(*values: Any) -> dict[str, Any]:
    """A callback that changes nothing."""
    return {}


def keep(*values: Any) -> Any:
    """A callback that returns the tensors it was given."""
    return values[-1]


def stop(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
    """A callback that ends the run."""
    pipe._interrupt = step >= 4
    return {}


def edit(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
    """A callback that returns other latents."""
    return {"latents": values["latents"] + 0.1} if step == 3 else {}


def write(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
    """A callback that writes into the latents."""
    values["latents"][1] += 0.1 if step == 3 else 0.0
    return values


def guide(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
    """A callback that changes the guidance."""
    pipe._guidance_scale = 4.0 if step < 3 else 3.0
    return {}


def cut_off(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
    """A callback that switches the guidance off, as diffusers' documentation shows it."""
    if step != 5:
        return {}
    pipe._guidance_scale = 0.0
    return {"prompt_embeds": values["prompt_embeds"].chunk(2)[-1]}


def lora(pipe: Any) -> None:
    """Add a LoRA to the denoiser."""
    import peft

    torch.manual_seed(0)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


@dataclass(frozen=True)
class Case:
    """One pipeline and one way of calling it."""

    family: str
    option: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    change: Change | None = None
    scheduler: str = ""

    @property
    def name(self) -> str:
        """Family and option."""
        return f"{self.family}, {self.option}" if self.option else self.family

    def make(self) -> Any:
        """The pipeline."""
        known = FAMILIES[self.family].schedulers
        scheduler = self.scheduler or next((s for s in FIRST_ORDER if s in known), "")
        pipe = build(self.family)
        if self.change is not None:
            self.change(pipe)
        return with_scheduler(pipe, scheduler) if scheduler else pipe

    def run(self, pipe: Any) -> torch.Tensor:
        """What a call returns."""
        torch.manual_seed(0)
        return FAMILIES[self.family].after(pipe(**FAMILIES[self.family].inputs(pipe, BATCH, STEPS) | self.arguments))


def _callback(function: Callable[..., Any], *tensors: str) -> dict[str, Any]:
    names = ["latents", *tensors]
    return {"callback_on_step_end": function, "callback_on_step_end_tensor_inputs": names}


def cases() -> Iterator[Case]:
    """Every family as its tests call it, and then every option."""
    yield from (Case(name) for name in FAMILIES)
    for family in ("sd15", "sdxl"):
        yield Case(family, "a callback that reads", _callback(read))
        yield Case(family, "a callback that returns what it was given", _callback(keep))
        yield Case(family, "a callback that interrupts", _callback(stop))
        yield Case(family, "a callback that returns other latents", _callback(edit))
        yield Case(family, "a callback that writes into the latents", _callback(write))
        yield Case(family, "a callback that changes the guidance", _callback(guide))
        yield Case(family, "several images per prompt", {"num_images_per_prompt": 2, "generator": None})
        yield Case(family, "guidance off", {"guidance_scale": 1.0})
        yield Case(family, "guidance_rescale", {"guidance_rescale": 0.7})
        yield Case(family, "eta", {"eta": 0.5})
        yield Case(family, "LoRA", change=lora)
        yield Case(family, "an ancestral scheduler", scheduler="euler-ancestral")
        yield Case(family, "a multistep scheduler, interrupted", _callback(stop), scheduler="dpmpp")
        yield Case(family, "v prediction, Karras", scheduler="euler-karras-v")
    yield Case("sd15", "a callback that switches guidance off", _callback(cut_off, "prompt_embeds"))
    yield Case("sd15", "a callback of the old kind", {"callback": read, "callback_steps": 2})
    yield Case("sdxl", "a base that ends early (denoising_end)", {"denoising_end": 0.7})
    yield Case("sdxl-refiner", "a callback that reads", _callback(read))
    yield Case("sd15-img2img", "strength 0.3", {"strength": 0.3})
    yield Case("sd15-inpaint9", "strength 0.5", {"strength": 0.5})
    yield Case("controlnet-sd", "conditioning_scale", {"controlnet_conditioning_scale": 0.4})
    yield Case("controlnet-sd", "control_guidance_end", {"control_guidance_end": 0.5})
    yield Case("controlnet-sd", "guidance off", {"guidance_scale": 1.0})
    yield Case("controlnet-sd-guess", "guidance off", {"guidance_scale": 1.0})
    on = {"control_guidance_start": 0.0, "control_guidance_end": 1.0}
    yield Case("controlnet-sd-two", "both all the time", on)
    yield Case("ddim", "use_clipped_model_output", {"use_clipped_model_output": True})
    yield Case("lumina2", "cfg_trunc_ratio", {"cfg_trunc_ratio": 0.5})
    yield Case("instruct-pix2pix", "guidance off", {"guidance_scale": 1.0})
    yield Case("qwenimage", "guidance off", {"true_cfg_scale": 1.0})
    yield Case("sd3", "skip_guidance_layers", {"skip_guidance_layers": [0]})
    yield Case("wan22", "guidance_scale_2", {"guidance_scale_2": 1.5})


def outcome(case: Case) -> dict[str, Any]:
    """What becomes of a case: taken over, at which distance, or the reason; and what a preset does there."""
    try:
        bare = case.run(case.make())
    except Exception as error:
        return {"case": case.name, "bare": f"{type(error).__name__}: {error}".splitlines()[0]}
    found: dict[str, Any] = {"case": case.name, "bare": ""}
    pipe = case.make()
    found["pipeline"], found["scheduler"] = type(pipe).__name__, type(pipe.scheduler).__name__
    try:
        with skipstone.adapt(pipe, "fixed", solver="ddim"):
            made = case.run(pipe)
        found["gap"] = float((made.double() - bare.double()).norm() / bare.double().norm())
    except GuestError as refusal:
        found["refusal"] = str(refusal)
    try:
        with skipstone.adapt(pipe, "balanced") as adapted:
            case.run(pipe)
        found["preset"] = "falls back" if adapted.last.refusal else "takes over"
    except GuestError:
        found["preset"] = "refused"
    return found


def failed(found: dict[str, Any]) -> bool:
    """Whether a takeover gives something else than the pipeline, for no known reason."""
    return found.get("gap", 0.0) > LIMIT and found["case"] not in OTHERWISE and "interrupt" not in found["case"]


def page(results: list[dict[str, Any]], seconds: float) -> Iterator[str]:
    """The tables."""
    taken = [r for r in results if "gap" in r]
    refused = [r for r in results if "refusal" in r]
    yield "# Where a solver takes the loop over, and where it does not\n"
    yield (
        f"`python benchmarks/takeover.py`, {versions(seconds)}: of {len(results)} pipelines and options, {len(taken)} "
        f"are taken over and {len(refused)} refused by name. Tiny pipelines with random weights on the CPU, batch "
        f"{BATCH}, {STEPS} steps, first-order schedulers.\n"
    )
    yield (
        "Distance: of our own DDIM on the pipeline's own times, made within its first step, to the bare pipeline "
        "(norm of the difference over the norm). Preset: what `adapt(pipe, 'balanced')` does there.\n"
    )
    yield "| Taken over | Pipeline | Scheduler | Distance | Preset |\n|---|---|---|--:|---|"
    for r in taken:
        note = " (interrupted: the picture is unfinished)" if "interrupt" in r["case"] else ""
        note = note or (f" ({OTHERWISE[r['case']]})" if r["case"] in OTHERWISE else "")
        yield f"| {r['case']} | `{r['pipeline']}` | `{r['scheduler']}` | {r['gap']:.0e}{note} | {r['preset']} |"
    yield "\n| Refused | Pipeline | Why | Preset |\n|---|---|---|---|"
    for r in refused:
        yield f"| {r['case']} | `{r['pipeline']}` | {reason(r['refusal'])} | {r['preset']} |"
    if others := [r for r in results if r["bare"]]:
        yield "\nWhat the bare pipeline does not do either:\n"
        yield from (f"- {r['case']}: {r['bare']}" for r in others)


def reason(refusal: str) -> str:
    """The clause of a refusal that says why."""
    text = refusal.removeprefix("The pipeline cannot be taken over: ").partition(" Adapt it without")[0]
    return text.replace("|", "\\|").rstrip(".")


def main() -> int:
    quiet()
    warnings.simplefilter("ignore")
    began, words = time.perf_counter(), sys.argv[1:]
    results = []
    for case in cases():
        if all(word in case.name for word in words):
            results.append(outcome(case))
            print(results[-1], flush=True)
    if not words:
        PAGE.write_text("\n".join(page(results, time.perf_counter() - began)).rstrip() + "\n", encoding="utf-8")
    return int(any(failed(r) for r in results))


if __name__ == "__main__":
    raise SystemExit(main())
