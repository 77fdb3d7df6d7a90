"""Rows enter the network apart only where that is declared or shown: else whole batches, or an error that says why."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

import skipstone
from skipstone.errors import GuestError, GuestWarning
from skipstone.integrations.diffusers.pipeline_specs import find_pipeline_spec
from skipstone.integrations.diffusers.row_slicing import NetworkCall, RowSlicer, Split
from skipstone.integrations.diffusers.rows import has_nested_rows, is_plain
from skipstone.integrations.diffusers.undeclared import NetworkWatch, find_undeclared
from skipstone.testing.guest import FreezeAt

from .families import FAMILIES, build
from .families.extras import ip_adapter, ip_adapter_call
from .families.parts import noise, seeded
from .runs import BATCH, STEPS, run_bare, tiny_pipeline
from .test_misuse import Bare, Mean

PARTING = "interval(every=2, warmup=2, tail=1)"
GATE = "guidance_gate(below=0.9)"
APART = "third_order(tol=0.01)"  # samples of the tiny pipeline skip different steps


class FirstFrame(AttnProcessor2_0):
    """Every row attends to the keys and values of row 0, as frames of text-to-video-zero do."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().__call__(attn, hidden_states + 0.5 * hidden_states[:1], *args, **kwargs)


def add_processor(pipe: Any) -> None:
    pipe.unet.set_attn_processor(FirstFrame())


def add_hook(pipe: Any) -> None:
    pipe.unet.register_forward_hook(lambda module, args, out: (out[0] + 0.5 * out[0].mean(0, keepdim=True),))


def add_pre_hook_inside(pipe: Any) -> None:
    pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: (args[0] + 0.5 * args[0].flip(0),))


def replace_class(pipe: Any) -> None:
    class Neighbours(type(pipe.unet.conv_out)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + 0.5 * x.roll(1, 0))  # type: ignore[no-any-return]

    pipe.unet.conv_out.__class__ = Neighbours


COUPLINGS = (add_processor, add_hook, add_pre_hook_inside, replace_class)


@contextmanager
def entered(pipe: Any) -> Iterator[list[int]]:
    """Rows of each call of the network."""
    rows: list[int] = []
    inner = type(pipe.unet).forward

    def forward(self: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(sample))
        return inner(self, sample, *args, **kwargs)

    forward.__module__ = inner.__module__  # as if it were diffusers' own
    type(pipe.unet).forward = forward
    try:
        yield rows
    finally:
        type(pipe.unet).forward = inner


@pytest.mark.parametrize("couple", COUPLINGS)
@pytest.mark.parametrize("policy", [FreezeAt(6, 0), GATE], ids=["one sample ends", "gate"])
def test_coupled_rows_of_a_declared_pipeline_enter_together(
    pipe: Any, couple: Callable[[Any], None], policy: Any
) -> None:
    couple(pipe)
    reference = run_bare(pipe)
    with skipstone.adapt(pipe, "fixed") as guest:
        assert torch.equal(run_bare(pipe), reference)
    assert guest.last.verified == 0
    with skipstone.adapt(pipe, policy) as guest:
        with pytest.warns(GuestWarning, match="not independent"):
            run_bare(pipe)
        assert guest.last.verified > 0
        with entered(pipe) as rows, pytest.warns(GuestWarning, match="not independent"):
            run_bare(pipe)
        assert guest.last.verified > 0, "a processor may be set otherwise by now"
    apart = [n for n in rows if n < 2 * BATCH]
    assert sum(apart) <= guest.last.verified, "rows enter apart to be compared, and never else"


@pytest.mark.parametrize("couple", COUPLINGS)
def test_coupled_rows_are_an_error_for_those_who_ask(pipe: Any, couple: Callable[[Any], None]) -> None:
    couple(pipe)
    with (
        skipstone.adapt(pipe, FreezeAt(6, 0), verify_rows=True),
        pytest.raises(GuestError, match=r"Rows of UNet2DConditionModel are not independent.*per_sample=False"),
    ):
        run_bare(pipe)


def test_harmless_additions_are_compared_and_then_trusted(pipe: Any, plain: Any) -> None:
    with skipstone.adapt(plain, APART) as guest:
        expected, decisions = run_bare(plain), [s.decisions for s in guest.last]
        assert guest.last.verified == 0, "a declared pipeline as it is built is not compared"
    pipe.unet.register_forward_hook(lambda module, args, out: None)
    with skipstone.adapt(pipe, APART) as guest:
        ran = run_bare(pipe)
    assert 0 < guest.last.verified <= 4 * BATCH
    assert [s.decisions for s in guest.last] == decisions
    assert float((ran - expected).norm() / expected.norm()) < 1e-5


class HalfByHalf(AttnProcessor2_0):
    """Rows of each half of the batch share their mean, as with style alignment: nothing to see with one row a half."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        halves = hidden_states.chunk(2)
        shared = torch.cat([half + 0.5 * (half.mean(0, keepdim=True) - half) for half in halves])
        return super().__call__(attn, shared, *args, **kwargs)


def test_what_one_batch_has_shown_is_not_believed_of_another(pipe: Any) -> None:
    pipe.unet.set_attn_processor(HalfByHalf())
    with skipstone.adapt(pipe, GATE) as guest:
        run_bare(pipe, batch=1)
        with pytest.warns(GuestWarning, match="not independent"):
            run_bare(pipe, batch=4)
    assert guest.last.calls >= STEPS - 0.5


def test_a_hook_that_takes_the_place_of_another_is_compared_again(pipe: Any) -> None:
    def put(strength: float) -> Any:
        return pipe.unet.register_forward_hook(lambda m, a, out: (out[0] + strength * out[0].mean(0, keepdim=True),))

    with skipstone.adapt(pipe, FreezeAt(6, 0)) as guest:
        hook = put(0.0)
        run_bare(pipe)
        assert guest.last.saved > 0
        hook.remove()
        put(0.5)
        with pytest.warns(GuestWarning, match="not independent"):
            run_bare(pipe)


def test_a_processor_that_is_set_in_mid_run_is_seen(pipe: Any) -> None:
    def couple(p: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            p.unet.set_attn_processor(FirstFrame())
        return values

    with skipstone.adapt(pipe, GATE), pytest.warns(GuestWarning, match="processor FirstFrame"):
        run_bare(pipe, callback_on_step_end=couple)


def test_outputs_that_are_not_finite_show_nothing(pipe: Any) -> None:
    add_processor(pipe)
    latents = torch.full((BATCH, 4, 8, 8), torch.nan)
    with skipstone.adapt(pipe, GATE) as guest:
        run_bare(pipe, latents=latents)
        with pytest.warns(GuestWarning, match="not independent"):
            run_bare(pipe)
    assert guest.last.calls >= STEPS - 0.5


class Counting(AttnProcessor2_0):
    """Counts its calls, as processors that act at some steps only do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        return super().__call__(*args, **kwargs)


def test_a_processor_that_counts_is_called_once_a_step(pipe: Any, plain: Any) -> None:
    for one in (pipe, plain):
        one.unet.set_attn_processor(Counting())
    run_bare(plain)
    with skipstone.adapt(pipe, GATE), pytest.warns(GuestWarning, match="not independent"):
        run_bare(pipe)
    calls = [next(iter(one.unet.attn_processors.values())).calls for one in (pipe, plain)]
    assert calls[0] == calls[1]


@pytest.mark.parametrize("argument", [np.float32(1.0), object()])
def test_a_controlnet_is_whole_where_its_network_is(argument: Any) -> None:
    """Residuals of rows that stayed out are zero: outputs that were computed with them are not used."""
    made = []
    for more in ({}, {"cross_attention_kwargs": {"note": argument}}):
        pipe = build("controlnet-sd")
        with skipstone.adapt(pipe, GATE) as guest, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.append(pipe(**FAMILIES["controlnet-sd"].inputs(pipe, 1, 10), **more).images)
    assert guest.last.saved == 0.0
    assert float((made[0] - made[1]).norm() / made[0].norm()) < 1e-5


@pytest.mark.parametrize("name", ["pyramid", "faster"])
def test_caches_that_functions_of_diffusers_put_on_a_network_are_seen(pipe: Any, name: str) -> None:
    common = {"current_timestep_callback": lambda: 500, "spatial_attention_block_skip_range": 2}
    if name == "pyramid":
        config = diffusers.PyramidAttentionBroadcastConfig(**common, spatial_attention_timestep_skip_range=(0, 1000))
        diffusers.hooks.apply_pyramid_attention_broadcast(pipe.unet, config)
    else:
        config = diffusers.FasterCacheConfig(**common, spatial_attention_timestep_skip_range=(0, 1000))
        diffusers.hooks.apply_faster_cache(pipe.unet, config)
    assert find_undeclared([pipe.unet]).caches
    if name == "faster":  # of which this network is too small a one
        return
    with (
        skipstone.adapt(pipe, "adaptive_grid"),
        pytest.raises(GuestError, match=r"a cache of diffusers \(enable_cache\)"),
    ):
        run_bare(pipe)


def test_a_wrapper_around_an_offloaded_forward_is_seen(pipe: Any) -> None:
    inner = pipe.unet.forward
    pipe.enable_model_cpu_offload(device="cpu")
    assert not find_undeclared([pipe.unet]).replaced
    for wrapped in (pipe.unet.forward, inner):
        pipe.unet.forward = functools.partial(lambda f, *args, **kwargs: f(*args, **kwargs), wrapped)
        assert find_undeclared([pipe.unet]).replaced == ("a UNet2DConditionModel",)
    pipe.unet.forward = inner
    pipe.unet._old_forward = lambda *args, **kwargs: inner(*args, **kwargs)
    assert find_undeclared([pipe.unet]).replaced == ("a UNet2DConditionModel",)


def test_a_replaced_forward_is_not_called_twice_for_one_step(pipe: Any) -> None:
    inner, seen = pipe.unet.forward, []

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(sample))
        return inner(sample, *args, **kwargs)

    pipe.unet.forward = forward
    with (
        skipstone.adapt(pipe, GATE),
        pytest.warns(GuestWarning, match="forward of a UNet2DConditionModel was replaced"),
    ):
        run_bare(pipe, steps=8)
    assert seen == [2 * BATCH] * 8


def test_a_subclass_with_a_call_of_its_own_has_no_branch_names(pipe: Any) -> None:
    class Mine(diffusers.StableDiffusionPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    mine = Mine(**pipe.components, requires_safety_checker=False)
    mine.set_progress_bar_config(disable=True)
    with skipstone.adapt(mine, GATE), pytest.raises(GuestError, match=r"guidance_gate.*branches=\('cond', 'uncond'\)"):
        run_bare(mine)
    with skipstone.adapt(mine, APART) as guest:
        run_bare(mine)
    assert guest.last.saved > 0
    assert guest.last.verified > 0
    with skipstone.adapt(mine, "adaptive_grid"), pytest.raises(GuestError, match="no declaration says what it does"):
        run_bare(mine)


def test_a_subclass_that_keeps_the_call_is_as_declared(pipe: Any) -> None:
    class Mine(diffusers.StableDiffusionPipeline):
        pass

    mine = Mine(**pipe.components, requires_safety_checker=False)
    mine.set_progress_bar_config(disable=True)
    with skipstone.adapt(mine, GATE) as guest:
        run_bare(mine)
    assert guest.last.verified == 0
    assert guest.last.saved > 0


def test_an_undeclared_pipeline_with_branches_refuses_what_needs_their_names() -> None:
    class Guided(Bare):
        """Calls the conditional branch first, in a call of its own."""

        def __call__(self, **kwargs: Any) -> torch.Tensor:
            self.scheduler.set_timesteps(12)
            x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
            for t in self.scheduler.timesteps:
                cond, uncond = self.unet(x, t)[0], self.unet(-x, t)[0]
                x = self.scheduler.step(uncond + 3 * (cond - uncond), t, x).prev_sample
            return x

    pipe = Guided(unet=Mean(), scheduler=diffusers.DDIMScheduler(clip_sample=False))
    bare = pipe()
    with skipstone.adapt(pipe, GATE), pytest.raises(GuestError, match="in which order Guided computes its 2 branches"):
        pipe()
    with skipstone.adapt(pipe, "fixed") as guest:
        assert torch.equal(pipe(), bare)
    assert guest.last.saved == 0.0
    assert guest.last.calls == 12
    with skipstone.adapt(pipe, PARTING) as guest:
        pipe()
    assert guest.last.saved > 0


# -- arguments ------------------------------------------------------------------------------------


class Cache:
    """Keys and values of a batch, which a call extends: calling twice with the same object is wrong."""

    def __init__(self) -> None:
        self.rows: list[int] = []


class Stateful(Mean):
    def forward(self, sample: torch.Tensor, timestep: Any, table: Any = None, cache: Any = None) -> tuple[torch.Tensor]:
        cache.rows.append(len(sample))
        return super().forward(sample, timestep)


class Cached(Bare):
    """A pipeline that hands an object with state to its network, nested where `wrap` puts it."""

    wrap: Callable[[Any], Any] = staticmethod(lambda cache: cache)

    def __call__(self, batch: int = 3) -> torch.Tensor:
        self.cache = Cache()
        self.scheduler.set_timesteps(16)
        x = torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        x = x * torch.arange(1.0, batch + 1)[:, None, None, None]
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t, cache=self.cache)[0], t, x).prev_sample
        return x


def test_an_object_that_may_keep_state_is_used_once_a_step_and_by_whole_batches() -> None:
    pipe = Cached(unet=Stateful(), scheduler=diffusers.DDIMScheduler(clip_sample=False))
    bare = pipe()
    for spec in ("fixed", PARTING, APART):
        with skipstone.adapt(pipe, spec) as guest:
            out = pipe()
        assert set(pipe.cache.rows) == {3}
        assert len(pipe.cache.rows) <= 16
        assert guest.last.verified == 0
        assert torch.equal(out, bare) == (guest.last.saved == 0)


@pytest.mark.parametrize(
    "value",
    [Cache(), [Cache()], {"a": (Cache(),)}, lambda: None, iter([1]), {1, 2}, torch.Generator()],
    ids=["object", "in a list", "in a tuple in a dict", "function", "iterator", "set", "generator"],
)
def test_what_may_keep_state(value: Any) -> None:
    assert not is_plain(value)
    call = NetworkCall(Mean(), Mean(), (torch.zeros(4, 2), value), {"a": value, "b": 1}, 4)
    assert call.stateful == ["argument 2", "a"]


@pytest.mark.parametrize(
    "value", [None, 1, 2.0, "a", torch.zeros(2), torch.float16, [torch.zeros(4)], {"a": (1, None)}]
)
def test_what_keeps_none(value: Any) -> None:
    assert is_plain(value)


class Table(nn.Module):
    """Rows, and a table in a container that has as many entries as the batch has rows, and belongs to all of them."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, sample: torch.Tensor, extra: Any) -> torch.Tensor:
        table = extra["tables"][0]
        return sample + (table.sum() if self.whole else table[:, None])


@pytest.mark.parametrize("whole", [True, False])
def test_a_nested_tensor_is_sliced_only_where_that_is_shown(whole: bool) -> None:
    x, table = torch.arange(8.0).reshape(4, 2), torch.tensor([1.0, 20.0, 300.0, 4000.0])
    module = Table(whole)
    call = NetworkCall(module, module, (x,), {"extra": {"tables": [table]}}, 4)
    assert has_nested_rows(call.kwargs["extra"], 4)
    assert not has_nested_rows(call.kwargs["extra"], 3)
    slicer = RowSlicer(find_pipeline_spec(build("sd15")), NetworkWatch([]))
    assert slicer.is_due(call, Split.SAMPLES)
    slicer.prove(call, Split.SAMPLES, module(*call.args, **call.kwargs), [[0, 2], [1, 3]])
    assert not slicer.is_due(call, Split.SAMPLES)
    rule = slicer.rule(call, Split.SAMPLES)
    assert rule == (frozenset({"extra"}) if whole else frozenset())
    assert torch.equal(slicer.run_rows(call, rule, [1]), module(*call.args, **call.kwargs)[[1]])


def test_a_nested_tensor_that_is_neither_makes_whole_batches() -> None:
    class Both(Table):
        def forward(self, sample: torch.Tensor, extra: Any) -> torch.Tensor:
            return sample + extra["tables"][0][:, None] + extra["tables"][1].sum()

    module = Both(True)
    table = torch.tensor([1.0, 20.0, 300.0, 4000.0])
    call = NetworkCall(module, module, (torch.zeros(4, 2),), {"extra": {"tables": [table, table]}}, 4)
    slicer = RowSlicer(find_pipeline_spec(build("sd15")), NetworkWatch([]))
    slicer.prove(call, Split.SAMPLES, module(*call.args, **call.kwargs), [[0, 2], [1, 3]])
    assert slicer.rule(call, Split.SAMPLES) is None
    assert "not independent" in slicer.reason


def test_masks_of_two_ip_adapters_are_not_taken_for_rows() -> None:
    """One guided sample has two rows, and the masks of two adapters two entries."""
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :, :4], masks[1, :, :, 4:] = 1.0, 1.0
    made = []
    for given in ([masks[:1], masks[1:]], masks):
        pipe = ip_adapter(2)
        pipe.set_progress_bar_config(disable=True)
        inputs = ip_adapter_call(pipe, 1, 8)
        inputs |= {"ip_adapter_image_embeds": 2 * inputs["ip_adapter_image_embeds"]}
        with skipstone.adapt(pipe, GATE) as guest:
            made.append(pipe(**inputs, cross_attention_kwargs={"ip_adapter_masks": given}).images)
        assert guest.last.saved > 0
    assert float((made[0] - made[1]).norm() / made[0].norm()) < 1e-5


class Processor:
    """What the pipeline asks of a chat model's processor where it is given embeddings."""

    config = None
    tokenizer = SimpleNamespace(encode=lambda text: [7])

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        return [[1, 2, 3]]


def qwen_image() -> Any:
    """A Qwen-Image 2.1, which nobody has declared, and which keeps keys and values from step to step."""
    network = seeded(
        diffusers.QwenImage21Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        context_in_dim=8,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = diffusers.QwenImage21Pipeline(
        scheduler=scheduler, vae=None, text_encoder=None, processor=Processor(), transformer=network
    )
    pipe.latent_channels = 4
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.skipif(not hasattr(diffusers, "QwenImage21Pipeline"), reason="diffusers has it since 0.42")
def test_a_pipeline_that_keeps_keys_and_values_runs_in_whole_batches() -> None:
    pipe = qwen_image()

    def run(batch: int = 2) -> torch.Tensor:
        states = {"prompt_embeds": noise(batch, 5, 8, seed=1), "negative_prompt_embeds": noise(batch, 5, 8, seed=2)}
        seeds = [torch.Generator().manual_seed(i) for i in range(batch)]
        made: torch.Tensor = pipe(
            **states, true_cfg_scale=3.0, height=64, width=64, num_inference_steps=8, generator=seeds,
            output_type="latent", use_kv_cache=True,
        ).images  # fmt: skip
        return made

    bare = run()
    with skipstone.adapt(pipe, "fixed"):
        assert torch.equal(run(), bare)
    with skipstone.adapt(pipe, FreezeAt(4, 0)) as guest, pytest.warns(GuestWarning, match=r"state \(kv_cache\)"):
        assert torch.equal(run()[1:], bare[1:])
    assert guest.last.verified == 0
    with skipstone.adapt(pipe, GATE), pytest.raises(GuestError, match="in which order QwenImage21Pipeline computes"):
        run()


# -- takeovers ------------------------------------------------------------------------------------


def test_a_takeover_keeps_to_what_is_asked_of_batches(pipe: Any) -> None:
    with (
        skipstone.adapt(pipe, "adaptive_grid", per_sample=False),
        pytest.raises(GuestError, match=r"samples must stay together \(per_sample=False\)"),
    ):
        run_bare(pipe)
    with entered(pipe) as rows, skipstone.adapt(pipe, "adaptive_grid", per_sample=False) as guest:
        run_bare(pipe, batch=1)
    assert set(rows) == {2}
    assert guest.last.calls == len(rows)


@pytest.mark.parametrize("couple", COUPLINGS)
def test_a_takeover_of_coupled_rows_is_refused(pipe: Any, couple: Callable[[Any], None]) -> None:
    couple(pipe)
    reference = run_bare(pipe)
    with skipstone.adapt(pipe, "adaptive_grid"), pytest.raises(GuestError, match="are not independent"):
        run_bare(pipe)
    assert torch.equal(run_bare(pipe), reference)


@pytest.mark.parametrize(
    "config",
    [
        lambda pipe: diffusers.FirstBlockCacheConfig(threshold=0.05),
        lambda pipe: diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 2000),
            current_timestep_callback=lambda: pipe.current_timestep,
        ),
    ],
)
def test_a_takeover_with_a_cache_of_diffusers_is_refused(config: Callable[[Any], Any]) -> None:
    pipe = build("flux")
    pipe.transformer.enable_cache(config(pipe))
    call = FAMILIES["flux"].inputs
    bare = pipe(**call(pipe, 1, 20)).images
    with (
        skipstone.adapt(pipe, "adaptive_grid"),
        pytest.raises(GuestError, match=r"a cache of diffusers \(enable_cache\)"),
    ):
        pipe(**call(pipe, 1, 20))
    again = pipe(**call(pipe, 1, 20)).images  # a pyramid's cache is not what it was
    with skipstone.adapt(pipe, "fixed"):
        assert torch.equal(pipe(**call(pipe, 1, 20)).images, again) or not torch.equal(bare, again)


def test_a_takeover_names_a_sample_that_is_not_finite(pipe: Any) -> None:
    latents = torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents[1, 0, 0, 0] = torch.nan
    with (
        skipstone.adapt(pipe, "adaptive_grid"),
        pytest.raises(GuestError, match=r"not finite .* for sample 1 of the batch"),
    ):
        run_bare(pipe, latents=latents)


def test_a_takeover_of_guidance_that_changes_is_refused(pipe: Any) -> None:
    class Bar:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *args: Any) -> None: ...

        def update(self) -> None:
            self.count = getattr(self, "count", 0) + 1
            if self.count == 5:
                pipe._guidance_scale = 1.0

    pipe.progress_bar = lambda total=None, iterable=None: Bar()
    with (
        skipstone.adapt(pipe, "adaptive_grid"),
        pytest.raises(GuestError, match="calls its network otherwise than in its first step"),
    ):
        run_bare(pipe, steps=16)


# -- what is looked at ------------------------------------------------------------------------------


def test_networks_as_they_are_built_are_as_declared() -> None:
    for family in ("sd15", "sdxl", "flux", "ip-adapter", "cogvideox", "wan21", "latte"):
        pipe = build(family)
        networks = [m for n, m in pipe.components.items() if n in ("unet", "transformer")]
        found = find_undeclared(networks)
        assert not found.parts
        assert not found.replaced


def test_a_forward_patched_into_the_class_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    kind = type(pipe.unet.conv_norm_out)
    monkeypatch.setattr(kind, "forward", lambda self, x: x)
    assert find_undeclared([pipe.unet]).replaced == ("GroupNorm",)


def test_hooks_of_accelerate_are_known(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")
    assert find_undeclared([pipe.unet]) == find_undeclared([tiny_pipeline().unet])
