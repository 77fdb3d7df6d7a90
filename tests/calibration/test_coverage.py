"""A certificate is held against the pipeline again at every call: what has changed is said, and nothing else is."""

from __future__ import annotations

import copy
import inspect
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from diffusers.callbacks import IPAdapterScaleCutoffCallback, MultiPipelineCallbacks, SDCFGCutoffCallback
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0

import skipstone
from skipstone import registry
from skipstone.errors import CertificateError, GuestWarning, SpecError
from skipstone.integrations.coverage import Coverage, describe_argument
from skipstone.integrations.identity import cheap_facts, identity, scheduler_to_config
from skipstone.integrations.weight_snapshot import SAMPLED, WeightSnapshot
from skipstone.policies.certified import Certified

CALL: dict[str, Any] = {"num_inference_steps": 6, "output_type": "latent"}


@pytest.fixture
def other(tiny_model: Path) -> Any:
    """The pipeline again, to be changed."""
    found = diffusers.DiffusionPipeline.from_pretrained(tiny_model)
    found.set_progress_bar_config(disable=True)
    return found


def draw(pipe: Any, **more: Any) -> Any:
    return pipe("a red cat", generator=torch.Generator().manual_seed(0), **{**CALL, **more}).images


def called(pipe: Any) -> inspect.BoundArguments:
    """The arguments of `draw`."""
    call = inspect.signature(type(pipe).__call__).bind(pipe, "a red cat", **CALL)
    call.apply_defaults()
    return call


def add_adapter(pipe: Any, name: str = "style") -> None:
    import peft

    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False)
    pipe.unet.add_adapter(settings, adapter_name=name)


def written(pipe: Any) -> None:
    """One value, which neither the digest nor the snapshot looks at."""
    with torch.no_grad():
        pipe.unet.conv_in.weight.view(-1)[1] += 1


def dropped(pipe: Any) -> None:
    next(m for m in pipe.unet.modules() if isinstance(m, torch.nn.Dropout)).p = 0.5
    pipe.unet.train()


def replaced(pipe: Any) -> None:
    pipe.unet = copy.deepcopy(pipe.unet)
    torch.nn.init.normal_(pipe.unet.conv_out.weight)


class OwnProcessor(AttnProcessor2_0):
    """One that might look at other rows of the batch."""


def scaled(module: Any, inputs: Any, output: Any) -> Any:
    return 0.9 * output


def change(name: str) -> Callable[[Any], Any]:
    return {
        "scheduler": lambda p: setattr(
            p, "scheduler", diffusers.EulerDiscreteScheduler.from_config(p.scheduler.config)
        ),
        "settings of the scheduler": lambda p: p.scheduler.register_to_config(timestep_spacing="leading"),
        "table of the scheduler": lambda p: p.scheduler.alphas_cumprod.mul_(0.9),
        "weights behind the version": lambda p: p.unet.conv_in.weight.data.mul_(2),
        "one weight": written,
        "text encoder": lambda p: next(p.text_encoder.parameters()).data.add_(1),
        "autoencoder": lambda p: next(p.vae.parameters()).data.add_(1),
        "network": replaced,
        "dtype": lambda p: p.to(torch.float64),
        "adapter": add_adapter,
        "tokens": lambda p: p.tokenizer.add_tokens(["<mine>"]),
        "embeddings": lambda p: p.text_encoder.resize_token_embeddings(60),
        "freeu": lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
        "attention": lambda p: p.unet.set_attn_processor(OwnProcessor()),
        "dropout": dropped,
        "hook": lambda p: p.unet.mid_block.register_forward_hook(scaled),
        "hook before": lambda p: p.vae.decoder.register_forward_pre_hook(lambda *_: None),
        "forward of a module": lambda p: setattr(p.unet.mid_block, "forward", lambda x, *_, **__: x),
        "forward of a text encoder": lambda p: setattr(p.text_encoder, "forward", lambda *_, **__: None),
    }[name]


SAID = {
    "scheduler": "scheduler.class is DDIMScheduler in the certificate and EulerDiscreteScheduler here",
    "settings of the scheduler": "scheduler.timestep_spacing is trailing in the certificate and leading here",
    "table of the scheduler": "scheduler.alphas_cumprod is sha256",
    "weights behind the version": r"the weights differ \(sha256 .*changed since skipstone.adapt: unet.conv_in.weight",
    "one weight": "written to in place since skipstone.adapt: unet.conv_in.weight",
    "text encoder": r"the weights differ .* text_encoder",
    "autoencoder": r"the weights differ .* vae",
    "network": r"the weights differ .* unet.conv_out.weight",
    "dtype": "dtype is float32 in the certificate and float64 here",
    "adapter": "adapters.unet is not there in the certificate and style at 1 here",
    "tokens": "vocabulary.tokenizer is 54 tokens, .* in the certificate and 55 tokens, .* here",
    "embeddings": r"the weights differ .* text_encoder",
    "freeu": "freeu.unet is not there in the certificate and s1=0.9, s2=0.2, b1=1.2, b2=1.4 here",
    "attention": "attention.unet is not there in the certificate and OwnProcessor here",
    "dropout": "dropout.unet is not there in the certificate and 0.5 here",
    "hook": "hooks.unet is not there in the certificate and a forward hook of UNetMidBlock2DCross",
    "hook before": "hooks.vae is not there in the certificate and a forward hook of Decoder",
    "forward of a module": "replaced_forward.unet is not there in the certificate and .*UNetMidBlock2DCross",
    "forward of a text encoder": "replaced_forward.text_encoder is not there in the certificate and .*CLIPTextModel",
}


@pytest.mark.parametrize("name", SAID)
def test_what_changes_under_an_adapted_certificate_is_refused_by_name(policy: Certified, other: Any, name: str) -> None:
    with skipstone.adapt(other, policy, uncovered="error"):
        change(name)(other)
        with pytest.raises(CertificateError, match=f"does not cover this call: .*{SAID[name]}"):
            draw(other)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"num_inference_steps": 7}, "num_inference_steps is 6 in the certificate and 7 here"),
        ({"guidance_scale": 2.0}, "guidance_scale is 7.5 in the certificate and 2.0 here"),
        ({"height": 32}, "height is not there in the certificate and 32 here"),
        ({"eta": 0.5}, "eta is not there in the certificate and 0.5 here"),
        ({"negative_prompt": "blurry"}, "negative_prompt is not there in the certificate and blurry here"),
        ({"guidance_rescale": 0.7}, "guidance_rescale is 0.0 in the certificate and 0.7 here"),
        ({"timesteps": [900, 500, 100], "num_inference_steps": 6}, r"timesteps .* and \[900, 500, 100\] here"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "cross_attention_kwargs .*scale"),
        ({"prompt_embeds": torch.zeros(1, 48, 16)}, "prompt_embeds is not there in the certificate and sha256"),
    ],
)
def test_arguments_of_the_call_are_refused_by_name(
    policy: Certified, pipe: Any, more: dict[str, Any], said: str
) -> None:
    with skipstone.adapt(pipe, policy, uncovered="error"), pytest.raises(CertificateError, match=said):
        draw(pipe, **more)


def test_what_is_as_it_was_is_covered(policy: Certified, other: Any) -> None:
    """Nothing that leaves values as they are is taken for a change: copies, other layouts, changes taken back."""
    with skipstone.adapt(other, policy, uncovered="error") as adapted:
        made = draw(other)
        assert adapted.last.uncovered == ()
        assert "not covered" not in adapted.last.summary()
        assert json.loads(adapted.last.to_json())["uncovered"] == []
        draw(other, height=64, width=64, eta=0.0)  # the defaults, said
        other.unet = copy.deepcopy(other.unet).to(memory_format=torch.channels_last)
        other.unet.conv_in.weight.data.mul_(2)
        other.unet.conv_in.weight.data.mul_(0.5)
        add_adapter(other)
        other.unload_lora_weights()
        own, other.scheduler = other.scheduler, diffusers.EulerDiscreteScheduler()
        other.scheduler = own
        assert torch.allclose(draw(other), made, atol=1e-4)


def test_a_forward_that_a_class_was_given_is_noticed(
    policy: Certified, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with skipstone.adapt(other, policy, uncovered="error"):
        kind = type(other.unet)
        bare = kind.forward
        with monkeypatch.context() as patch:
            patch.setattr(kind, "forward", lambda *args, **kwargs: bare(*args, **kwargs))
            with pytest.raises(CertificateError, match=r"replaced_forward\.unet .* UNet2D"):
                draw(other)
        draw(other)
    assert not any("forward" in name or "hooks" in name for name in cheap_facts(other))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.set_ip_adapter_scale(0.1), "0.8 in the certificate and 0.1 here"),
        (lambda p: p.set_ip_adapter_scale({"up": {"block_1": [0.0]}}), "0.8 in the certificate and .*0"),
        (lambda p: p.set_ip_adapter_scale([0.8 + 1e-3]), "0.8 in the certificate and 0.801 here"),
        (lambda p: p.unet.set_attn_processor(AttnProcessor2_0()), "0.8 in the certificate and not there here"),
    ],
)
def test_the_scale_of_an_ip_adapter_is_held(
    policy: Certified, other: Any, change: Callable[[Any], Any], said: str
) -> None:
    """By the certificate; by what was there at the start where that is one of version 0.1.0, which lacks it."""
    width = other.unet.config.cross_attention_dim
    cross = (name for name in other.unet.attn_processors if "attn2" in name)
    parts = {name: other.unet.get_submodule(name.removesuffix(".processor")) for name in cross}
    processors = {
        name: IPAdapterAttnProcessor2_0(parts[name].inner_dim, width, scale=0.8) if name in parts else processor
        for name, processor in other.unet.attn_processors.items()
    }
    other.unet.set_attn_processor(processors)
    mine = on(policy, other)
    assert mine.certificate.identity["attention_scale.unet"] == "0.8"
    known = {name: value for name, value in mine.certificate.identity.items() if name != "attention_scale.unet"}
    older = replace(mine, certificate=replace(mine.certificate, identity=known))
    covered = [(Coverage(one, other), called(other)) for one in (mine, older)]
    assert all(coverage.differences(other, call) == () for coverage, call in covered)
    change(other)
    for coverage, call in covered:
        assert re.search(f"attention_scale.unet is {said}", "; ".join(coverage.differences(other, call)))
    with pytest.raises(CertificateError, match=r"attention_scale\.unet"):
        Coverage(mine, other)


def test_the_layout_of_scales_and_several_adapters_are_told_apart() -> None:
    facts = []
    for scales in ([[0.5]] * 3, [[0.5], [0.5], [1]], [[1.0], [0.5], [0.5]], [[0.5, 1.0]] * 3, [torch.tensor(0.5)] * 3):
        network = torch.nn.ModuleList(torch.nn.Module() for _ in scales)
        for module, scale in zip(network, scales, strict=True):
            module.processor = SimpleNamespace(scale=scale)
        facts.append(cheap_facts(SimpleNamespace(components={"n": network}))["attention_scale.n"])
    assert facts == ["0.5", "2 at 0.5, 1 at 1", "1 at 1, 2 at 0.5", "0.5 and 1", "0.5"]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.set_shift(6.0),
        lambda s: setattr(s, "sigma_min", 0.1),
        lambda s: setattr(s, "sigma_max", 0.9),
    ],
)
def test_what_a_scheduler_made_from_its_settings_is_held(
    policy: Certified, other: Any, change: Callable[[Any], Any]
) -> None:
    other.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    mine = replace(policy, point=replace(policy.point, scheduler=scheduler_to_config(other.scheduler)))
    coverage = Coverage(mine, other)
    other.scheduler.set_timesteps(5)
    assert coverage.differences(other, called(other)) == ()
    change(other.scheduler)
    (said,) = coverage.differences(other, called(other))
    assert re.match(r"scheduler\.(_shift is 3\.0 .* 6\.0 here|sigma_m.* 0\.[19] here)", said)


def stopped_guidance(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe._guidance_scale = 3.0
    return given


def interrupted(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = step > 2
    return given


CALLBACKS_THAT_CHANGE: dict[str, tuple[Callable[..., Any], str]] = {
    "new latents": (lambda pipe, step, time, given: {"latents": 0.9 * given["latents"]}, "latents"),
    "in place": (lambda pipe, step, time, given: {"latents": given["latents"].mul_(0.9)}, "latents"),
    "another tensor": (lambda pipe, step, time, given: {"prompt_embeds": torch.zeros(2, 48, 16)}, "prompt_embeds"),
    "guidance": (stopped_guidance, "_guidance_scale"),
    "interrupt": (interrupted, "_interrupt"),
}


@pytest.mark.parametrize("name", CALLBACKS_THAT_CHANGE)
def test_a_callback_that_changes_the_run_is_found(policy: Certified, other: Any, name: str) -> None:
    callback, said = CALLBACKS_THAT_CHANGE[name]
    with skipstone.adapt(other, policy) as adapted:
        with pytest.warns(GuestWarning, match=f"does not cover this call: a callback changed {said}. Nothing"):
            draw(other, callback_on_step_end=callback)
        assert adapted.last.uncovered == (f"a callback changed {said}",)
        draw(other)
        assert adapted.last.uncovered == ()
    with (
        skipstone.adapt(other, policy, uncovered="error"),
        pytest.raises(CertificateError, match=f"a callback changed {said}. .* uncovered='warn'"),
    ):
        draw(other, callback_on_step_end=callback)


def copied(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
    return dict(given)


@pytest.mark.parametrize(
    "callback", [lambda pipe, step, time, given: given, lambda pipe, step, time, given: {}, copied]
)
def test_a_callback_that_only_looks_is_covered(
    policy: Certified, other: Any, callback: Callable[..., dict[str, Any]]
) -> None:
    with skipstone.adapt(other, policy, uncovered="error") as adapted:
        draw(other, callback_on_step_end=callback)
    assert adapted.last.uncovered == ()


@pytest.mark.parametrize(
    "callback",
    [
        SDCFGCutoffCallback(cutoff_step_ratio=0.5),
        IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.5),
        MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=0.5)]),
    ],
)
def test_a_callback_object_of_diffusers_is_refused_by_name(policy: Certified, other: Any, callback: Any) -> None:
    said = f"callback_on_step_end is not there in the certificate and {type(callback).__name__} here"
    with skipstone.adapt(other, policy, uncovered="error"), pytest.raises(CertificateError, match=said):
        draw(other, callback_on_step_end=callback)


def test_what_a_batch_says_for_each_sample_is_what_one_call_said(policy: Certified, pipe: Any) -> None:
    call = {**policy.certificate.call, "negative_prompt": "blurry"}
    mine = replace(policy, certificate=replace(policy.certificate, call=call))
    with skipstone.adapt(pipe, mine, uncovered="error"):
        pipe(["a red cat"] * 2, **CALL, negative_prompt=["blurry"] * 2)
        with pytest.raises(CertificateError, match=r"negative_prompt is blurry in the certificate and \["):
            pipe(["a red cat"] * 2, **CALL, negative_prompt=["blurry", "dark"])


def test_under_another_scheduler_the_picture_is_that_of_the_bare_policy_and_said_to_be_uncovered(
    policy: Certified, other: Any
) -> None:
    with skipstone.adapt(other, policy) as adapted:
        other.scheduler = diffusers.EulerDiscreteScheduler.from_config(other.scheduler.config)
        with pytest.warns(GuestWarning, match=r"scheduler.class is DDIMScheduler .* Nothing is promised of it"):
            made = draw(other)
    assert re.search(r"not covered: scheduler.class is DDIMScheduler", adapted.last.summary())
    assert json.loads(adapted.last.to_json())["uncovered"] == list(adapted.last.uncovered) != []
    with skipstone.adapt(other, registry.spell(policy)) as bare:
        assert torch.equal(draw(other), made)
    assert bare.last.uncovered == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error", GuestWarning)
        with skipstone.adapt(other, replace(policy, forced=True)):  # whoever forces it is not told again
            draw(other)


# -- Adapters ---------------------------------------------------------------------------------------


def on(policy: Certified, pipe: Any) -> Certified:
    """The policy, as if it had been calibrated on the pipeline as it is."""
    return replace(policy, certificate=replace(policy.certificate, identity=identity(pipe)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.set_adapters("style", 0.5), "style at 1 in the certificate and style at 0.5 here"),
        (lambda p: p.disable_lora(), "adapters.unet is style at 1 in the certificate and not there here"),
        (lambda p: p.fuse_lora(), r"style at 1 in the certificate and style \(fused\) at 1 here"),
        (lambda p: p.unload_lora_weights(), "adapters.unet is style at 1 in the certificate and not there here"),
        (lambda p: add_adapter(p, "lines"), "style at 1 in the certificate and lines at 1"),
    ],
)
def test_adapters_are_held_by_name_and_scale(
    policy: Certified, other: Any, change: Callable[[Any], Any], said: str
) -> None:
    add_adapter(other)
    mine = on(policy, other)
    with skipstone.adapt(other, mine, uncovered="error"):
        draw(other)
        change(other)
        with pytest.raises(CertificateError, match=said):
            draw(other)
    with pytest.raises(CertificateError, match=r"adapters\.unet|the weights"):
        skipstone.load_policy(mine.save_pretrained(Path(other.config._name_or_path).parent / "lora"), other)


def test_facts_that_older_certificates_lack_are_held_against_those_at_the_start(policy: Certified, other: Any) -> None:
    known = {name: value for name, value in policy.certificate.identity.items() if "." not in name}
    older = replace(policy, certificate=replace(policy.certificate, identity=known))
    with skipstone.adapt(other, older, uncovered="error"):
        draw(other)
        other.tokenizer.add_tokens(["<mine>"])
        with pytest.raises(CertificateError, match=r"vocabulary\.tokenizer"):
            draw(other)


def test_a_cache_of_diffusers_and_a_compiled_network_are_told_apart() -> None:
    network: Any = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=1,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    pipe = SimpleNamespace(components={"transformer": network})
    before = identity(pipe)
    network.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    assert cheap_facts(pipe)["cache.transformer"] == "FirstBlockCacheConfig"
    network.disable_cache()
    pipe.components["transformer"] = torch.compile(network)
    assert identity(pipe) == before


def test_weights_that_are_offloaded_are_looked_at_where_they_are(policy: Certified, other: Any) -> None:
    accelerate.cpu_offload(other.unet, torch.device("cpu"), offload_buffers=True)
    assert all(tensor.is_meta for tensor in other.unet.parameters())
    with skipstone.adapt(other, policy, uncovered="error") as adapted:
        draw(other)
        assert adapted.last.uncovered == ()
        other.unet.conv_in._hf_hook.weights_map["weight"].data.mul_(2)
        with pytest.raises(CertificateError, match=r"the weights differ .* unet\.conv_in\.weight"):
            draw(other)


# -- Settings of adapt ------------------------------------------------------------------------------


def test_another_solver_is_refused_and_whole_batches_are_said(policy: Certified, pipe: Any) -> None:
    with pytest.raises(CertificateError, match=r"made with the solver own, and adams was asked for"):
        skipstone.adapt(pipe, policy, solver="adams")
    with (
        skipstone.adapt(pipe, policy, per_sample=False, uncovered="error"),
        pytest.raises(CertificateError, match="per_sample is true in the certificate and false here"),
    ):
        draw(pipe)
    with pytest.raises(SpecError, match="expected 'warn' or 'error', got 'ignore'"):
        skipstone.adapt(pipe, policy, uncovered="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(("way", "setting"), [("adams / own / 6", "stride(tol=0.1)"), ("adams / own / 6", "fixed")])
def test_the_solver_of_the_certificate_takes_the_loop_over(
    policy: Certified, pipe: Any, way: str, setting: str
) -> None:
    """Also where a fixed sampler that diffusers lacks was found to be best."""
    point = replace(policy.point, way=way, setting=setting, fixed=setting == "fixed")
    certificate = replace(policy.certificate, points=(point,))
    mine, _ = Certified.from_certificate(certificate)
    with skipstone.adapt(pipe, mine, uncovered="error"):
        made = draw(pipe)
    with skipstone.adapt(pipe, setting, solver="adams"):
        assert torch.equal(draw(pipe), made)


# -- What is looked at ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (SAMPLED + 1,), (3, 5, 9, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_snapshot_notices_what_is_written_and_nothing_that_is_moved(
    dtype: torch.dtype, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    network = torch.nn.Module()
    tensor = torch.ones(shape).to(dtype)
    network.register_buffer("x", tensor.contiguous(memory_format=layout) if len(shape) == 4 else tensor)
    before = WeightSnapshot.of({"n": network})
    network.x = network.x.clone(memory_format=torch.preserve_format)
    moved = WeightSnapshot.of({"n": network})
    assert (moved.changed(before), moved.written(before)) == ([], [])
    network.x.data.zero_()
    assert WeightSnapshot.of({"n": network}).changed(before) == (["n.x"] if tensor.numel() else [])
    assert WeightSnapshot.of({"n": network}).written(moved) == []
    network.x.zero_()
    assert WeightSnapshot.of({"n": network}).written(moved) == ["n.x"]


def test_a_snapshot_keeps_no_weights_alive() -> None:
    network = torch.nn.Linear(3, 3)
    snapshot = WeightSnapshot.of({"n": network})
    del network
    assert all(tensor() is None for tensor, _ in snapshot.objects.values())


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        ([torch.zeros(2)], [torch.ones(2)]),
        ({"scale": 0.5}, {"scale": 1.0}),
        ({("a", 1): 0.5}, {("a", 2): 0.5}),
        (object(), object()),
        (float("inf"), float("nan")),
    ],
)
def test_arguments_are_told_apart_by_their_content(one: Any, another: Any) -> None:
    assert describe_argument(one) == describe_argument(copy.copy(one) if isinstance(one, torch.Tensor) else one)
    assert describe_argument(one) != describe_argument(another)
    json.dumps([describe_argument(one), describe_argument(another)], allow_nan=False)
