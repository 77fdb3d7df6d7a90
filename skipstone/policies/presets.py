"""Short names for settings that people ask for by what they want.

Calls of 50 and PSNR to the converged solution, median / worst tenth: on Pebble, `research/pebble_results`. Where the
loop of a pipeline cannot be taken over, `fallback` decides; with it, 50 steps are about as close as with `fast`
(`tol=0.01`), and 5 dB less close at the median than with `balanced` (`tol=0.003`, its default).
"""

from ..registry import register_preset

register_preset(
    "policy",
    "safe",
    "stride(tol=0.0018)",
    "25 calls of 50 on Pebble; of 25 steps or fewer it saves nothing, or little.",
    fallback="error_control(tol=0.002)",
)
register_preset(
    "policy",
    "balanced",
    "stride",
    "20 calls of 50 on Pebble; of 20 steps or fewer it saves nothing, or little.",
    fallback="error_control",
)
register_preset(
    "policy",
    "fast",
    "stride(tol=0.0115)",
    "15 calls of 50 on Pebble; of 15 steps or fewer it saves nothing, or little.",
    fallback="error_control(tol=0.01)",
)
register_preset("policy", "adaptive_diffusion", "third_order_released", "AdaptiveDiffusion as its authors released it.")
