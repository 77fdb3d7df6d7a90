"""What a pipeline promises holds alike bare, with `fixed` and with a policy that skips: some of it for every family.

`make matrix` runs every check for every family.
"""

from __future__ import annotations

import pytest

from .families import FAMILIES
from .matrix import REFUSED
from .pipeline_checks import CHECKS, compare_check, run_check

COVER = {
    "batch_equals_singles": "text-to-video-sd cogvideox-collision wan22-ti2v",
    "batches_of_other_sizes": "dit",
    "several_per_prompt": "controlnet-sd t2i-adapter",
    "several_per_prompt_and_every_prompt_twice": "ip-adapter",
    "one_generator_for_the_batch": "lcm",
    "a_generator_for_each_sample": "i2vgen-xl",
    "no_generator": "kandinsky22",
    "too_many_generators": "sd15-inpaint",
    "latents_of_the_callers_own": "sdxl-refiner",
    "output_types": "pixart",
    "a_tuple_in_place_of_an_output": "stablecascade-prior",
    "the_same_twice": "ldm",
    "guidance_switched_between_calls": "controlnet-sd-guess pag latte",
    "one_step_and_two": "controlnet-sdxl",
    "embeddings_in_place_of_prompts": "sdxl chroma",
    "timesteps_of_the_callers_own": "sdxl-inpaint",
    "sigmas_of_the_callers_own": "sana",
    "optional_arguments": "cogvideox-dpm",
    "sizes_switched_between_calls": "flux",
    "mistakes_in_a_call": "ddim",
    "progress_bars": "instruct-pix2pix svd",
    "a_callback_that_reads": "sdxl-img2img animatediff",
    "a_callback_that_reads_every_tensor": "cogview4",
    "a_callback_that_returns_other_latents": "wan22",
    "a_callback_that_writes_into_the_latents": "flux-kontext",
    "a_callback_that_changes_the_prompt": "lumina2",
    "a_callback_that_changes_the_guidance": "kandinsky22-prior",
    "callbacks_of_the_wrong_kind": "wuerstchen-decoder",
    "a_callback_of_the_old_kind": "stable-audio",
    "interrupted_runs": "wan-i2v",
    "errors_in_a_callback": "auraflow",
    "errors_in_the_network": "ddpm",
    "saved_and_loaded": "hunyuandit sdxl",
    "copied": "cogvideox",
    "another_pipeline_of_the_same_parts": "qwenimage",
    "what_it_tells_of_itself": "wan21",
    "floats_of_16_bits": "sd15-inpaint9",
    "brain_floats": "hunyuan-video controlnet-sd-two",
    "floats_of_64_bits": "flux-img2img",
    "weights_stored_in_8_bits": "hunyuan-video-truecfg",
    "model_offload": "ltx-i2v",
    "offload_with_a_hook": "flux-truecfg",
    "leaf_offload": "mochi",
    "block_offload": "sd3-slg",
    "attention_in_slices": "allegro",
    "autoencoder_in_slices_and_tiles": "sd3",
    "other_attention_processors": "sd15-inpaint",
    "fused_projections": "sd3",
    "freeu": "controlnet-sdxl",
    "lora": "ltx",
    "a_fresh_scheduler": "dit",
    "a_network_replaced": "wan22",
    "inference_mode": "flux",
    "channels_last": "kandinsky22",
    "hooks_of_the_user": "stable-audio",
    "guidance_switched_off_and_on_within_a_run": "chroma wan21",
    "callbacks_that_diffusers_ships": "sd15 sd3",
    "prompts_as_text": "flux-truecfg",
    "pictures_of_other_kinds": "sd15-img2img ltx-i2v",
}
SHORT = {"one_step_and_two", "a_callback_that_reads_every_tensor"}  # runs in which a policy has nothing to skip
PAIRS = [(family, name) for name, families in COVER.items() for family in families.split()]


@pytest.mark.parametrize(("family", "name"), PAIRS, ids=["/".join(pair) for pair in PAIRS])
def test_a_check_ends_alike(family: str, name: str) -> None:
    found = compare_check(family, name)
    assert found["bare"] == found["fixed"] == found["third_order"] == ""
    assert found["saved"] > 0 or name in SHORT


def test_every_check_and_every_family_occurs() -> None:
    assert COVER.keys() == CHECKS.keys()
    assert {family for family, _ in PAIRS} == FAMILIES.keys() - REFUSED


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_that_cannot_be_adapted_is_refused_by_name(family: str) -> None:
    assert not run_check(family, "the_same_twice", None).error
    for spec in ("fixed", "third_order"):
        outcome = run_check(family, "the_same_twice", spec)
        assert outcome.refused
        assert "cannot be adapted: " in outcome.error
