"""The committed sheet of `skipstone demo` shows what the demo draws today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import skipstone.cli  # noqa: F401  (it loads the command `demo`, which imports it in turn)
import skipstone_pebble as pebble
from skipstone.evaluation.columns import parse_column, parse_columns
from skipstone.evaluation.compare import compare
from skipstone.evaluation.contact_sheet import FIGURES, sheet_figures
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.subject import SampleRequest
from skipstone_pebble.cli import POLICIES, PROMPTS

SHEET = Path(__file__).parents[2] / "docs" / "images" / "demo.png"
AGAIN = "make demo, look at demo/sheet.png, and copy it to docs/images/demo.png, demo/timeline.png to docs/images"
CALLS, DECIBELS = 1, 1.5  # what another processor's rounding may change


@pytest.fixture(scope="module")
def shown() -> Any:
    return json.loads(Image.open(SHEET).text[FIGURES])


def test_it_shows_the_prompts_and_columns_of_the_demo(shown: Any) -> None:
    assert list(shown["prompts"]) == list(PROMPTS), AGAIN
    assert shown["columns"] == ["fixed", *POLICIES], AGAIN


def test_its_figures_are_those_of_today(shown: Any) -> None:
    subject, sampler = EngineSubject(pebble.path(), "pebble"), DEFAULT_SAMPLER
    reference = parse_column("fixed", *sampler)
    policies = [name for name in POLICIES if name != "fewer"]  # its steps follow from the mean of all prompts
    result = compare(subject, [SampleRequest(PROMPTS[0], 0)], parse_columns(policies, *sampler), reference, repeats=1)
    (today,) = sheet_figures(result)["prompts"].values()
    recorded = shown["prompts"][PROMPTS[0]]
    for name, (calls, psnr), (calls_then, psnr_then) in zip(["fixed", *policies], today, recorded, strict=False):
        assert calls == pytest.approx(calls_then, abs=CALLS), f"{name}: {AGAIN}"
        assert psnr == (None if psnr_then is None else pytest.approx(psnr_then, abs=DECIBELS)), f"{name}: {AGAIN}"
