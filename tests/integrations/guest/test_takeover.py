"""Takeover: our own first-order solver on the pipeline's own times must be the pipeline's first-order scheduler."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import skipstone
from skipstone import registry
from skipstone.errors import GuestError, GuestWarning
from skipstone.integrations.diffusers import call_context
from skipstone.integrations.diffusers.pipeline_specs import find_pipeline_spec, register_pipeline
from skipstone.integrations.diffusers.sample_path import PathNode, SamplePath
from skipstone.numerics.schedule import FlowMatching
from skipstone.policies import Fixed

from .families import FAMILIES, alone, build, with_scheduler
from .families.parts import pictures

FIRST_ORDER = {
    "sd15": ("ddim", "euler", "euler-karras", "ddim-v", "euler-v"),
    "sd15-img2img": ("euler",),
    "sd15-inpaint9": ("euler",),
    "sdxl": ("euler", "ddim-trailing"),
    "sdxl-refiner": ("euler",),
    "controlnet-sd": ("euler",),
    "controlnet-sd-guess": ("ddim",),
    "controlnet-sdxl": ("euler",),
    "t2i-adapter": ("ddim",),
    "ip-adapter": ("ddim",),
    "instruct-pix2pix": ("euler",),
    "dit": ("own",),
    "pixart": ("ddim",),
    "latte": ("ddim",),
    "animatediff": ("ddim",),
    "text-to-video-sd": ("ddim",),
    "i2vgen-xl": ("ddim",),
    "sd3": ("own",),
    "flux": ("own",),
    "flux-truecfg": ("own",),
    "flux-img2img": ("own",),
    "flux-kontext": ("own",),
    "auraflow": ("own",),
    "chroma": ("own",),
    "qwenimage": ("own",),
    "lumina2": ("own",),
    "ltx": ("own",),
    "hunyuan-video": ("own",),
    "mochi": ("own",),
    "cogvideox": ("own",),
    "wan22": ("flow-euler",),
    "wan-i2v": ("flow-euler",),
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {  # family and scheduler -> arguments
    "guidance that is rescaled": ("sdxl/euler-v", {"guidance_rescale": 0.7}),
    "guidance that is off": ("controlnet-sd/ddim", {"guidance_scale": 1.0}),
    "a base that ends early": ("sdxl/ddim", {"denoising_end": 0.7}),
    "several pictures of a prompt": ("sd15/ddim", {"num_images_per_prompt": 2, "generator": None}),
    "a mask for the last half": ("sd15-inpaint9/ddim", {"strength": 0.5}),
    "a weak ControlNet": ("controlnet-sd/ddim", {"controlnet_conditioning_scale": 0.4}),
    "two ControlNets": ("controlnet-sd-two/ddim", {"control_guidance_start": 0.0, "control_guidance_end": 1.0}),
    "another scale for the second network": ("wan22/flow-euler", {"guidance_scale_2": 1.5}),
}
REFUSED = {
    "controlnet-sd-two": "control_guidance_start and control_guidance_end",
    "sd15-inpaint": "blended",
    "ddpm": "adds noise",
    "kandinsky22": "adds noise",
    "cogview4": "names times in a way of its own",
    "svd": "names times in a way of its own",
    "ltx-i2v": "receives a timestep that is not the scheduler's",
    "pag": "attention processors",
    "sd3-slg": "changes what it does on the way",
    "stable-audio": "names times|receives a timestep|adds noise",
}


def made(pipe: Any, family: str, steps: int, **more: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return FAMILIES[family].after(pipe(**FAMILIES[family].inputs(pipe, 2, steps) | more))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize(("family", "scheduler"), [(f, s) for f, names in FIRST_ORDER.items() for s in names])
def test_our_ddim_is_the_pipelines_first_order_scheduler(family: str, scheduler: str) -> None:
    pipe = build(family) if scheduler == "own" else with_scheduler(build(family), scheduler)
    bare = made(pipe, family, 5)  # divides 1000: else diffusers' DDIM steps beside its own timesteps
    with skipstone.adapt(pipe, "fixed", solver="ddim") as guest:
        assert gap(made(pipe, family, 5), bare) < 5e-5
    assert guest.last.saved == 0


@pytest.mark.parametrize("option", OPTIONS)
def test_options_that_a_takeover_follows(option: str) -> None:
    where, arguments = OPTIONS[option]
    family, scheduler = where.split("/")
    pipe = with_scheduler(build(family), scheduler)
    bare = made(pipe, family, 5, **arguments)
    with skipstone.adapt(pipe, "fixed", solver="ddim"):
        assert gap(made(pipe, family, 5, **arguments), bare) < 5e-5
    other = made(pipe, family, 5, **dict.fromkeys(arguments.keys() & {"control_guidance_end"}, 0.5))
    assert other.shape != bare.shape or gap(other, bare) > 1e-4  # the option does something


def controlled(family: str) -> Any:
    """A pipeline of transformers with a ControlNet."""
    base = build(family)
    if family == "flux":
        sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
        kind: Any = diffusers.FluxControlNetModel
        pipeline: Any = diffusers.FluxControlNetPipeline
    else:  # the last layer of the transformer takes nothing from a ControlNet
        sizes, kind = {"num_layers": 1, "num_extra_conditioning_channels": 0}, diffusers.SD3ControlNetModel
        pipeline = diffusers.StableDiffusion3ControlNetPipeline
    net = kind.from_transformer(base.transformer, **sizes, load_weights_from_transformer=False).eval()
    weights = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for values in net.parameters():
            values.copy_(0.3 * torch.randn(values.shape, generator=weights))
    made = pipeline(**base.components, controlnet=net)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("family", "more"),
    [("flux", {}), ("flux", {"true_cfg_scale": 2.0, "negative_prompt": ["ab", "cd"]}), ("sd3-slg", {})],
)
def test_controlnets_of_transformers(family: str, more: dict[str, Any]) -> None:
    pipe = controlled(family)
    plain = {"flux": "flux", "sd3-slg": "sd3"}[family]  # whose arguments these are
    arguments = {"control_image": pictures(2, 16), "controlnet_conditioning_scale": 0.7} | more
    bare = made(pipe, plain, 5, **arguments)
    assert gap(made(pipe, plain, 5, **arguments | {"controlnet_conditioning_scale": 0.0}), bare) > 1e-3
    with skipstone.adapt(pipe, "fixed", solver="ddim"):
        assert gap(made(pipe, plain, 5, **arguments), bare) < 5e-5


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("controlnet-sd-guess", "ddim"),
        ("text-to-video-sd", "ddim"),
        ("wan22", "flow-euler"),
    ],
)
def test_samples_stand_alone(family: str, scheduler: str) -> None:
    """Each at its own times, and perhaps under its own network: as if it were by itself."""
    pipe = with_scheduler(build(family), scheduler)
    inputs, after = FAMILIES[family].inputs, FAMILIES[family].after
    with skipstone.adapt(pipe, "stride(tol=0.1)") as guest:
        both = after(pipe(**inputs(pipe, 2, 10)))
        times = [[a.t for a in sample.run.past if a.accepted] for sample in guest.last]
        assert times[0] != times[1] or family == "wan22"
        one = after(pipe(**alone(inputs(pipe, 2, 10), 1, 2)))
    assert [a.t for a in guest.last[0].run.past if a.accepted] == times[1]
    assert gap(one, both[1:]) < 1e-4


def test_a_controlnet_is_asked_at_the_solvers_own_times() -> None:
    pipe = with_scheduler(build("controlnet-sd"), "ddim")
    asked: list[float] = []
    pipe.controlnet.register_forward_pre_hook(lambda module, args: asked.extend(args[1].flatten().tolist()))
    with skipstone.adapt(pipe, "path(times='0.731 0.4 0.123')") as guest:
        made(pipe, "controlnet-sd", 10)
    assert {round(t) for t in asked[1:]} == {730, 399, 122}
    assert guest.last.calls == 4


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_taken_over_is_refused(family: str) -> None:
    pipe = build(family)
    with skipstone.adapt(pipe, "fixed", solver="ddim"), pytest.raises(GuestError, match=REFUSED[family]):
        made(pipe, family, 8)
    made(pipe, family, 4)  # and leaves nothing behind


@pytest.mark.parametrize("family", ["sd15-inpaint", "cogview4"])
def test_who_named_a_policy_is_told_of_another_policy(family: str) -> None:
    pipe = build(family)
    with skipstone.adapt(pipe, "stride"), pytest.raises(GuestError, match=r"with a policy .* such as error_control\."):
        made(pipe, family, 8)


# -- presets -------------------------------------------------------------------------------------


def test_presets_that_take_over_have_another_policy_for_where_they_cannot() -> None:
    presets = {name: registry.parse("policy", name) for name in registry.list_presets("policy")}
    others = {name: registry.find_fallback("policy", name) for name, policy in presets.items() if policy.solver}
    assert others.keys() >= {"balanced", "fast", "safe"}
    assert all(registry.parse("policy", spec).solver == "" for spec in others.values())


def test_a_preset_decides_in_the_pipelines_own_steps_where_it_cannot_take_over() -> None:
    pipe = build("sd15-inpaint")
    with skipstone.adapt(pipe, registry.find_fallback("policy", "fast")) as guest:
        expected, policy = made(pipe, "sd15-inpaint", 8), guest.last.policy
    with skipstone.adapt(pipe, "fast") as guest:
        with pytest.warns(GuestWarning, match="^fast would take .* blended in after every step"):
            assert torch.equal(made(pipe, "sd15-inpaint", 8), expected)
        with warnings.catch_warnings(record=True) as more:  # it is said once
            warnings.simplefilter("always")
            assert torch.equal(made(pipe, "sd15-inpaint", 8), expected)
        assert not [w for w in more if issubclass(w.category, GuestWarning)]
    assert "blended in after every step" in guest.last.refusal
    assert guest.last.refusal in guest.last.summary()
    assert guest.last.refusal in guest.last[0].explain()
    assert guest.last.policy == policy


def test_a_saved_preset_falls_back_as_its_name_does(tmp_path: Path) -> None:
    pipe = build("sd15-inpaint")
    skipstone.save_policy("fast", tmp_path / "kept")
    with skipstone.adapt(pipe, "fast") as guest, pytest.warns(GuestWarning, match="^fast would take"):
        expected, policy = made(pipe, "sd15-inpaint", 8), guest.last.policy
    with skipstone.adapt(pipe, tmp_path / "kept") as guest, pytest.warns(GuestWarning, match="kept would take"):
        assert torch.equal(made(pipe, "sd15-inpaint", 8), expected)
    assert guest.last.policy == policy


def test_a_preset_takes_over_where_it_can() -> None:
    pipe = with_scheduler(build("sd15"), "ddim")
    with skipstone.adapt(pipe, registry.list_presets("policy")["balanced"][0]):
        expected = made(pipe, "sd15", 12)
    with skipstone.adapt(pipe, "balanced") as guest:
        assert torch.equal(made(pipe, "sd15", 12), expected)
    assert guest.last.refusal == ""


def test_whoever_names_a_solver_with_a_preset_is_refused() -> None:
    pipe = build("sd15-inpaint")
    with skipstone.adapt(pipe, "balanced", solver="adams"), pytest.raises(GuestError, match="blended"):
        made(pipe, "sd15-inpaint", 8)


# -- callbacks -----------------------------------------------------------------------------------

Values = dict[str, Any]


def reads(pipe: Any, step: int, t: Any, values: Values) -> Values:
    return {}


def other_latents(pipe: Any, step: int, t: Any, values: Values) -> Values:
    return {"latents": values["latents"] + 0.1} if step == 3 else values


def written_latents(pipe: Any, step: int, t: Any, values: Values) -> Values:
    if step == 3:
        values["latents"][1] += 0.1
    return values


def other_guidance(pipe: Any, step: int, t: Any, values: Values) -> Values:
    pipe._guidance_scale = 4.0 if step < 3 else 2.0
    return {}


def guidance_off(pipe: Any, step: int, t: Any, values: Values) -> Values:
    if step != 4:
        return {}
    pipe._guidance_scale = 0.0
    return {"prompt_embeds": values["prompt_embeds"].chunk(2)[-1]}


def interrupts(pipe: Any, step: int, t: Any, values: Values) -> Values:
    pipe._interrupt = step >= 4
    return {}


def called_back(callback: Callable[..., Any]) -> dict[str, Any]:
    return {
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }


@pytest.mark.parametrize("callback", [reads, interrupts])
@pytest.mark.parametrize(("family", "scheduler"), [("sd15-img2img", "euler"), ("sd3", "flow-euler")])
def test_callbacks_that_read_see_the_samples_on_their_way(
    family: str, scheduler: str, callback: Callable[..., Any]
) -> None:
    pipe = with_scheduler(build(family), scheduler)
    seen: list[torch.Tensor] = []

    def both(pipe: Any, step: int, t: Any, values: Values) -> Values:
        seen.append(values["latents"].clone())
        return callback(pipe, step, t, values)  # type: ignore[no-any-return]

    bare = made(pipe, family, 10, **called_back(both))
    expected, seen = seen, []
    with skipstone.adapt(pipe, "fixed", solver="ddim") as guest:
        assert gap(made(pipe, family, 10, **called_back(both)), bare) < 5e-5
    assert len(seen) == len(expected)
    assert all(gap(a, b) < 5e-5 for a, b in zip(seen, expected, strict=True))
    assert guest.last.refusal == ""


@pytest.mark.parametrize("callback", [other_latents, written_latents, other_guidance, guidance_off])
def test_callbacks_that_change_something_end_a_takeover(callback: Callable[..., Any]) -> None:
    pipe = with_scheduler(build("sd15"), "euler")
    bare = made(pipe, "sd15", 10, **called_back(callback))
    assert gap(made(pipe, "sd15", 10), bare) > 1e-4
    with (
        skipstone.adapt(pipe, "fixed", solver="ddim") as guest,
        pytest.raises(GuestError, match=r"a callback changed .* such as error_control\."),
    ):
        made(pipe, "sd15", 10, **called_back(callback))
    with skipstone.adapt(pipe, "fixed", solver="ddim") as guest:
        guest.settings = dataclasses.replace(guest.settings, fallback=Fixed())  # as a preset has one
        with pytest.warns(GuestWarning, match="a callback changed"):
            assert gap(made(pipe, "sd15", 10, **called_back(callback)), bare) < 5e-5
    assert guest.last.calls == 10 + guest.last[0].run.cost  # what was made in the first step for later ones is lost
    assert guest.last[0].full_calls == (10 if callback is not guidance_off else 4.0 + 1 + 5)


def weaker_adapter(pipe: Any, step: int) -> None:
    pipe.set_ip_adapter_scale(0.8 if step < 3 else 0.1)


def other_weights(pipe: Any, step: int) -> None:
    if step == 3:
        pipe.unet.conv_out.weight.mul_(1.5)


@pytest.mark.parametrize("change", [weaker_adapter, other_weights])
def test_a_callback_that_changes_the_network_ends_a_takeover(change: Callable[..., None]) -> None:
    def callback(pipe: Any, step: int, t: Any, values: Values) -> Values:
        change(pipe, step)
        return {}

    def new() -> Any:
        return with_scheduler(build("ip-adapter"), "ddim")

    bare = made(new(), "ip-adapter", 8, **called_back(callback))
    assert gap(made(new(), "ip-adapter", 8), bare) > 1e-5
    pipe = new()
    with skipstone.adapt(pipe, "fixed", solver="ddim") as guest:
        guest.settings = dataclasses.replace(guest.settings, fallback=Fixed())
        with pytest.warns(GuestWarning, match="a callback changed UNet2DConditionModel"):
            assert gap(made(pipe, "ip-adapter", 8, **called_back(callback)), bare) < 1e-6


@pytest.mark.parametrize("scheduler", ["dpmpp", "unipc", "heun", "pndm"])
def test_a_scheduler_with_a_memory_goes_on_after_a_takeover(scheduler: str) -> None:
    """Of a run whose first steps are all alike, whoever makes them: by DDIM."""
    pipe = with_scheduler(build("sd15"), scheduler)

    def first(pipe: Any, step: int, t: Any, values: Values) -> Values:
        values["latents"] += 0.1 if step == 0 else 0.0
        return values

    bare = made(pipe, "sd15", 10, **called_back(first))
    with skipstone.adapt(pipe, "fixed", solver="ddim") as guest:
        guest.settings = dataclasses.replace(guest.settings, fallback=Fixed())
        if scheduler in ("heun", "pndm"):  # the callback comes within their first step
            with pytest.raises(GuestError, match="a callback changed latents"):
                made(pipe, "sd15", 10, **called_back(first))
            return
        with pytest.warns(GuestWarning, match="a callback changed latents"):
            assert gap(made(pipe, "sd15", 10, **called_back(first)), bare) < 5e-5


def test_pndm_goes_on_after_its_first_step() -> None:
    pipe = with_scheduler(build("sd15"), "pndm")
    with skipstone.adapt(pipe, "balanced") as guest, pytest.warns(GuestWarning, match="a callback changed latents"):
        made(pipe, "sd15", 10, **called_back(other_latents))
    assert guest.last[0].run.stages == 1
    assert len(guest.last[0].run.past) == 7  # 11 calls, of which four are before the change


def test_callbacks_that_cannot_be_watched_are_refused() -> None:
    pipe = with_scheduler(build("sd15"), "ddim")
    cutoff = diffusers.callbacks.SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    with skipstone.adapt(pipe, "fixed", solver="ddim"):
        with pytest.raises(GuestError, match="SDCFGCutoffCallback changes"):
            made(pipe, "sd15", 8, callback_on_step_end=cutoff)
        with torch.inference_mode(), pytest.raises(GuestError, match="inference_mode"):
            made(pipe, "sd15", 8, callback_on_step_end=reads)


def test_a_path_is_exact_at_its_nodes_and_follows_what_is_straight() -> None:
    """Where clean estimate and noise are constant, every place between two calls is known exactly."""
    schedule = FlowMatching()
    x0, noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))

    def node(t: float) -> PathNode:
        return PathNode(t, schedule.alpha(t) * x0 + schedule.sigma(t) * noise, x0)

    path = SamplePath(schedule, [node(t) for t in (1.0, 0.6, 0.2, 0.0)])
    for t in (1.0, 0.93, 0.6, 0.31, 0.2, 0.04, 0.0):
        torch.testing.assert_close(path.at(t).x, node(t).x)
        torch.testing.assert_close(path.at(t).x0, x0)
    assert path.at(0.6) is path.nodes[1]


# -- what is refused by name is noticed on the way too ---------------------------------------------


@pytest.fixture
def unnamed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Forgets what is refused by name, so that a takeover begins."""
    monkeypatch.setattr(call_context, "CHANGING_ARGUMENTS", {})
    declared = []

    def forget(pipe: Any) -> None:
        declared.append(find_pipeline_spec(pipe))
        register_pipeline(dataclasses.replace(declared[-1], between=""))

    yield forget
    for spec in declared:
        register_pipeline(spec)


@pytest.mark.parametrize(
    ("family", "arguments", "match"),
    [
        ("sd15-inpaint", {}, "something acts on the sample"),
        ("controlnet-sd", {"control_guidance_end": 0.5}, "conditioning_scale of ControlNetModel is another"),
        ("lumina2", {"cfg_trunc_ratio": 0.5}, "1 calls of it in a step, and not 2"),
        ("sd3-slg", {}, "rows of it|calls of it"),
        ("cogvideox", {"use_dynamic_cfg": True}, "guides otherwise"),
    ],
)
def test_what_is_refused_by_name_would_be_noticed(
    unnamed: Callable[[Any], None], family: str, arguments: dict[str, Any], match: str
) -> None:
    pipe = build(family)
    unnamed(pipe)
    with skipstone.adapt(pipe, "fixed", solver="ddim"), pytest.raises(GuestError, match=match):
        made(pipe, family, 10, **arguments)


def test_another_input_of_the_network_is_noticed() -> None:
    pipe = with_scheduler(build("sd15"), "ddim")
    asked = []

    def scale(sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        asked.append(timestep)
        return sample * (1.0 if len(asked) < 4 else 1.1)

    pipe.scheduler.scale_model_input = scale
    with skipstone.adapt(pipe, "fixed", solver="ddim"), pytest.raises(GuestError, match="something else than the"):
        made(pipe, "sd15", 8)


def test_a_list_that_is_changed_on_the_way_is_noticed() -> None:
    pipe = with_scheduler(build("controlnet-sd-two"), "ddim")
    scales = [0.7, 0.4]

    def change(pipe: Any, step: int, t: Any, values: Values) -> Values:
        scales[1] = 0.4 if step < 3 else 0.2
        return {}

    arguments = {"control_guidance_start": 0.0, "control_guidance_end": 1.0, "controlnet_conditioning_scale": scales}
    with skipstone.adapt(pipe, "fixed", solver="ddim"), pytest.raises(GuestError, match=r"conditioning_scale\[1\] of"):
        made(pipe, "controlnet-sd-two", 8, **arguments, callback_on_step_end=change)


# -- the rest ------------------------------------------------------------------------------------


CLIPS = "clips the clean picture and steps with the noise from before"


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_a_takeover_clips_as_the_scheduler_does(option: str) -> None:
    pipe = build("ddim")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **{"clip_sample": False, option: True})
    with skipstone.adapt(pipe, "fixed", solver="ddim"):
        with pytest.raises(GuestError, match=rf"{CLIPS}.* \(call the pipeline with use_clipped_model_output=True\)"):
            made(pipe, "ddim", 10)
        ours = made(pipe, "ddim", 10, use_clipped_model_output=True)
    assert gap(ours, made(pipe, "ddim", 10, use_clipped_model_output=True)) < 5e-5
    assert gap(ours, made(pipe, "ddim", 10)) > 0.01  # which is what would have been drawn in place of it


def test_clipping_is_refused_with_another_way_out_where_pipelines_cannot_be_told() -> None:
    pipe = with_scheduler(build("sd15"), "ddim-clip")
    with skipstone.adapt(pipe, "balanced") as guest, pytest.warns(GuestWarning, match=CLIPS):
        made(pipe, "sd15", 10)
    assert "pipe.scheduler = skipstone.Scheduler.from_config" in guest.last.refusal
    pipe.scheduler = skipstone.Scheduler.from_config(pipe.scheduler.config, solver="ddim")
    with skipstone.adapt(pipe, "fixed", solver="ddim"):
        ours = made(pipe, "sd15", 10)
    assert gap(ours, made(pipe, "sd15", 10)) < 5e-5


def test_a_takeover_ends_at_the_clean_picture() -> None:
    """Also where the scheduler ends at its first noise level: it is then as with `set_alpha_to_one=True`."""
    pipe = with_scheduler(build("sd15"), "ddim-trailing")
    clean = made(pipe, "sd15", 10)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=False)
    assert gap(made(pipe, "sd15", 10), clean) > 5e-4
    with skipstone.adapt(pipe, "fixed", solver="ddim"):
        assert gap(made(pipe, "sd15", 10), clean) < 5e-5


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
        pytest.warns(GuestWarning, match="more than were wanted"),
    ):
        assert gap(made(pipe, "controlnet-sd", 8), bare) < 1e-5
    assert guest.last.saved == 0


@pytest.mark.parametrize("solver", [None, "ddim"])
def test_the_first_call_after_a_switch_of_networks_is_whole(solver: str | None) -> None:
    pipe = with_scheduler(build("wan22"), "flow-euler")
    with skipstone.adapt(pipe, "guidance_gate(below=1.0)", solver=solver) as guest:
        made(pipe, "wan22", 8)
    decisions, run = guest.last[0].decisions, guest.last[0].run
    switch = next(i for i, a in enumerate(run.past) if a.t < pipe.config.boundary_ratio)
    assert decisions[0] == decisions[switch] == "C"
    assert set(decisions) == {"C", "c"}
