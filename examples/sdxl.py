"""Stable Diffusion XL, faster: python examples/sdxl.py "a red apple on a blue table" "a cat in the rain"

Any other text-to-image pipeline of diffusers goes in likewise: --model with its folder, or its id on the Hugging Face
hub.
"""

import argparse

import torch
from diffusers import DiffusionPipeline

import skipstone

parser = argparse.ArgumentParser()
parser.add_argument("prompts", nargs="+")
parser.add_argument("--model", default="stabilityai/stable-diffusion-xl-base-1.0")
parser.add_argument("--policy", default="balanced", help="error_control keeps the pipeline's own scheduler")
parser.add_argument("--steps", type=int, default=50)
asked = parser.parse_args()

cuda = torch.cuda.is_available()
pipe = DiffusionPipeline.from_pretrained(asked.model, torch_dtype=torch.float16 if cuda else torch.float32)
pipe.to("cuda" if cuda else "cpu")
with skipstone.adapt(pipe, asked.policy) as adapted:
    images = pipe(asked.prompts, num_inference_steps=asked.steps, generator=torch.Generator().manual_seed(0)).images
for k, image in enumerate(images):
    image.save(f"sdxl-{k}.png")
print(adapted.last.summary())  # network calls and decisions of each sample
