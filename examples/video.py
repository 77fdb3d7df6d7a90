"""A video of Wan 2.1, faster: python examples/video.py "a cat walks in the rain"

`error_control` keeps the pipeline's own scheduler and loop. All frames of a video are decided on together.
"""

import argparse

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_gif

import skipstone

parser = argparse.ArgumentParser()
parser.add_argument("prompt")
parser.add_argument("--model", default="Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
parser.add_argument("--policy", default="error_control")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--frames", type=int, default=81)
parser.add_argument("--width", type=int, default=832, help="pixels")
parser.add_argument("--height", type=int, default=480, help="pixels")
asked = parser.parse_args()

cuda = torch.cuda.is_available()
pipe = WanPipeline.from_pretrained(asked.model, torch_dtype=torch.bfloat16 if cuda else torch.float32)
pipe.to("cuda" if cuda else "cpu")
size = {"num_frames": asked.frames, "width": asked.width, "height": asked.height}
with skipstone.adapt(pipe, asked.policy) as adapted:
    video = pipe(asked.prompt, num_inference_steps=asked.steps, output_type="pil", **size).frames[0]
export_to_gif(video, "video.gif")
print(adapted.last.summary())
