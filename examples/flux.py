"""FLUX, faster: python examples/flux.py "a red apple on a blue table" """

import argparse

import torch
from diffusers import FluxPipeline

import skipstone

parser = argparse.ArgumentParser()
parser.add_argument("prompt")
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev")
parser.add_argument("--policy", default="balanced", help="error_control keeps the pipeline's own scheduler")
parser.add_argument("--steps", type=int, default=28)
parser.add_argument("--size", type=int, default=1024, help="width and height in pixels")
asked = parser.parse_args()

pipe = FluxPipeline.from_pretrained(asked.model, torch_dtype=torch.bfloat16)
if torch.cuda.is_available():
    pipe.enable_model_cpu_offload()  # parts wait in main memory: FLUX takes more than most GPUs have
size = {"width": asked.size, "height": asked.size}
with skipstone.adapt(pipe, asked.policy) as adapted:
    image = pipe(
        asked.prompt, num_inference_steps=asked.steps, generator=torch.Generator().manual_seed(0), **size
    ).images[0]
image.save("flux.png")
print(adapted.last.summary())
