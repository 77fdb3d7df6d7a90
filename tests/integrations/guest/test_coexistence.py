"""The guest beside everything else that people do to a pipeline: offloading, adapters, caches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
)

import skipstone
from skipstone.engine.contracts import Forecast, Plan, Policy, Run
from skipstone.errors import GuestWarning
from skipstone.testing.guest import count_rows

from .families import FAMILIES, build
from .runs import BATCH, SPECS, assert_same_as, run_adapted, run_bare

CPU = torch.device("cpu")


# -- where the weights lie, and how they are used --------------------------------------------------


def test_model_offload_survives_every_call(pipe: Any, plain: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")
    for spec in SPECS:  # hooks are put on anew after every call
        assert_same_as(pipe, plain, specs=(spec,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="accelerate's sequential offload fails on a CPU, bare too")
def test_sequential_offload(pipe: Any, plain: Any) -> None:
    pipe.enable_sequential_cpu_offload()
    assert_same_as(pipe, plain.to("cuda"), gap=1e-5)


def test_group_offload(pipe: Any, plain: Any) -> None:
    pipe.unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    assert_same_as(pipe, plain)


def test_offload_between_two_runs_of_one_guest(pipe: Any, plain: Any) -> None:
    expected = run_adapted(plain, SPECS[1])
    with skipstone.adapt(pipe, SPECS[1]) as guest:
        run_bare(pipe)
        pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(3):
            assert torch.equal(run_bare(pipe), expected.output)
            assert [s.decisions for s in guest.last] == expected.decisions


@pytest.mark.parametrize("slicing", ["attention", "vae", "vae tiling"])
def test_slicing(pipe: Any, plain: Any, slicing: str) -> None:
    """Attention in slices rounds differently; the picture is decoded here, since slices of the decoder matter then."""
    if slicing == "attention":
        pipe.enable_attention_slicing(1)
    elif slicing == "vae":
        pipe.vae.enable_slicing()
    else:
        pipe.vae.enable_tiling()
    assert_same_as(pipe, plain, gap=1e-5, output_type="pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(pipe: Any, dtype: torch.dtype) -> None:
    pipe.to(dtype)
    reference = run_bare(pipe)
    assert torch.equal(run_adapted(pipe, "fixed").output, reference)
    for spec in SPECS:
        ran = run_adapted(pipe, spec)
        assert ran.output.dtype == reference.dtype == dtype
        assert ran.output.isfinite().all()
        assert ran.account.saved > 0


def test_moving_an_adapted_pipeline(pipe: Any, plain: Any) -> None:
    with skipstone.adapt(pipe, SPECS[0]) as guest:
        first = run_bare(pipe)
        moved = pipe.to("cpu").to(torch.float64).to(torch.float32)
        assert moved is pipe
        assert torch.equal(run_bare(pipe), first)
        assert guest.last.saved > 0
    assert torch.equal(run_bare(pipe), run_bare(plain))


@dataclass(frozen=True)
class EveryOther(Policy):
    """Forecast every other call, of the first sample at even steps and of the others at odd ones."""

    name: ClassVar[str] = "every_other"
    scope: ClassVar[Literal["sample", "batch"]] = "batch"

    def plan_batch(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        skips = [bool(run.attempts) and len(run.attempts) % 2 == (k == 0) for k, run in enumerate(runs)]
        return [replace(p, evaluate=Forecast()) if skip else p for skip, p in zip(skips, proposals, strict=True)]


def test_layers_that_scale_all_rows_together(pipe: Any) -> None:
    """torch's own dynamic quantisation takes one scale for a batch: its rows are compared, and enter together."""
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(pipe.unet), {torch.nn.Linear}, torch.qint8)
    pipe.unet = quantised
    assert any("quantized" in type(m).__module__ for m in quantised.modules())
    assert torch.equal(run_adapted(pipe, "fixed").output, run_bare(pipe))
    assert run_adapted(pipe, SPECS[0]).account.saved > 0  # which parts no samples
    with skipstone.adapt(pipe, EveryOther()) as guest, count_rows(pipe) as counter:
        with pytest.warns(GuestWarning, match=r"not independent.*one scale for all rows"):
            assert run_bare(pipe).isfinite().all()
        assert guest.last.verified > 0
        assert counter.rows == guest.last.verified + sum(s.calls * s.run.branches for s in guest.last)


# -- adapters -------------------------------------------------------------------------------------


def with_lora(pipe: Any, name: str, seed: int) -> None:
    """A small LoRA on the attention of the UNet, with weights that do something."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    torch.manual_seed(seed)
    pipe.unet.add_adapter(config, name)
    pipe.unet.eval()


def test_a_lora_added_before_and_after(pipe: Any, plain: Any) -> None:
    unchanged = run_bare(plain)
    with_lora(plain, "one", 1)
    with skipstone.adapt(pipe, "fixed"):
        assert torch.equal(run_bare(pipe), unchanged)
        with_lora(pipe, "one", 1)
        assert torch.equal(run_bare(pipe), run_bare(plain))
        assert not torch.equal(run_bare(pipe), unchanged)
    assert_same_as(pipe, plain)


def test_loras_switched_between_runs(pipe: Any, plain: Any) -> None:
    for p in (pipe, plain):
        with_lora(p, "one", 1)
        with_lora(p, "two", 2)
    with skipstone.adapt(pipe, SPECS[1]) as guest:
        for switch in (
            lambda net: net.set_adapter("one"),
            lambda net: net.set_adapter("two"),
            lambda net: net.disable_adapters(),
            lambda net: net.enable_adapters(),
            lambda net: net.delete_adapters("one"),
        ):
            switch(pipe.unet)
            switch(plain.unet)
            expected = run_adapted(plain, SPECS[1])
            assert torch.equal(run_bare(pipe), expected.output)
            assert [s.decisions for s in guest.last] == expected.decisions


# -- diffusers' own caches ------------------------------------------------------------------------

CACHES = {
    "first block": lambda pipe: FirstBlockCacheConfig(threshold=0.05),
    "pyramid": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 2000),
        current_timestep_callback=lambda: pipe.current_timestep,
    ),
}


@pytest.mark.parametrize("cache", CACHES)
def test_with_a_cache_of_diffusers_the_whole_batch_enters_or_nothing(cache: str) -> None:
    pipe = build("flux")
    arguments = {"family": "flux", "output_type": "latent"}
    free = run_adapted(pipe, SPECS[1], **arguments)
    assert len(set(free.decisions)) > 1
    pipe.transformer.enable_cache(CACHES[cache](pipe))
    assert torch.equal(run_adapted(pipe, "fixed", **arguments).output, run_bare(pipe, **arguments))
    entered: list[int] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(kwargs["hidden_states"].shape[0]), with_kwargs=True
    )
    for spec in SPECS:
        ran = run_adapted(pipe, spec, **arguments)
        assert len(set(ran.decisions)) == 1
        assert ran.account.saved > 0
    assert set(entered) == {BATCH}


def test_a_guidance_gate_cannot_halve_the_batch_of_a_cached_network() -> None:
    pipe = build("ltx")
    pipe.transformer.enable_cache(CACHES["pyramid"](pipe))
    arguments = FAMILIES["ltx"].inputs(pipe, 2, 8)
    with skipstone.adapt(pipe, "guidance_gate(below=1.0)") as guest, pytest.warns(GuestWarning, match="a cache"):
        pipe(**arguments)
    assert guest.last.saved == 0.0
