"""Batches, generators, outputs and arguments of a call."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..families import alone
from ..families.parts import generators
from . import Case, assert_near, check, parameters

PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
TWO = ("prompt_embeds", "negative_prompt_embeds")
POOLED = (*TWO, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
CASCADE = ("prompt_embeds", "prompt_embeds_pooled", "negative_prompt_embeds", "negative_prompt_embeds_pooled")
FLUX = ("prompt_embeds", "pooled_prompt_embeds", "")
CHROMA = ("prompt_embeds", "", "prompt_attention_mask", "negative_prompt_embeds", "", "negative_prompt_attention_mask")
# What `encode_prompt` returns, in its order.
ENCODED: dict[str, tuple[str, ...]] = {
    "StableDiffusion3": POOLED,
    "StableDiffusionXL": POOLED,
    "StableDiffusion": TWO,
    "LatentConsistencyModel": TWO,
    "PixArtAlpha": MASKED,
    "Flux": FLUX,
    "Chroma": CHROMA,
    "StableCascadePrior": CASCADE,
    "AnimateDiff": TWO,
    "TextToVideoSD": TWO,
    "I2VGenXL": TWO,
    "CogVideoX": TWO,
    "Wan": TWO,
    "Latte": TWO,
    "LTX": MASKED,
    "Mochi": MASKED,
    "Allegro": MASKED,
}


def one_generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


# -- batches --------------------------------------------------------------------------------------


@check()
def batch_equals_singles(case: Case) -> None:
    """A sample of a batch is what it is alone, with the same decisions."""
    together, decided = case.run(), case.decisions()
    for row in range(case.batch):
        single = case.call(alone(case.inputs(), row, case.batch, case.family.shared))
        assert case.decisions() == decided[row : row + 1], f"sample {row} decides otherwise alone"
        assert_near(single, together[row : row + 1], f"sample {row} alone and in the batch")


@check()
def batches_of_other_sizes(case: Case) -> None:
    """One pipeline runs batches of three, one and two, one after another."""
    outputs = []
    for case.batch in (3, 1, 2):
        outputs.append(case.run())
        assert len(outputs[-1]) == case.batch
    assert_near(outputs[0][:2], outputs[2], "the first two samples of three")
    assert_near(outputs[1], outputs[2][:1], "the first sample of two")


def takes_several(pipe: Any) -> bool:
    """Whether a pipeline makes several pictures, videos or waveforms a prompt."""
    return any(name in parameters(pipe) for name in PER_PROMPT)


@check(when=takes_several)
def several_per_prompt(case: Case) -> None:
    """Two pictures, videos or waveforms a prompt, with a generator for each and with one for all."""
    case.run()
    name = next(name for name in PER_PROMPT if name in case.parameters)
    for generator in (generators(2 * case.batch), one_generator()):
        made = case.attempt(generator=generator, **{name: 2})
        if made is not None and case.guest is not None:
            assert len(case.decisions()) == len(made)


@check(when=takes_several)
def several_per_prompt_and_every_prompt_twice(case: Case) -> None:
    """Two a prompt are those of every prompt given twice, in this order."""
    name = next(name for name in PER_PROMPT if name in case.parameters)
    arguments = {**case.inputs(), "generator": generators(2 * case.batch)}
    made = case.call({**arguments, name: 2})
    twice = {key: _twice(key, value, case) for key, value in arguments.items()}
    expected = case.call({**twice, "generator": generators(2 * case.batch)})
    assert_near(made, expected, "two a prompt, and every prompt twice")


def _twice(key: str, value: Any, case: Case) -> Any:
    if key in case.family.shared:
        return [part.repeat_interleave(2, 0) if isinstance(part, torch.Tensor) else part for part in value]
    if isinstance(value, torch.Tensor) and len(value) == case.batch:
        return value.repeat_interleave(2, 0)
    ours = isinstance(value, list) and len(value) == case.batch
    return [part for part in value for _ in range(2)] if ours else value


# -- random numbers -------------------------------------------------------------------------------


@check()
def one_generator_for_the_batch(case: Case) -> None:
    """One generator serves the whole batch, and is left where the bare pipeline leaves it."""
    outputs = []
    for _ in range(2):
        generator = one_generator()
        outputs.append(case.run(generator=generator))
        case.note(generator.get_state(), exact=True)
    assert_near(outputs[0], outputs[1], "the same seed twice", gap=0)


@check()
def a_generator_for_each_sample(case: Case) -> None:
    """Each generator is left where the bare pipeline leaves it."""
    made = generators(case.batch)
    case.run(generator=made)
    for generator in made:
        case.note(generator.get_state(), exact=True)


@check()
def no_generator(case: Case) -> None:
    """Without generators, numbers come from torch's own, which is left where the bare pipeline leaves it."""
    outputs = []
    for _ in range(2):
        outputs.append(case.run(generator=None))
        case.note(torch.get_rng_state(), exact=True)
    assert_near(outputs[0], outputs[1], "the same seed twice", gap=0)


@check()
def too_many_generators(case: Case) -> None:
    """The pipeline's own error, and then a run as if nothing had been."""
    first = case.run()
    case.attempt(generator=generators(case.batch + 3))
    assert_near(case.run(), first, "after the error", gap=0)


@check("latents", has=("prepare_latents",))
def latents_of_the_callers_own(case: Case) -> None:
    """Given latents take the place of drawn ones."""
    shapes: list[Any] = []
    inner = case.pipe.prepare_latents

    def prepare(*args: Any, **kwargs: Any) -> Any:
        made = inner(*args, **kwargs)
        shapes.append((made[0] if isinstance(made, tuple) else made).shape)
        return made

    case.pipe.prepare_latents = prepare
    drawn = case.run()
    del case.pipe.prepare_latents
    given = torch.randn(shapes[0], generator=one_generator())
    first = case.attempt(latents=given.clone())
    second = case.attempt(latents=given.clone())
    if first is None or second is None:
        return
    assert_near(first, second, "the same latents twice", gap=0)
    assert not torch.equal(first, drawn), "the latents did nothing"


# -- outputs --------------------------------------------------------------------------------------


@check("output_type")
def output_types(case: Case) -> None:
    """Latents, tensors, arrays and pictures, as far as the pipeline makes them; tensors and arrays are the same."""
    made = {kind: case.attempt(output_type=kind) for kind in ("latent", "pt", "np", "pil")}
    assert any(value is not None for value in made.values())
    tensor, array = made["pt"], made["np"]
    if tensor is not None and array is not None:
        tensor = tensor if tensor.shape == array.shape else tensor.movedim(-3, -1)
        assert_near(tensor, array, "as tensor and as array", gap=1e-5)


@check("return_dict")
def a_tuple_in_place_of_an_output(case: Case) -> None:
    """`return_dict=False` returns the same in a tuple."""
    named = case.run(return_dict=True)
    case.note(type(case.pipe(**case.inputs(return_dict=False))).__name__, exact=True)
    assert_near(case.run(return_dict=False), named, "in a tuple", gap=0)


@check()
def the_same_twice(case: Case) -> None:
    """Two calls with the same arguments return the same."""
    first, decided = case.run(), case.decisions()
    second = case.run()
    assert_near(first, second, "the second call", gap=0)
    assert case.decisions() == decided


# -- arguments ------------------------------------------------------------------------------------


@check(when=lambda pipe: "guidance_scale" in parameters(pipe))
def guidance_switched_between_calls(case: Case) -> None:
    """Guided, without guidance, and guided again."""
    first = case.run()
    case.run(**case.family.guidance_off or {"guidance_scale": 0.0})
    assert_near(case.run(), first, "guided again", gap=0)


@check()
def one_step_and_two(case: Case) -> None:
    """Very short runs end well, or in the pipeline's own error."""
    for case.steps in (1, 2, 3, 0):
        case.attempt()


@check("prompt_embeds", has=("encode_prompt",), when=lambda pipe: encoded(pipe) is not None)
def embeddings_in_place_of_prompts(case: Case) -> None:
    """What `encode_prompt` returned, given in place of the prompts, gives the same result."""
    texts: list[Any] = []
    inner = case.pipe.encode_prompt

    def encode(*args: Any, **kwargs: Any) -> Any:
        texts.append(inner(*args, **kwargs))
        return texts[-1]

    case.pipe.encode_prompt = encode
    by_prompt = case.run(num_inference_steps=case.steps)
    del case.pipe.encode_prompt
    names = encoded(case.pipe) or ()
    given = {n: v for n, v in zip(names, texts[0], strict=False) if n in case.parameters and v is not None}
    if len(texts) == 2:  # a second call for the negative prompts
        given |= {f"negative_{n}": v for n, v in zip(names, texts[1], strict=False) if n in case.parameters}
    arguments = {key: value for key, value in case.inputs().items() if "prompt" not in key}
    none = {name: None for name in ("prompt", "negative_prompt") if name in case.parameters}
    by_embeddings = case.call({**arguments, **given, **none})
    assert_near(by_embeddings, by_prompt, "by embeddings and by prompts", gap=1e-5)


def encoded(pipe: Any) -> tuple[str, ...] | None:
    """Names of what `encode_prompt` of a pipeline returns; None where it is not known or there are no encoders."""
    if getattr(pipe, "text_encoder", None) is None and getattr(pipe, "text_encoder_2", None) is None:
        return None
    return next((names for start, names in ENCODED.items() if type(pipe).__name__.startswith(start)), None)


@check("timesteps")
def timesteps_of_the_callers_own(case: Case) -> None:
    """Times of the caller's own, where the scheduler takes any."""
    times = [960, 830, 700, 560, 430, 300, 160, 20]
    case.attempt(timesteps=times, num_inference_steps=None)
    case.run()


@check("sigmas")
def sigmas_of_the_callers_own(case: Case) -> None:
    """Noise levels of the caller's own, where the scheduler takes any."""
    levels = [0.98, 0.9, 0.8, 0.66, 0.5, 0.35, 0.2, 0.08]
    case.attempt(sigmas=levels)
    case.attempt(sigmas=np.array(levels))
    case.run()


OPTIONAL: dict[str, tuple[Any, ...]] = {
    "eta": (0.7,),
    "guidance_rescale": (0.7,),
    "strength": (0.5, 0.1, 0.0),
    "clip_skip": (1,),
    "negative_prompt": (None,),
    "denoising_end": (0.7, 0.05),
    "aesthetic_score": (3.0,),
    "original_size": ((32, 24),),
    "use_dynamic_cfg": (True,),
    "true_cfg_scale": (1.5, 1.0),
    "cfg_normalization": (False,),
    "pag_scale": (0.0, 1.0),
    "pag_adaptive_scale": (0.1,),
    "controlnet_conditioning_scale": (0.5,),
    "control_guidance_end": (0.4,),
    "image_guidance_scale": (1.0,),
    "motion_bucket_id": (60,),
    "decode_chunk_size": (1,),
    "use_clipped_model_output": (True,),
    "enable_temporal_attentions": (False,),
    "frame_rate": (12,),
    "cfg_trunc_ratio": (0.5,),
    "max_guidance_scale": (1.0, 2.0),
    "guidance_scale_2": (1.0,),
}


@check(when=lambda pipe: any(name in parameters(pipe) for name in OPTIONAL))
def optional_arguments(case: Case) -> None:
    """Arguments that change the run, each by itself, and then the run without them again."""
    first = case.run()
    for name in set(OPTIONAL) & set(case.parameters):
        for value in OPTIONAL[name]:
            case.attempt(**{name: value})
    assert_near(case.run(), first, "without them again", gap=0)


@check("prompt", when=lambda pipe: hasattr(pipe, "bert") or getattr(pipe, "text_encoder", None) is not None)
def prompts_as_text(case: Case) -> None:
    """One prompt as a string, and one negative prompt as a string for the whole batch."""
    case.attempt(prompt=case.inputs()["prompt"], negative_prompt="wet dog")
    case.batch = 1
    known = case.inputs()
    texts = {k: v[0] for k, v in known.items() if "prompt" in k and isinstance(v, list) and isinstance(v[0], str)}
    listed = case.run()
    text = case.attempt(**texts)
    if text is not None:
        assert_near(text, listed, "as a string and as a list", gap=0)


@check("image")
def pictures_of_other_kinds(case: Case) -> None:
    """One picture for the whole batch, and pictures as PIL makes them."""
    shown = case.inputs().get("image")
    if not isinstance(shown, torch.Tensor):
        case.run()
        return
    case.attempt(image=shown[:1])
    if shown.shape[1] == 3:
        arrays = (255 * shown.permute(0, 2, 3, 1)).round().to(torch.uint8).numpy()
        case.attempt(image=[Image.fromarray(array) for array in arrays])
    case.run()


@check("height", "width")
def sizes_switched_between_calls(case: Case) -> None:
    """A larger picture between two calls, and then the first again."""
    first = case.run()
    known = case.inputs()
    side = 2 * known.get("height", 16)
    case.attempt(height=side, width=side)
    assert_near(case.run(), first, "the first size again", gap=0)


@check()
def mistakes_in_a_call(case: Case) -> None:
    """The pipeline's own errors, and then a run as if nothing had been."""
    first = case.run()
    case.attempt(no_such_argument=1)
    case.attempt(num_inference_steps="five")
    for name, value in {"prompt": 7, "height": 13, "callback_on_step_end_tensor_inputs": ["no such"]}.items():
        if name in case.parameters:
            case.attempt(**{name: value})
    assert_near(case.run(), first, "after the errors", gap=0)


@check()
def progress_bars(case: Case) -> None:
    """The bar counts every step, whether the network is called there or not."""
    stream = io.StringIO()
    case.pipe.set_progress_bar_config(disable=False, file=stream, mininterval=0)
    case.run()
    case.note(re.findall(r"\d+/\d+", stream.getvalue())[-1:], exact=True)
    case.pipe.set_progress_bar_config(disable=True)
