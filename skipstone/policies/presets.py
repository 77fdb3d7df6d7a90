"""Short names for settings that people ask for by what they want.

A preset means a quality: its calls do not follow from the number of steps asked for, unless that is smaller.
Figures: `research/frontier/table.md`.
"""

from ..registry import register_preset

register_preset(
    "policy",
    "safe",
    "adaptive_grid(calls=20)",
    "About 20 calls, more where a sample moves or bends much; never more than the steps asked for.",
    fallback="error_control(tol=0.002)",
)
register_preset(
    "policy",
    "balanced",
    "adaptive_grid",
    "About 15 calls, more where a sample moves or bends much; never more than the steps asked for.",
    fallback="error_control",
)
register_preset(
    "policy",
    "fast",
    "adaptive_grid(calls=10)",
    "About 10 calls, more where a sample moves or bends much; never more than the steps asked for.",
    fallback="error_control(tol=0.01)",
)
register_preset("policy", "adaptive_diffusion", "third_order_released", "AdaptiveDiffusion as its authors released it.")
