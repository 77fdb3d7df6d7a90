"""The peer that docs/bench.md shows is one that works."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from skipstone import registry

PAGE = Path(__file__).parents[3] / "docs" / "bench.md"


def test_the_peer_of_the_page_saves_calls_of_the_middle_block(tiny_model: Path) -> None:
    code = next(
        b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) if "Peer" in b
    )
    names: dict[str, Any] = {"__name__": __name__}
    try:
        exec(compile(code, str(PAGE), "exec"), names)
        pipe = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
        calls: list[int] = []
        pipe.unet.mid_block.resnets[0].register_forward_hook(lambda *_: calls.append(1))
        pipe.set_progress_bar_config(disable=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with names["Middle"](every=2).apply(pipe):
                pipe("a cat", num_inference_steps=6, generator=torch.Generator().manual_seed(0), output_type="latent")
        assert len(calls) == 3
    finally:
        registry._KINDS["peer"].pop("middle", None)
