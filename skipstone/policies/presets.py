"""Short names for settings that people ask for by what they want. Figures: Pebble, UniPC, 50 steps, 32 prompts."""

from ..registry import preset

preset("policy", "careful", "error_control(tol=0.001)", "Stay as close as half the calls allow.")
preset("policy", "balanced", "error_control", "Two fifths of the calls; no prompt far from the full run.")
preset("policy", "fast", "error_control(tol=0.01)", "A third of the calls; the odd prompt differs visibly.")
preset("policy", "adaptive_diffusion", "third_order_released", "AdaptiveDiffusion as its authors released it.")
