"""What users do to the parts of a pipeline: floats, offloading, attention, adapters, schedulers."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from . import Case, assert_near, check, denoiser

CPU = torch.device("cpu")


# -- floats ---------------------------------------------------------------------------------------


def _in_floats(case: Case, dtype: torch.dtype) -> None:
    """Set to other floats while adapted, called, and set back."""
    case.pipe.to(dtype)
    change = {k: v.to(dtype) for k, v in case.inputs().items() if isinstance(v, torch.Tensor) and "embed" in k}
    case.attempt(**change)
    case.pipe.to(torch.float32)


@check()
def floats_of_16_bits(case: Case) -> None:
    """float16."""
    _in_floats(case, torch.float16)


@check()
def brain_floats(case: Case) -> None:
    """bfloat16."""
    _in_floats(case, torch.bfloat16)


@check()
def floats_of_64_bits(case: Case) -> None:
    """float64."""
    _in_floats(case, torch.float64)


@check()
def weights_stored_in_8_bits(case: Case) -> None:
    """diffusers' layerwise casting: stored in float8, computed in float32."""
    case.network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    case.attempt()


# -- where weights lie ----------------------------------------------------------------------------


@check(has=("model_cpu_offload_seq",))
def model_offload(case: Case) -> None:
    """Hooks of accelerate on every model, put on while adapted, used twice, and removed."""
    before = case.run()
    case.pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert_near(case.run(), before, "offloaded", gap=0)
        case.adapt_again()
    case.pipe.remove_all_hooks()
    assert_near(case.run(), before, "without hooks again", gap=0)


@check()
def offload_with_a_hook(case: Case) -> None:
    """accelerate's `cpu_offload_with_hook` on the denoiser."""
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    before = case.run()
    _, hook = cpu_offload_with_hook(case.network, execution_device="cpu")
    assert_near(case.run(), before, "offloaded", gap=0)
    hook.offload()
    case.adapt_again()
    assert_near(case.run(), before, "offloaded once more", gap=0)
    remove_hook_from_module(case.network, recurse=True)
    assert_near(case.run(), before, "without hooks again", gap=0)


def _group_offload(case: Case, kind: str, **more: Any) -> None:
    before = case.run()
    apply_group_offloading(case.network, onload_device=CPU, offload_device=CPU, offload_type=kind, **more)
    for _ in range(2):
        after = case.attempt()
        if after is not None:
            assert_near(after, before, "offloaded", gap=0)
        case.adapt_again()


@check()
def leaf_offload(case: Case) -> None:
    """diffusers' group offloading, layer by layer."""
    _group_offload(case, "leaf_level")


@check()
def block_offload(case: Case) -> None:
    """diffusers' group offloading, block by block."""
    _group_offload(case, "block_level", num_blocks_per_group=1)


# -- attention and autoencoders -------------------------------------------------------------------


@check(has=("enable_attention_slicing",))
def attention_in_slices(case: Case) -> None:
    """On, and off again."""
    before = case.run()
    case.pipe.enable_attention_slicing(1)
    assert_near(case.run(), before, "in slices", gap=1e-3)
    case.pipe.disable_attention_slicing()
    case.run()


@check("output_type", has=("vae",), when=lambda pipe: hasattr(pipe.vae, "enable_slicing"))
def autoencoder_in_slices_and_tiles(case: Case) -> None:
    """Pictures decoded by slices and by tiles."""
    case.attempt(output_type="pt")
    case.pipe.vae.enable_slicing()
    case.attempt(output_type="pt")
    if hasattr(case.pipe.vae, "enable_tiling"):
        case.pipe.vae.enable_tiling()
        case.attempt(output_type="pt")


@check(when=lambda pipe: _has_usual_processors(denoiser(pipe)))
def other_attention_processors(case: Case) -> None:
    """The usual processors replaced by the slower ones, and set back."""
    before = case.run()
    own = case.network.attn_processors
    case.network.set_attn_processor(AttnProcessor())
    assert_near(case.run(), before, "with other processors", gap=1e-2)
    case.network.set_attn_processor(own)
    assert_near(case.run(), before, "with its own again", gap=0)


def _has_usual_processors(network: Any) -> bool:
    found = getattr(network, "attn_processors", {}).values()
    return bool(found) and all(isinstance(p, AttnProcessor2_0) for p in found)


@check(when=lambda pipe: hasattr(denoiser(pipe), "fuse_qkv_projections"))
def fused_projections(case: Case) -> None:
    """Projections of attention in one matrix, and apart again."""
    before = case.run()
    case.network.fuse_qkv_projections()
    case.adapt_again()
    after = case.attempt()
    if after is not None:
        assert_near(after, before, "fused", gap=1e-2)
    case.network.unfuse_qkv_projections()
    case.attempt()


@check(has=("enable_freeu",))
def freeu(case: Case) -> None:
    """FreeU, on and off again."""
    before = case.run()
    case.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    case.run()
    case.pipe.disable_freeu()
    assert_near(case.run(), before, "off again", gap=0)


# -- adapters, schedulers, networks ---------------------------------------------------------------


@check(when=lambda pipe: importlib.util.find_spec("peft") is not None and hasattr(denoiser(pipe), "add_adapter"))
def lora(case: Case) -> None:
    """A LoRA added while adapted changes the result; without it the result is as before."""
    from peft import LoraConfig

    before = case.run()
    torch.manual_seed(1)
    layers = ["to_q", "to_k", "to_v"]
    case.network.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False), "mine")
    case.network.eval()
    assert not torch.equal(case.run(), before), "the LoRA did nothing"
    case.adapt_again()
    case.network.disable_adapters()
    assert_near(case.run(), before, "switched off", gap=1e-5)
    case.network.delete_adapters("mine")
    assert_near(case.run(), before, "removed", gap=1e-5)


@check()
def a_fresh_scheduler(case: Case) -> None:
    """A scheduler made from the configuration of the old one, in its place."""
    before = case.run()
    case.pipe.scheduler = type(case.pipe.scheduler).from_config(case.pipe.scheduler.config)
    assert_near(case.run(), before, "with a fresh scheduler", gap=0)


@check()
def a_network_replaced(case: Case) -> None:
    """A denoiser with other weights in place of the old one, and the old one again."""
    import copy

    before, own = case.run(), case.network
    name = next(key for key, part in case.pipe.components.items() if part is own)
    other = copy.deepcopy(own)
    for weights in other.parameters():
        weights.mul_(0.9)
    setattr(case.pipe, name, other)
    assert not torch.equal(case.run(), before), "the other network did nothing"
    setattr(case.pipe, name, own)
    assert_near(case.run(), before, "the old network again", gap=0)


@check()
def inference_mode(case: Case) -> None:
    """Under `torch.inference_mode` the result is the same."""
    before = case.run()
    with torch.inference_mode():
        within = case.attempt()
    if within is not None:
        assert_near(within.clone(), before, "in inference mode", gap=0)
    assert_near(case.run(), before, "outside again", gap=0)


@check(when=lambda pipe: any(w.ndim == 4 for w in denoiser(pipe).parameters()))
def channels_last(case: Case) -> None:
    """Weights laid out with channels last."""
    before = case.run()
    case.network.to(memory_format=torch.channels_last)
    assert_near(case.run(), before, "with channels last", gap=1e-3)


@check()
def hooks_of_the_user(case: Case) -> None:
    """Forward hooks on the denoiser are called, and see what enters it."""
    calls: list[int] = []
    hook = case.network.register_forward_hook(lambda *_: calls.append(1))
    case.run()
    hook.remove()
    assert calls
    case.note(len(calls))  # with a policy, fewer
