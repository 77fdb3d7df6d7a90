"""Make any diffusers pipeline adaptive: python examples/adapt_pipeline.py MODEL

MODEL is the folder of a text-to-image pipeline, or its id on the Hugging Face hub.
"""

import sys

import torch
from diffusers import DiffusionPipeline

import skipstone

pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
prompts = ["a red apple on a blue table", "a cat in the rain"]
with skipstone.adapt(pipe, "error_control") as adapted:
    images = pipe(prompts, generator=torch.Generator().manual_seed(0)).images
for i, image in enumerate(images):
    image.save(f"adapted-{i}.png")
print(adapted.last.summary())  # network calls and decisions of each sample
