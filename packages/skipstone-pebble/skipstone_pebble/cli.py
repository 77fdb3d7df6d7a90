"""`skipstone demo`: six prompts from simple to crowded, which the embedded model draws as they say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from skipstone.cli import options

PROMPTS = (
    "a yellow heart on a white background",
    "a red apple on a blue background",
    "a large rocket on a purple background",
    "a house on a green background",
    "a carrot left of a strawberry on a pink background",
    "a star above a cactus on a purple background",
)
STEPS: int | None = None  # those that are usual for Pebble
POLICIES = ("third_order", "error_control", "balanced", "fewer")  # the last with the calls of balanced


def demo(
    out: Annotated[Path, options.folder()] = Path("demo"),
    force: options.ForceOption = False,
) -> None:
    """Compare adaptive policies with the full run and fewer steps on Pebble.

    The same as skipstone compare with six prompts from simple to crowded; it
    takes a minute or two and says where the contact sheet is.
    """
    from skipstone.cli.compare import ComparisonOptions, run_comparison

    run_comparison(
        PROMPTS,
        POLICIES,
        options.ModelOptions(),
        options.SamplerOptions(steps=STEPS),
        ComparisonOptions(out=out, force=force),
    )
