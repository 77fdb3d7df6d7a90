"""Short names for settings that people ask for by what they want.

Calls of 50 and PSNR to the full run, median / worst tenth, were measured on Pebble: UniPC, 32 withheld prompts,
`python benchmarks/policies.py`.
"""

from ..registry import preset

preset("policy", "safe", "error_control(tol=0.001)", "29 calls of 50 on Pebble, 68 / 61 dB.")
preset("policy", "balanced", "error_control", "22 calls of 50 on Pebble, 60 / 53 dB.")
preset("policy", "fast", "error_control(tol=0.01)", "19 calls of 50 on Pebble, 59 / 47 dB.")
preset("policy", "adaptive_diffusion", "third_order_released", "AdaptiveDiffusion as its authors released it.")
