"""A small calibration of a tiny pipeline, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import skipstone
from skipstone import CalibrationOptions
from skipstone.policies.certified import Certified

PROMPTS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cat", "dog", "bus", "house")]
OPTIONS = CalibrationOptions(steps=6)
ASKED = {"target": "psnr >= 20 @ 60%", "confidence": 0.7, "options": OPTIONS}
SETTINGS = (
    "error_control(tol=0.0)",
    "error_control(tol=0.05, warmup=2)",
    "error_control(tol=9.0, warmup=2, max_skip=9)",
)


@pytest.fixture(scope="session")
def pipe(tiny_model: Path) -> Any:
    """The tiny pipeline, loaded as a user would."""
    import diffusers

    found = diffusers.DiffusionPipeline.from_pretrained(tiny_model)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full runs that several tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def policy(pipe: Any, cache: Path) -> Certified:
    """Of three settings of one policy, one of which changes nothing."""
    found: Certified = skipstone.calibrate(pipe, PROMPTS, settings=SETTINGS, cache=cache, **ASKED)
    return found


@pytest.fixture
def saved(policy: Certified, tmp_path: Path) -> Path:
    """The same in a folder."""
    return policy.save_pretrained(tmp_path / "out")
