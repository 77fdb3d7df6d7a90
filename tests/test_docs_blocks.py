"""Every Python block of the documentation runs, one after another on a page, as a reader types them.

Pretrained models are stood in for by small ones of the same family with random weights, and runs are made short.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
from hub_stand_in import TOKEN, serving, visit
from PIL import Image

import skipstone
from skipstone import registry
from skipstone.integrations.diffusers import pipeline_specs
from tests.integrations.guest.families import build

DOCS = Path(__file__).parent.parent / "docs"
ELSEWHERE = {"bench.md", "module_backbone.md"}  # tests/bench/peers/test_documented_peer.py, tests/test_docs.py
FAMILIES = {
    "DiffusionPipeline": "sdxl",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLControlNetPipeline": "controlnet-sdxl",
    "StableDiffusionXLControlNetInpaintPipeline": "controlnet-sdxl",
    "FluxPipeline": "flux",
    "WanPipeline": "wan21",
}
SHORT = {
    r"num_inference_steps=\d+": "num_inference_steps=6",
    r"\bsteps=\d+": "steps=6",
    r"sized\(\d+, \d+\)": "sized(32, 48)",
    r"num_frames=\d+": "num_frames=5, height=32, width=32",
}
STORED = "PATH_TO_A_PIPELINE"  # a folder that diffusers saved
PROMPTS = [f"a {colour} {thing}" for colour in ("red", "blue", "green", "black") for thing in "abcdefghij"]


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.name not in ELSEWHERE and blocks(page)]


def small(cls: type[Any], *_: Any, **__: Any) -> Any:
    """What `from_pretrained` returns: a tiny pipeline of the family."""
    name = FAMILIES[cls.__name__]
    pipe = build(name)
    if cls.__name__.endswith("InpaintPipeline"):
        pipe = cls(**{key: part for key, part in pipe.components.items() if key != "feature_extractor"})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def short_calibration(real: Any, pipe: Any, prompts: Any, target: str, **said: Any) -> Any:
    """`skipstone.calibrate` of one setting that changes nothing, in four steps."""
    options = skipstone.CalibrationOptions(steps=4, limit=34)
    return real(pipe, prompts, target, settings=["third_order(tol=0.0)"], options=options, **said)


@pytest.fixture(autouse=True)
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small models, a hub on this machine, and registries that are put back."""
    for name in ("DiffusionPipeline", *FAMILIES):
        monkeypatch.setattr(getattr(diffusers, name), "from_pretrained", classmethod(small))
    monkeypatch.setattr(diffusers.ControlNetModel, "from_pretrained", classmethod(lambda cls, name: None))
    monkeypatch.setattr("torch.nn.Module.compile", lambda module: None)  # takes minutes; test_compiled.py compiles
    monkeypatch.setattr(skipstone, "calibrate", partial(short_calibration, skipstone.calibrate), raising=False)
    monkeypatch.setenv("SKIPSTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for kind in registry.KIND_MODULES:
        registry.names(kind)  # loads what there is, before the registry is replaced by a copy
    monkeypatch.setattr(registry, "_KINDS", {kind: dict(known) for kind, known in registry._KINDS.items()})
    monkeypatch.setattr(pipeline_specs, "_SPECS", dict(pipeline_specs._SPECS))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with serving() as hub:
        visit(hub.address, tmp_path / "hub", monkeypatch)
        yield


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_block_runs(page: Path) -> None:
    picture = Image.new("RGB", (64, 64), "grey")
    names: dict[str, Any] = {"__name__": page.stem, "skipstone": skipstone, "pipe": build("sdxl"), "prompts": PROMPTS}
    names |= {"photo": picture, "mask": picture.convert("L"), "edges": picture}
    names |= {"EulerDiscreteScheduler": diffusers.EulerDiscreteScheduler}
    for block in blocks(page):
        if STORED in block:
            pytest.importorskip("mlx.core")
            build("sd15").save_pretrained("stored")
            block = block.replace(STORED, "stored")
        if "pipe.transformer" in block:
            names |= {"pipe": build("flux"), "prompts": PROMPTS[:4]}
        for long, short in SHORT.items():
            block = re.sub(long, short, block)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(block, page.name, "exec", dont_inherit=True), names)


def test_all_pages_with_blocks_are_run() -> None:
    found = {page.name for page in DOCS.rglob("*.md") if blocks(page)}
    assert found == {page.name for page in PAGES} | ELSEWHERE
